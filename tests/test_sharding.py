"""A step on eight devices is the step on one, whichever axis they stand on."""

import dataclasses
import functools
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from short import get_config
from xla import EXACT, devices

from vdt import checkpoint, hlo, plan, roofline, sharding
from vdt.conditions import Conditions
from vdt.config import AdamW, Mesh, Muon
from vdt.diffusion import Tasks
from vdt.models import layout, presets
from vdt.train import make_update

OPTIMIZERS = {"adamw": AdamW(lr=1e-3, warmup=5), "muon": Muon(lr=1e-3, warmup=5)}


def steps(data_dir, optimizer="adamw", axes=(), micro_batches=1, **model):
  """The state after three training steps on a mesh."""
  config = get_config()
  config.micro_batches = micro_batches
  config.optimizer = OPTIMIZERS[optimizer]
  config.data.data_dir, config.data.frames = data_dir, model.pop("frames", 8)
  config.model = dataclasses.replace(config.model, **{"heads": 4, **model})
  config.tasks, config.mesh = Tasks(generation=1.0, prediction=1.0), Mesh(**{"data": 1, **dict(axes)})
  mesh, network = config.build()
  optimizer = config.optimizer.build()
  new_state = partial(checkpoint.new_state, network, optimizer, 0, jax.random.key(0))
  with jax.set_mesh(mesh):
    placed = jax.tree.map(lambda leaf: leaf.sharding, sharding.place(jax.eval_shape(new_state), mesh))
    state = jax.jit(new_state, out_shardings=placed)()
    step = make_update(config, network, optimizer, jax.random.key(1))
    update = jax.jit(step, out_shardings=(placed, None), compiler_options=EXACT)
    for step in range(3):
      batch = config.data.batch(step)
      seen = {"video": batch["video"], "cond": Conditions(config).arrays(batch)}
      batch = seen | {"stop": np.zeros_like(batch["label"])}
      state, _ = update(state, sharding.put(batch, mesh))
  return state


@pytest.fixture(scope="module")
def single(data_dir):
  """The same steps on one device, by optimizer."""
  return functools.cache(lambda optimizer: jax.device_get(steps(data_dir, optimizer)))


def assert_same(state, expected, tolerance=1e-5):
  """Every array within 1e-5 of the other, in its norm: AdamW makes large differences of small ones in single values."""
  found = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
  for (path, mine), theirs in zip(found, jax.tree.leaves(expected), strict=True):
    apart = np.linalg.norm(np.subtract(mine, theirs, dtype=np.float64))
    assert apart <= tolerance * np.linalg.norm(theirs), f"{sharding.path_name(path)} is {apart} off"


MESHES = [dict(data=8), dict(fsdp=8), dict(sequence=8), dict(tensor=4), dict(fsdp=2, sequence=2, tensor=2)]


@pytest.mark.parametrize(
  "axes, optimizer", [*((axes, "adamw") for axes in MESHES), (dict(data=2, fsdp=2, tensor=2), "muon")], ids=str
)
def test_sharded_is_single_device(single, data_dir, axes, optimizer):
  state = steps(data_dir, optimizer, axes)
  kernel = state.params["pattern"]["blocks"][0]["mlp"]["body"]["up"]["kernel"]
  parts = axes.get("fsdp", 1) * axes.get("tensor", 1)
  assert kernel.addressable_shards[0].data.size * parts == kernel.size, "the parameters are split"
  tolerance = (
    1e-4 if optimizer == "muon" else 1e-5
  )  # of a matrix of low rank Muon makes one of full rank, from rounding
  assert_same(state, single(optimizer), tolerance)


def fetched(*args):
  """`steps`, as arrays that another process can read."""
  return jax.device_get(steps(*args))


def test_all_four_axes_together_are_a_single_device(single, data_dir, monkeypatch):
  """Two devices along each axis, sixteen: in a process of its own, for this one has eight."""
  monkeypatch.setenv("XLA_FLAGS", devices(16))
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
    axes = dict(data=2, fsdp=2, sequence=2, tensor=2)
    assert_same(pool.submit(fetched, data_dir, "adamw", axes).result(), single("adamw"))


def test_a_step_over_data_reduces_one_thing_after_the_other(data_dir):
  """On CPUs XLA does not wait for an all-reduce before it starts one that does not need it, and processes that do them
  in different order wait for each other for ever. So each needs those before it, or the loop that does them."""
  from tensorflow.compiler.xla.service import hlo_pb2

  config = get_config()
  config.data.data_dir, config.mesh = data_dir, Mesh(data=8)
  mesh, network = config.build()
  _, lowered = plan.lowered_step(config, mesh, network)
  parsed = hlo_pb2.HloModuleProto.FromString(roofline.module_of(lowered.compile()))
  module = hlo.Module(parsed)

  def reduces(each) -> bool:
    inside = each.called_computation_ids if each.opcode in ("while", "call", "conditional") else ()
    return each.opcode == "all-reduce" or any(reduces(part) for number in inside for part in module.sequence(number))

  def needs(each) -> set[int]:
    found, left = set(), [each.id]
    while left:
      new = set(module.instructions[left.pop()].operand_ids) - found
      found |= new
      left += new
    return found

  reducing = [each for each in module.sequence(parsed.entry_computation_id) if reduces(each)]
  assert len(reducing) > 1, "gradients, and the flags of a stop"
  for before, after in itertools.pairwise(reducing):
    assert before.id in needs(after), f"{after.metadata.op_name} does not need {before.metadata.op_name}"


