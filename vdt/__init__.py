"""vdt: video diffusion transformers in JAX, from video files to trained, resumable, sampled models."""
