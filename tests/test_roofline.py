"""What a program costs a chip, against what can be counted by hand. The programs are compiled by the TPU compiler."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdt import hlo, roofline, topology
from vdt.models.attention import attend_long
from vdt.models.layers import DENSE, REMAT
from vdt.network import links, load, taken
from vdt.topology import CHIPS

missing = importlib.util.find_spec("libtpu") is None
needs_compiler = pytest.mark.skipif(missing, reason="libtpu is not installed: pip install -e '.[tpu]'")
CHIP = CHIPS["v5e"]


def cost(function, *shapes, dtype="bfloat16", name="v5e:2x4", spec=(), specs=None, out=None):
  """The cost of a program on 8 chips along one axis; inputs lie as `spec`, or each as `specs` says, its result as `out`
  does, or as the compiler has it."""
  where = topology.describe(name)
  mesh = jax.sharding.Mesh(np.array(where.devices), ("x",))
  specs = specs or [spec] * len(shapes)
  place = lambda shape, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
  with jax.set_mesh(mesh):
    made = None if out is None else NamedSharding(mesh, P(*out))
    lowered = jax.jit(function, out_shardings=made).lower(*(place(*pair) for pair in zip(shapes, specs)))
  return roofline.price(roofline.module_of(lowered.compile()), where)


@needs_compiler
def test_a_matrix_product_takes_its_flops():
  found = cost(lambda a, b: a @ b, (4096, 2048), (2048, 8192))
  flops = 2 * 4096 * 2048 * 8192
  assert found.flops == flops
  assert found.seconds == pytest.approx(flops / CHIP.peak, rel=0.1)
  assert found.bytes >= 2 * (4096 * 2048 + 2048 * 8192 + 4096 * 8192)


@needs_compiler
def test_a_sum_takes_its_bytes():
  found = cost(lambda a, b: a + b, (8192, 8192), (8192, 8192))
  moved = 3 * 2 * 8192 * 8192
  assert found.flops == 0 and found.bytes == moved
  assert found.seconds == pytest.approx(moved / CHIP.bandwidth)


@needs_compiler
def test_a_loop_counts_as_often_as_it_runs():
  """Each round reads its own row of the stacked weights, not all of them."""

  def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  few, many = (cost(layers, (4096, 1024), (count, 1024, 1024)) for count in (4, 12))
  assert many.flops == 3 * few.flops == 12 * 2 * 4096 * 1024 * 1024
  assert many.bytes < 3.3 * few.bytes


@needs_compiler
def test_a_round_that_does_the_work_of_several_counts_so():
  """As the compiler writes loops that gather a product's operand bit by bit."""

  def layers(x, weights):
    def two(carry):
      i, x = carry
      return i + 2, jnp.tanh(jnp.tanh(x @ weights[i]) @ weights[i + 1])

    return jax.lax.while_loop(lambda carry: carry[0] < 11, two, (2, x))[1]

  assert cost(layers, (4096, 1024), (12, 1024, 1024)).flops == 10 * 2 * 4096 * 1024 * 1024


@needs_compiler
@pytest.mark.parametrize("unroll, rows", [(False, 65536), (True, 65536), (True, 16384)])
def test_what_the_forward_pass_keeps_is_counted_and_what_products_take(unroll, rows):
  """In a stack that a loop fills, or array by array, smaller ones by parts that are read ahead: what 12 layers make,
  and in a stack tanh in float32 too."""

  def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)[0].astype("float32").sum()

  found = cost(jax.grad(layers, 1), (rows, 1024), (12, 1024, 1024))
  tokens, weights = rows * 1024 * 2, 1024 * 1024 * 2
  assert found.kept == pytest.approx((12 if unroll else 3 * 12) * tokens, rel=0.1)
  assert 12 * (6 * tokens + 3 * weights) == pytest.approx(found.operands, rel=0.1), "the first has no input's gradient"


@needs_compiler
@pytest.mark.parametrize("unroll", [False, True])
def test_what_is_offloaded_goes_over_the_hosts_link_there_and_back(unroll):
  def layers(x, weights):
    body = lambda x, w: (jnp.tanh(checkpoint_name(x @ w, DENSE)), None)
    return jax.lax.scan(REMAT["offload"](body), x, weights, unroll=unroll)[0].astype("float32").sum()

  found = cost(jax.grad(layers, 1), (65536, 1024), (12, 1024, 1024))
  traffic, tokens = found.traffic["copy", "host"], 65536 * 1024 * 2
  assert traffic.bytes == pytest.approx(2 * 12 * tokens, rel=0.02)
  assert found.seconds >= 0.9 * traffic.bytes / CHIP.host, "longer than all that it computes"
  assert found.kept == pytest.approx(12 * tokens, rel=0.1), "a repeat's input stays, what is offloaded does not"


