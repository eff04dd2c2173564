"""What the TPU compiler makes of the training step, with no TPU: libtpu compiles for a described slice."""

import importlib.util
import math
import re
from functools import partial
from pathlib import Path

import jax
import pytest
from jax.sharding import NamedSharding

from vdt import topology
from vdt.config import Mesh
from vdt.diffusion import RectifiedFlow
from vdt.models import TransformerConfig
from vdt.sharding import BATCH, place

missing = importlib.util.find_spec("libtpu") is None
pytestmark = pytest.mark.skipif(missing, reason="libtpu is not installed: pip install -e '.[tpu]'")
BATCHES, FRAMES, SIZE, WIDTH = 4, 8, (32, 32), 256


@pytest.fixture
def compiled():
  """The text of a gradient step, compiled for 8 chips of v5e: its all-to-alls, and the sizes of what it gathers."""
  devices = topology.describe("v5e:2x4").devices

  def compile(pattern, **axes):
    mesh = Mesh(**axes).build(devices)
    model = TransformerConfig(depth=2 * len(pattern), width=WIDTH, heads=4, patch=(1, 4, 4), pattern=pattern)
    network = model.build(FRAMES, SIZE, dict(mesh.shape))
    batch = lambda *shape: jax.ShapeDtypeStruct((BATCHES, *shape), "float32", sharding=NamedSharding(mesh, BATCH))
    video, given = batch(FRAMES, *SIZE, 3), batch(FRAMES, *SIZE, 1)

    def loss(params, x0, noise, t, given):
      return RectifiedFlow().losses(partial(network.apply, params), x0, noise, t, {"given": given}).mean()

    params = place(jax.eval_shape(network.init, jax.random.key(0)), mesh)
    with jax.set_mesh(mesh):
      text = jax.jit(jax.grad(loss)).lower(params, video, video, batch(), given).compile().as_text()
    found = {"all-to-all": 0, "all-gather": []}
    for made, name in re.findall(r"= (.*) (all-to-all|all-gather)(?:-start)?\(", text):
      if name == "all-to-all":
        found[name] += 1
      else:  # what is started makes what it takes, too
        sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[([\d,]+)\]", made)]
        found[name].append(max(sizes))
    return found

  return compile


@pytest.mark.parametrize(
  "pattern, switches",
  [((("space",), ("time",)), 2), ((("time", "space"),), 2), ((("space", "joint"),), 4), ((("space",),), 0)],
  ids=str,
)
def test_layouts_switch_by_all_to_all_and_gather_no_activations(compiled, pattern, switches):
  """Each switch once in the scanned body of the forward pass and once in that of the backward pass.

  Joint attention takes queries, keys and values to other devices and its output back. What is gathered is what frames
  are modulated by: no larger than a frame's, where tokens have as many as there are patches.
  """
  found = compiled(pattern, data=2, sequence=4)
  assert found["all-to-all"] == 2 * switches
  assert max(found["all-gather"], default=0) <= BATCHES // 2 * FRAMES * 3 * WIDTH


def test_an_exported_sampler_compiles_for_a_slice():
  """The program that `vdt export --format stablehlo` writes, read back, for a chip that is not there."""
  from absl import flags
  from jax import export

  from vdt import stablehlo
  from vdt.cli import parse

  experiment = Path(__file__).parents[1] / "experiments" / "published.py"
  config, _ = parse([f"--config={experiment}:tiny"], flags.FlagValues())
  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  program = export.deserialize(bytearray(stablehlo.programs(config, like)["sampler"].serialize()))
  mesh = Mesh(data=1).build(topology.describe("v5e:2x4").devices[:1])
  b, f, (h, w) = 4, config.data.frames, config.data.size
  one = NamedSharding(mesh, jax.sharding.PartitionSpec())
  array = lambda shape, dtype="float32": jax.ShapeDtypeStruct(shape, dtype, sharding=one)
  cond = {"given": array((b, f, h, w, 1)), "label": array((b,), "int32"), "null": {"label": array((b,), "bool")}}
  params = [array(leaf.shape) for leaf in jax.tree.leaves(like)]
  compiled = jax.jit(program.call).lower(params, array((b, 2), "uint32"), array((b, f, h, w, 3)), cond).compile()
  assert "while" in compiled.as_text() and compiled.memory_analysis().peak_memory_in_bytes > 0