@pytest.mark.parametrize("axes", [dict(), dict(data=2, fsdp=2)], ids=str)
def test_a_batch_in_parts_is_the_batch(single, data_dir, axes):
  """Micro-batches slice the batch's noise, they draw none of their own."""
  assert_same(steps(data_dir, "adamw", axes, micro_batches=2), single("adamw"))


REMATS = [dict(remat="offload"), dict(remat="dots+params", scan=False), dict(remat="dots+params", micro_batches=2)]


@pytest.mark.parametrize("model", REMATS, ids=str)
def test_what_changes_memory_and_time_alone_is_the_same_over_a_mesh(single, data_dir, model):
  assert_same(steps(data_dir, "adamw", dict(fsdp=2, sequence=2, tensor=2), **model), single("adamw"))


def test_parameters_that_are_kept_are_gathered_once_in_the_computation_s_type(data_dir):
  """Each matrix of each repeat, for the forward pass and the backward one; otherwise for either."""
  gathers = {}
  for remat in ("dots", "dots+params"):
    config = get_config()
    config.data.data_dir, config.mesh = data_dir, Mesh(data=2, fsdp=4)
    config.model = dataclasses.replace(config.model, depth=4, remat=remat, scan=False)
    mesh, network = config.layout()
    state, lowered = plan.lowered_step(config, mesh, network)
    gathers[remat] = lowered.compile().as_text().count(" all-gather(")
  repeats = jax.tree_util.tree_leaves_with_path(state.params["pattern"])
  matrices = sum(leaf.shape[0] for path, leaf in repeats if sharding.path_name(path).endswith("kernel"))
  assert matrices == 32 and gathers["dots"] - gathers["dots+params"] == matrices, gathers
  with jax.set_mesh(mesh):
    found = jax.eval_shape(
      partial(layout.gathered, dtype=jnp.dtype("bfloat16")), state.params["pattern"]["blocks"][0]["mlp"]
    )
  assert found["body"]["up"]["kernel"].dtype == jnp.bfloat16 and found["body"]["up"]["bias"].dtype == jnp.float32


@pytest.mark.parametrize("frames", [8, 5])
def test_every_axis_over_sequence_also_with_frames_that_do_not_divide(data_dir, frames):
  model = dict(pattern=(("time", "joint"), ("causal", "space")), frames=frames)
  assert_same(steps(data_dir, axes=dict(data=2, sequence=4), **model), jax.device_get(steps(data_dir, **model)))


def test_the_table():
  mesh = Mesh(data=1, fsdp=2, tensor=4).build()
  place = lambda path, *shape: sharding.parameter_spec(path, shape, mesh.shape)
  assert place("ema/pattern/blocks/0/attention/0/body/query/kernel", 6, 8, 8) == P(None, "fsdp", "tensor")
  assert place("opt/1/0/mu/pattern/blocks/0/mlp/body/down/kernel", 6, 32, 8) == P(None, "tensor", "fsdp")
  muon = "opt/1/inner_states/muon/inner_state/0/mu/pattern/blocks/0/attention/0/body/out/kernel"
  assert place(muon, 6, 8, 8) == P(None, "tensor", "fsdp")
  assert place("params/out/kernel", 8, 3) == P("tensor", None), "an axis that does not divide is left out"
  assert place("params/embed/bias", 8) == P(None) and place("step") == P()


def test_the_batch_is_split_over_data_and_fsdp():
  mesh = Mesh(data=2, fsdp=2, tensor=2).build()
  video = sharding.put({"video": np.zeros((8, 2, 4, 4, 3), np.uint8)}, mesh)["video"]
  assert video.addressable_shards[0].data.shape == (2, 2, 4, 4, 3)
  assert dataclasses.asdict(Mesh())["data"] == -1 and Mesh().build().shape["data"] == 8


PUBLISHED = {
  "latte": presets.latte("S", depth=4, width=64, heads=4, classes=3, dtype="float32"),
  "vdt": presets.vdt("S", depth=2, width=64, heads=4, dtype="float32"),
  "latte-1": presets.latte_text(depth=4, width=64, heads=4, text=8, dtype="float32"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("frames", [4, 5])
def test_published_networks_lie_over_all_axes(name, frames):
  """Their late table of times, their text and its mask, padded frames: the same on eight devices as on one."""
  model = PUBLISHED[name]
  network = model.build(frames, (8, 8), {"sequence": 2, "tensor": 2})
  keys = jax.random.split(jax.random.key(0), 4)
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(keys[0], p.shape), jax.jit(network.init)(keys[1]))
  x, t = jax.random.normal(keys[2], (4, frames, 8, 8, 4)), np.full((4, frames), 0.3, np.float32)
  cond = {"given": np.zeros((4, frames, 8, 8, 1)), "label": np.zeros(4, int), "null": {}}
  cond["null"] = {name: np.array([True, False] * 2) for name in model.conditions}
  cond |= {"text": jax.random.normal(keys[3], (4, 5, 8)), "text_seen": np.arange(5)[None] < np.array([[5], [3]] * 2)}
  alone = jax.jit(network.apply, compiler_options=EXACT)(params, x, t, cond)
  mesh = Mesh(data=1, fsdp=2, sequence=2, tensor=2).build()
  with jax.set_mesh(mesh):
    placed = sharding.place(jax.eval_shape(network.init, keys[1]), mesh)
    spread = jax.tree.map(lambda leaf, where: jax.device_put(leaf, where.sharding), params, placed)
    together = jax.jit(network.apply, compiler_options=EXACT)(spread, x, t, cond)
  np.testing.assert_allclose(together, alone, atol=1e-5 * float(np.abs(alone).max()))