@needs_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_kernel_is_charged_its_products(causal, dtype):
  """Two heads of 2,048 tokens of 128, in blocks of 512: the compiler itself counts none of a kernel's FLOPs, nor that
  each block of queries reads the keys and values, and each of keys the queries and gradients."""
  value = lambda *qkv: attend_long(*qkv, causal=causal).astype("float32").sum()
  found = cost(jax.value_and_grad(value, argnums=(0, 1, 2)), *[(2, 2048, 128)] * 3, name="v5e:1x1", dtype=dtype)
  share = 10 / 16 if causal else 1  # of the blocks, those that are not above the diagonal
  assert found.flops == (2 + 3 + 4) * 2 * 2 * 2048 * 2048 * 128 * share
  array = 2 * 2048 * 128 * (2 if dtype == "bfloat16" else 4)
  streamed = 3 * 2 * 4 * share  # by three kernels; what they read or write once may be on the chip
  assert (streamed - 6) * array <= found.bytes <= (streamed + 11) * array


@needs_compiler
def test_a_kernel_of_ours_is_charged_what_it_states():
  """3 heads of 128 over 2 frames of 256 patches: 2 products forward and 5 backward; each array read or written once."""
  from vdt.models.fused_attention import choose, fused_attention

  spec = choose("space", (2, 256), 3, 128, 2, (2, 16, 16), valid=2)
  value = lambda *qkv: fused_attention(spec, *qkv, jnp.ones(128), jnp.ones(128)).astype("float32").sum()
  found = cost(jax.value_and_grad(value, argnums=(0, 1, 2)), *[(1, 2, 256, 384)] * 3, name="v5e:1x1")
  logits = 3 * 2 * 256 * 256
  assert found.flops == (2 + 5) * 2 * logits * 128
  array = 2 * 256 * 384 * 2
  assert 6 * array <= found.bytes <= 1.3 * 11 * array


@needs_compiler
def test_collectives_are_priced_by_where_their_chips_are():
  """The same sum over pairs of neighbours, and over pairs that lie apart and share the links between."""
  seconds = []
  for order in ([0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7]):
    where = topology.describe("v5e:2x4")
    by_place = sorted(where.devices, key=lambda device: tuple(device.coords)[::-1][1:])
    devices = [by_place[index] for index in order]
    mesh = jax.sharding.Mesh(np.array(devices).reshape(4, 2), ("y", "x"))
    a = jax.ShapeDtypeStruct((2048, 4096), "bfloat16", sharding=NamedSharding(mesh, P(None, "x")))
    b = jax.ShapeDtypeStruct((4096, 2048), "bfloat16", sharding=NamedSharding(mesh, P("x", None)))
    with jax.set_mesh(mesh):
      compiled = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    found = roofline.price(roofline.module_of(compiled), where._replace(devices=devices))
    seconds.append(sum(traffic.seconds for traffic in found.traffic.values()))
  assert seconds[1] > 1.5 * seconds[0]


def test_an_array_takes_the_tiles_that_hold_it():
  """Rows of 4 numbers fill tiles of 8 x 128; laid out the other way, they fill 4 of 8 rows."""
  schema = pytest.importorskip("tensorflow.compiler.xla.service.hlo_pb2")
  shape = schema.HloModuleProto().computations.add().instructions.add().shape
  shape.element_type = 11  # F32
  shape.dimensions.extend([256, 4])
  shape.layout.tiles.add().dimensions.extend([8, 128])
  for order, elements in (([1, 0], 256 * 128), ([0, 1], 8 * 256)):
    del shape.layout.minor_to_major[:]
    shape.layout.minor_to_major.extend(order)
    assert hlo.sizes(shape) == [(4 * elements, hlo.HBM)]


@needs_compiler
def test_what_is_reduced_over_chips_is_priced_by_its_links():
  """A sum over 8 chips, each with a part of the contracted axis, of 4096 x 4096 values."""
  found = cost(lambda a, b: a @ b, (4096, 8192), (8192, 4096), specs=[(None, "x"), ("x", None)])
  ((kind, network), traffic), *rest = found.traffic.items()
  assert network == "ici" and not rest and kind in ("all-reduce", "reduce-scatter")
  assert traffic.bytes == 2 * 4096 * 4096
  line = [(i, j, 0) for i in range(2) for j in range(4)]
  assert traffic.seconds == pytest.approx(links(kind, traffic.bytes, line, (2, 4), CHIP))
  assert found.flops == 2 * 4096 * 8192 * 4096 / 8
  assert found.seconds >= found.flops / CHIP.peak + traffic.exposed


