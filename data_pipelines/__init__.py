"""From files and simulators to batches: numpy, tf.data and TFDS. Never jax, never vdt."""
