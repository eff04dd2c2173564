"""A step on eight devices is the step on one, whichever axis they stand on."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vdt import sharding
from vdt.config import Mesh
from vdt.train import train

sys.path.insert(0, str(Path(__file__).parent))
from short import get_config


def short(data_dir, **mesh):
  config = get_config()
  config.data.data_dir = data_dir
  config.steps, config.log_every, config.model.heads = 3, 1, 4
  config.mesh = Mesh(**{"data": 1, **mesh})
  return config


@pytest.fixture(scope="module")
def single(tmp_path_factory, data_dir):
  return jax.device_get(train(short(data_dir), str(tmp_path_factory.mktemp("single"))))


@pytest.mark.parametrize("mesh", [dict(data=8), dict(fsdp=8), dict(tensor=4), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_sharded_is_single_device(single, tmp_path, data_dir, mesh):
  state = train(short(data_dir, **mesh), str(tmp_path))
  kernel = state.params["pattern"]["blocks"]["0"]["mlp"]["body"]["up"]["kernel"]
  parts = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
  assert kernel.addressable_shards[0].data.size * parts == kernel.size, "the parameters are split"
  for mine, theirs in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(single), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_table():
  mesh = Mesh(data=1, fsdp=2, tensor=4).build()
  place = lambda path, *shape: sharding.spec(path, shape, mesh)
  assert place("ema/pattern/blocks/0/attention/0/body/query/kernel", 6, 8, 8) == P(None, "fsdp", "tensor")
  assert place("opt/1/0/mu/pattern/blocks/0/mlp/body/down/kernel", 6, 32, 8) == P(None, "tensor", "fsdp")
  assert place("params/out/kernel", 8, 3) == P("tensor", None), "an axis that does not divide is left out"
  assert place("params/embed/bias", 8) == P() and place("step") == P()


def test_the_batch_is_split_over_data_and_fsdp():
  mesh = Mesh(data=2, fsdp=2, tensor=2).build()
  video = sharding.put({"video": np.zeros((8, 2, 4, 4, 3), np.uint8)}, mesh)["video"]
  assert video.addressable_shards[0].data.shape == (2, 2, 4, 4, 3)
  assert dataclasses.asdict(Mesh())["data"] == -1 and Mesh().build().shape["data"] == 8