@needs_compiler
def test_a_sum_of_which_each_chip_keeps_a_part_is_waited_for():
  """As gradients are over fsdp: the TPU compiler writes it as a fusion that begins and ends by itself."""
  found = cost(lambda a, b: a.T @ b, (1024, 1024), (1024, 4096), specs=[("x",), ("x",)], out=("x",))
  traffic = found.traffic.pop(("reduce-scatter", "ici"))
  assert not found.traffic and traffic.count == 1
  assert traffic.bytes == 2 * 1024 * 4096
  line = [(i, j, 0) for i in range(2) for j in range(4)]
  assert traffic.seconds == pytest.approx(links("reduce-scatter", traffic.bytes, line, (2, 4), CHIP))
  assert found.bound["ici"] == traffic.exposed == pytest.approx(traffic.seconds)
  assert found.bytes >= 2 * (1024 * 1024 + 1024 * 4096 + 1024 * 4096) / 8, "and what it takes and makes"


def test_links_follow_the_equations_of_rings_and_lines():
  shape, size = (16, 16), 1e9
  row = [(0, i) for i in range(16)]
  ring = links("all-gather", size, row, shape, CHIP)
  assert ring == pytest.approx(size * 15 / 16 / (2 * CHIP.link))
  assert links("all-reduce", size, row, shape, CHIP) == pytest.approx(2 * ring)
  assert links("all-to-all", size, row, shape, CHIP) == pytest.approx(size * 16 / (8 * CHIP.link))
  line = [(0, i) for i in range(4)]
  assert links("all-gather", size, line, shape, CHIP) == pytest.approx(size * 3 / 4 / CHIP.link)
  assert links("all-to-all", size, line, shape, CHIP) == pytest.approx(size * 4 / (4 * CHIP.link))
  apart = [(0, 4 * i) for i in range(4)]  # three other groups share its links
  assert links("all-gather", size, apart, shape, CHIP) == pytest.approx(4 * size * 3 / 4 / CHIP.link)
  everyone = [(i, j) for i in range(16) for j in range(16)]
  assert links("all-gather", size, everyone, shape, CHIP) == pytest.approx(size * 255 / 256 / (4 * CHIP.link))


def test_messages_share_the_links_on_their_way():
  most = lambda *case: max(load(*case).values(), default=0)
  shift = lambda by, length: [((i, 0), ((i + by) % length, 0)) for i in range(length)]
  assert most(shift(1, 16), (16, 16), 16) == 1, "a ring"
  assert most(shift(3, 16), (16, 16), 16) == 3
  assert most(shift(1, 8), (8, 8), 16) == 1, "a line: what comes round goes back over its links"
  assert most(shift(15, 16), (16, 16), 16) == 1, "backwards"
  across = [((i, 0), (7 - i, 0)) for i in range(8)]
  assert most(across, (8, 8), 16) == 4, "all that is left of the middle passes it"
  assert most([((0, 0), (0, 0))], (8, 8), 16) == 0
  assert {way for *_, way in load(shift(15, 16), (16, 16), 16)} == {"-"}


@needs_compiler
@pytest.mark.parametrize("slices", [1, 2])
def test_messages_inside_slices_are_of_each_slice_and_those_between_take_the_slow_network(slices):
  where = topology.describe("v5e:2x4", slices)
  schema = pytest.importorskip("tensorflow.compiler.xla.service.hlo_pb2")
  place = {(getattr(d, "slice_index", 0), *d.coords[:2]): number for number, d in enumerate(where.devices)}
  permute = schema.HloInstructionProto()
  for (part, x, y), number in place.items():
    permute.source_target_pairs.add(source=number, target=place[part, (x + 1) % 2, y])
  assert taken(permute, "collective-permute", 1e6, where)[:2] == ("ici", 1e6 / CHIP.link)
  if slices == 2:
    permute.source_target_pairs.add(source=place[0, 0, 0], target=place[1, 0, 0])
    assert taken(permute, "collective-permute", 1e6, where)[:2] == ("dcn", 1e6 / CHIP.dcn)


@pytest.mark.parametrize(
  "name, slices, said",
  [
    ("v5litepod-16", 1, "unknown topology"),
    ("v7x:2x2", 1, "unknown topology"),
    ("v5p:16x16", 1, "have 3 axes"),
    ("v5e:16x16", 0, "at least 1"),
    pytest.param("v5e:3x4", 1, "no slice v5e:3x4", marks=needs_compiler),
  ],
)
def test_slices_that_there_are_not_are_named(name, slices, said):
  with pytest.raises(ValueError, match=said):
    topology.describe(name, slices)


@needs_compiler
@pytest.mark.parametrize("name, chips", [("v4:2x2x2", 8), ("v5e:4x8", 32), ("v5p:2x2x4", 16), ("v6e:4x4", 16)])
def test_every_chip_is_one_device(name, chips):
  assert len(topology.describe(name).devices) == chips
