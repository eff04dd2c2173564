"""A trained run's network as features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short import get_config

from vdt import distributed, workdirs
from vdt.checkpoint import Checkpointer, State
from vdt.config import Mesh
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
  assert made.middle in made.name and len(made.hash()) == 64
  videos = np.random.default_rng(0).uniform(-1, 1, (8, *shape, 3)).astype(np.float32)
  function = made.function()
  features = np.asarray(jax.jit(function)(videos))
  assert features.shape == (8, 2 * config.model.width) and np.isfinite(features).all()
  assert np.abs(features[0] - features[1]).max() > 1e-3
  with jax.set_mesh(Mesh(data=2, sequence=4).build()):
    np.testing.assert_allclose(distributed.in_chunks(jax.jit(function), (videos,), 8), features, atol=1e-5)
  made.check(config.data)
  config.data.frames -= 1
  with pytest.raises(ValueError, match="was trained on clips of"):
    made.check(config.data)
