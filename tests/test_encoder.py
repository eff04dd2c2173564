"""A trained run's network as features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short import get_config

from vdt import workdirs
from vdt.checkpoint import Checkpointer, State
from vdt.evals.features import network


def test_a_runs_network_tells_videos_apart(tmp_path, data_dir):
  config = get_config()
  config.data.data_dir = data_dir
  shape = (config.data.frames, *config.data.size)
  like = jax.eval_shape(config.model.build(shape[0], shape[1:], {}).init, jax.random.key(0))
  ema = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), like)
  with workdirs.claim(str(tmp_path), config, None), Checkpointer(str(tmp_path)) as checkpoints:
    checkpoints.save(State(None, ema, None, jnp.int32(7)), {}, wait=True)
  made = network(f"vdt.encoder:Encoder@{tmp_path}")
  assert "step 7" in made.name and len(made.hash()) == 64
  videos = np.random.default_rng(0).uniform(-1, 1, (3, *shape, 3)).astype(np.float32)
  features = np.asarray(jax.jit(made.function())(videos))
  assert features.shape == (3, 2 * config.model.width) and np.isfinite(features).all()
  assert np.abs(features[0] - features[1]).max() > 1e-3
  np.testing.assert_allclose(made.function()(videos[1:2])[0], features[1], atol=1e-4)
  with pytest.raises(ValueError, match="was trained on clips of"):
    made.function()(videos[:, :2])
