"""Every path of attention is `attend`: outputs and gradients, in float32, on one device and over a mesh."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from vdt import topology
from vdt.config import Mesh
from vdt.models import TransformerConfig, attention, layout
from vdt.models.attention import Attention, attend, attend_long
from vdt.models.fused_attention import MOST, choose
from vdt.sharding import BATCH
from vdt.sharding import place as place_all

needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)


@pytest.fixture
def kernels(monkeypatch):
  """Attention takes the kernels of a TPU, interpreted here; the fixture is the list of those it has taken."""
  taken = []

  def chosen(*args, **fields):
    if spec := choose(*args, **fields, interpret=True):
      taken.append(spec)
    return spec

  monkeypatch.setattr(layout, "on_tpu", lambda: True)
  monkeypatch.setattr(attention, "choose", chosen)
  monkeypatch.setattr(attention, "attend_long", partial(attend_long, interpret=True))
  return taken


def made(axis, size, heads, **fields):
  options = {"qk_norm": True, "rotary": True, "dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0), **fields}
  graphdef, params = nnx.split(Attention(axis, heads * size, heads, **options))
  keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
  return graphdef, jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params)


def both(graphdef, params, x, cells, split, kernels):
  """Output, and the gradients of the parameters and of the tokens; padded frames do not count."""

  def value(params, x):
    y = nnx.merge(graphdef, params)(x, cells, kernels, split)[:, : cells[0]]
    return jnp.sum(jnp.sin(3 * y)), y

  (_, y), grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(params, x)
  return [y, *jax.tree.leaves(grads)]


def assert_same(found, expected):
  for mine, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * max(1, float(jnp.abs(theirs).max())))


CASES = {  # axis, (frames, height, width), size and number of heads, padded frames, options
  "a frame a block": ("space", (2, 16, 16), 128, 2, 0, {}),
  "frames share a block": ("space", (8, 8, 8), 64, 2, 0, {}),
  "more rows than are worked on at once": ("space", (2, 16, 32), 128, 1, 0, {}),
  "patches share a block": ("time", (16, 8, 8), 128, 2, 0, {}),
  "no norms": ("time", (8, 4, 8), 64, 2, 0, dict(qk_norm=False)),
  "no angles": ("time", (8, 4, 8), 64, 2, 0, dict(rotary=False)),
  "padded time": ("time", (5, 8, 8), 128, 2, 3, {}),
  "the past": ("causal", (16, 4, 4), 64, 4, 0, {}),
  "everything": ("joint", (4, 8, 16), 128, 1, 0, {}),
  "everything, padded": ("joint", (3, 8, 8), 64, 2, 1, {}),
}


@pytest.mark.parametrize("axis, cells, size, heads, padding, options", CASES.values(), ids=CASES)
def test_the_kernel_is_attention(kernels, axis, cells, size, heads, padding, options):
  graphdef, params = made(axis, size, heads, **options)
  x = jax.random.normal(jax.random.key(2), (2, cells[0] + padding, cells[1] * cells[2], heads * size))
  args = graphdef, params, x, cells, layout.FRAMES
  expected = both(*args, kernels=False)
  assert not kernels
  assert_same(both(*args, kernels=True), expected)
  assert kernels and kernels[0].rows % 128 == 0


@pytest.mark.parametrize("axis, split", [("space", layout.FRAMES), ("time", layout.PATCHES), ("joint", layout.FRAMES)])
def test_the_kernel_over_a_mesh(kernels, axis, split):
  graphdef, params = made(axis, 128, 4)
  cells = (8, 8, 4)
  x = jax.random.normal(jax.random.key(2), (2, 8, 32, 512))
  expected = both(graphdef, params, x, cells, split, False)
  with jax.set_mesh(Mesh(data=2, sequence=2, tensor=2).build()):
    assert_same(both(graphdef, params, x, cells, split, True), expected)
  assert kernels and kernels[0].lies is not None


LONG = {  # axis, how it is split, (frames, height, width), size of a head, padded frames
  "space": ("space", layout.FRAMES, (2, 16, 16), 128, 0),
  "everything": ("joint", layout.FRAMES, (2, 16, 16), 128, 0),
  "heads of 64, a length that does not divide": ("space", layout.FRAMES, (2, 12, 15), 64, 0),
  "everything, padded": ("joint", layout.FRAMES, (5, 8, 8), 64, 3),
  "padded time": ("time", layout.PATCHES, (250, 2, 2), 64, 6),
  "the past": ("causal", layout.PATCHES, (256, 2, 2), 64, 0),
}


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize("axis, split, cells, size, padding", LONG.values(), ids=LONG)
def test_long_sequences_take_the_splash_kernel(kernels, monkeypatch, axis, split, cells, size, padding, meshed):
  monkeypatch.setattr(attention, "MOST", 128)
  monkeypatch.setattr(attention, "choose", lambda *args, **fields: None)
  monkeypatch.setattr(attention, "attend", None)
  graphdef, params = made(axis, size, 2)
  x = jax.random.normal(jax.random.key(2), (2, cells[0] + padding, cells[1] * cells[2], 2 * size))
  with monkeypatch.context() as patch:
    patch.setattr(attention, "attend", attend)
    expected = both(graphdef, params, x, cells, split, False)
  mesh = Mesh(data=2, sequence=2, tensor=1) if meshed else Mesh(data=1)
  with jax.set_mesh(mesh.build(jax.devices()[: 4 if meshed else 1])):
    assert_same(both(graphdef, params, x, cells, split, True), expected)


def test_a_forward_derivative_needs_no_kernel(kernels):
  """`jax.jvp` fails where there is a custom_vjp, and `apply(..., kernels=False)` has none."""
  config = TransformerConfig(depth=2, width=128, heads=2, patch=(1, 1, 1), dtype="float32")
  network = config.build(8, (4, 4), {})
  params, x = network.init(jax.random.key(0)), jnp.ones((1, 8, 4, 4, 3))
  cond, t = {"given": jnp.zeros((1, 8, 4, 4, 1))}, jnp.ones((1, 8))
  push = lambda **options: jax.jvp(lambda x: network.apply(params, x, t, cond, **options), (x,), (x,))
  push(kernels=False)
  with pytest.raises(TypeError, match="custom_vjp"):
    push()


def test_blocks_fit_or_are_refused():
  take = lambda axis, tokens, heads, size, itemsize=2: choose(
    axis, tokens, heads, size, itemsize, (tokens[0], 1, tokens[1]), tokens[0]
  )
  assert take("space", (16, 256), 9, 128)[:3] == (1, 256, 9)
  assert take("time", (16, 256), 9, 128)[:3] == (16, 16, 9)
  assert take("space", (16, 1024), 9, 128)[:3] == (1, 1024, 1), "fewer heads at a time"
  assert take("space", (16, MOST + 128), 9, 128) is None and take("joint", (16, 256), 9, 128) is None
  assert take("space", (1, 256), 16, 72) is None, "heads that do not fill lanes"
  assert take("time", (16, 9), 9, 128) is None, "rows that do not fill tiles"
  wide = take("space", (16, 256), 16, 128, itemsize=4)
  assert wide.heads < take("space", (16, 256), 16, 128).heads, "float32 takes twice the room"


COMPILED = {  # pattern, pixels of 256 a patch, frames, and the kernels of the backward pass
  "256 patches of 16 frames": ((("space",), ("time",)), 16, 16, {"fused": 2}),
  "1,024 patches": ((("space",),), 8, 2, {"fused": 1}),
  "4,096 patches": ((("space",),), 4, 2, {"splash": 1}),
  "heads of 64": ((("space", "causal"),), 16, 8, {"fused": 2}),
  "frames that do not divide": ((("time",),), 16, 17, {"fused": 1}),
  "256 tokens of everything": ((("joint",),), 64, 16, {"fused": 1}),
  "2,048 tokens of everything": ((("joint",),), 16, 8, {"splash": 1}),
  "heads of 64, 4,096 patches": ((("space", "joint"),), 4, 2, {"splash": 2}),
  "2,304 tokens of everything, padded": ((("joint",),), 16, 9, {"splash": 1}),
}
QUICK = {("v5e:2x2", case) for case in list(COMPILED)[:3]}
CASES_OF_CHIPS = [
  pytest.param(name, *COMPILED[case], id=f"{case}, {name}", marks=() if (name, case) in QUICK else pytest.mark.slow)
  for name in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
  for case in COMPILED
]


@needs_compiler
@pytest.mark.parametrize("name, pattern, patch, frames, kernels", CASES_OF_CHIPS)
def test_the_tpu_compiler_takes_the_kernels(name, pattern, patch, frames, kernels):
  """Blocks fit in fast memory, and each attention has the kernel that is meant for it."""
  mesh = Mesh(sequence=2).build(topology.describe(name).devices)
  heads = 8 if len(pattern[0]) > 1 else 4
  model = TransformerConfig(depth=len(pattern), width=512, heads=heads, patch=(1, patch, patch), pattern=pattern)
  network = model.build(frames, (256, 256), dict(mesh.shape))
  place = lambda *shape: jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, BATCH))
  x, given, t = place(2, frames, 256, 256, 3), place(2, frames, 256, 256, 1), place(2, frames)
  loss = lambda params, *xt: jnp.square(network.apply(params, *xt)).sum()
  params = place_all(jax.eval_shape(network.init, jax.random.key(0)), mesh)
  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss)).lower(params, x, t, {"given": given}).compile().as_text()
  calls = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
  found = {kind: sum(name in line for line in calls) for kind, name in BACKWARD.items()}
  assert {kind: count for kind, count in found.items() if count} == kernels


BACKWARD = {"fused": "fused_attention_bwd", "splash": "splash_mha_dkv"}
