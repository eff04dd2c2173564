import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.models import TransformerConfig
from vdt.models.positions import grid, rope_angles, rotate
from vdt.models.transformer import SIZES

FRAMES, SIZE = 4, (6, 6)
LAYOUTS = {
  "interleaved": (("space",), ("time",)),
  "sequential": (("time", "space"),),
  "joint": (("joint",),),
  "causal time": (("space",), ("causal",)),
  "unmodulated time": ((("time", "none"), "space"),),
  "shared table": ((("space", "single"),), (("time", "single"),)),
}


def config(**fields):
  return TransformerConfig(**{**dict(depth=2, width=16, heads=2, classes=3, dtype="float32"), **fields})


def noised(key, params):
  """Parameters with none at zero: what a trained network looks like."""
  keys = iter(jax.random.split(key, len(jax.tree.leaves(params))))
  return jax.tree.map(lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape), params)


@functools.cache
def made(**fields):
  network = config(**fields).build(FRAMES, SIZE, {})
  params = jax.jit(lambda: noised(jax.random.key(1), network.init(jax.random.key(0))))()
  return network._replace(apply=jax.jit(network.apply)), params


def inputs(frames=FRAMES, size=SIZE, channels=3):
  x = jax.random.normal(jax.random.key(2), (2, frames, *size, channels))
  cond = {"given": jnp.zeros((*x.shape[:4], 1)), "label": jnp.array([0, 2])}
  cond["null"] = {"label": jnp.array([False, True])}
  return x, jnp.linspace(0.1, 0.9, 2 * frames).reshape(2, frames), cond


@pytest.mark.parametrize("pattern", LAYOUTS.values(), ids=LAYOUTS)
def test_zero_init_network_returns_zeros_and_trains(pattern):
  network = config(pattern=pattern).build(FRAMES, SIZE, {})
  params, (x, t, cond) = jax.jit(network.init)(jax.random.key(0)), inputs()
  assert (jax.jit(network.apply)(params, x, t, cond) == 0).all()
  loss = lambda params: jnp.square(network.apply(params, x, t, cond) - x).mean()
  step = jax.jit(lambda params: jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params)))
  loss = jax.jit(loss)
  before = loss(params)
  for _ in range(10):
    params = step(params)
  assert loss(params) < 0.9 * before


@pytest.mark.parametrize("pattern", LAYOUTS.values(), ids=LAYOUTS)
def test_images_of_a_batch_do_not_see_each_other(pattern):
  """They are rows of one frame, and never lie on the frame axis: what leaks is exactly nothing."""
  network = config(pattern=pattern).build(1, SIZE, {})
  params, (x, t, cond) = noised(jax.random.key(1), jax.jit(network.init)(jax.random.key(0))), inputs(frames=1)
  apply, other = jax.jit(network.apply), x.at[1].add(1.0)
  before = apply(params, x, t, cond)
  after = apply(
    params, other, t.at[1].set(0.3), {**cond, "label": jnp.array([0, 1]), "given": cond["given"].at[1].set(1)}
  )
  assert (after[0] == before[0]).all() and (after[1] != before[1]).any()


def test_patchify_then_unpatchify_is_the_identity():
  """With an embedding that copies and no blocks that act, the output is the input's own patch order."""
  network = config(width=24, patch=(2, 2, 2), positions="rope", qk_norm=False, classes=0).build(FRAMES, SIZE, {})
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(network.init, jax.random.key(0)))
  x, t, cond = inputs()
  cell, channels = 8, 3
  pixels = [i * (channels + 1) + c for i in range(cell) for c in range(channels)]  # the mask's channel is left out
  params["embed"]["kernel"] = jnp.zeros((cell * (channels + 1), 24)).at[jnp.array(pixels), jnp.arange(24)].set(1.0)
  params["out"]["kernel"] = jnp.eye(24)
  y = jax.jit(network.apply)(params, x, t, cond)
  cells = x.reshape(2, 2, 2, 3, 2, 3, 2, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7)
  mean, std = cells.mean((4, 5, 6, 7), keepdims=True), cells.std((4, 5, 6, 7), keepdims=True)
  normed = ((cells - mean) / jnp.sqrt(std**2 + 1e-6)).transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)
  np.testing.assert_allclose(y, normed, atol=1e-5)


MIXES = {  # pattern: does output (frame 2, patch 4) depend on: itself, another patch, a past frame, a future one, both
  (("space",),): (True, True, False, False, False),
  (("time",),): (True, False, True, True, False),
  (("causal",),): (True, False, True, False, False),
  (("joint",),): (True, True, True, True, True),
  (("space",), ("time",)): (True, True, True, True, True),
  (("time", "space"),): (True, True, True, True, True),
  (("space",), ("causal",)): (True, True, True, False, True),
}


@pytest.mark.parametrize("pattern", MIXES, ids=str)
def test_gradients_show_which_frames_and_patches_mix(pattern):
  network, params = made(pattern=pattern, depth=len(pattern), classes=0)
  x, t, cond = inputs()
  value = lambda x: network.apply(params, x, t, cond)[0, 2, 2:4, 2:4].sum()  # frame 2, patch (1, 1)
  seen = np.abs(jax.jit(jax.grad(value))(x)[0]).reshape(FRAMES, 3, 2, 3, 2, 3).sum((2, 4, 5)) > 0
  other_patch = np.delete(seen.reshape(FRAMES, 9), 4, axis=1)
  found = (seen[2, 1, 1], other_patch[2].any(), seen[:2, 1, 1].any(), seen[3, 1, 1], other_patch[:2].any())
  assert tuple(map(bool, found)) == MIXES[pattern]
  reached = {2: seen[2, 1, 1], 1: other_patch[2].all()}
  assert reached[1] == MIXES[pattern][1], "space attention reaches every patch, or none"


def test_scan_is_a_loop_over_slices_and_remat_changes_memory_not_values():
  x, t, cond = inputs()
  network, params = made(depth=6)
  scanned = network.apply(params, x, t, cond)
  one = config(depth=2).build(FRAMES, SIZE, {})
  # A loop: the ends of the network once, the pattern's slices one by one, through networks of a single repeat.
  from flax import nnx

  from vdt.models.layers import REMAT
  from vdt.models.transformer import VideoDiT

  class Loop(VideoDiT):
    def repeat(self, tokens, around, scan):
      graphdef, stacked = nnx.split(self.pattern)
      for i in range(3):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        tokens = nnx.merge(graphdef, layer)(tokens, around, i)
      return tokens

  graphdef = nnx.graphdef(nnx.eval_shape(lambda: Loop(config(depth=6), nnx.Rngs(0))))
  np.testing.assert_allclose(scanned, nnx.merge(graphdef, params)(x, t, cond, kernels=True), atol=2e-6)
  first = {**params, "pattern": jax.tree.map(lambda leaf: leaf[:1], params["pattern"])}
  assert not np.allclose(scanned, one.apply(first, x, t, cond), atol=1e-3), "all repeats count"
  written_out = config(depth=6, scan=False).build(FRAMES, SIZE, {})
  compiled = [jax.jit(each.learn).lower(params, x, t, cond).compile() for each in (network, written_out)]
  np.testing.assert_allclose(scanned, compiled[1](params, x, t, cond), atol=2e-6)
  assert [" while(" in each.as_text() for each in compiled] == [True, False]

  grads, programs = {}, {}
  for remat in REMAT:
    remade = config(depth=6, remat=remat).build(FRAMES, SIZE, {})
    gradient = jax.grad(lambda params, remade=remade: jnp.square(remade.learn(params, x, t, cond)).sum())
    grads[remat] = jax.jit(gradient)(params)
    programs[remat] = str(jax.make_jaxpr(gradient)(params))
  del programs["dots+params"]  # on one device there is nothing to gather, and it is "dots"
  assert len({len(program) for program in programs.values()}) == len(programs), "the switches do switch"
  for remat in REMAT:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), grads["none"], grads[remat])


def test_one_time_a_frame_labels_and_what_was_given_all_reach_the_output():
  network, params = made(pattern=(("space",),), depth=1)
  x, t, cond = inputs()
  y = network.apply(params, x, t, cond)
  moved = np.abs(network.apply(params, x, t.at[0, 1].add(0.3), cond) - y).max(axis=(2, 3, 4)) > 1e-4
  assert moved.tolist() == [[False, True, False, False], [False] * 4], "a frame's time is its own"
  other = {**cond, "label": jnp.array([1, 1])}
  changed = np.abs(network.apply(params, x, t, other) - y).max(axis=(1, 2, 3, 4)) > 1e-4
  assert changed.tolist() == [True, False], "a dropped label does not matter"
  given = {**cond, "given": cond["given"].at[1, 2].set(1.0)}
  changed = np.abs(network.apply(params, x, t, given) - y).max(axis=(2, 3, 4)) > 1e-4
  assert changed.tolist() == [[False] * 4, [False, False, True, False]]


def test_an_image_is_a_video_of_one_frame():
  """Without time to mix, one network on one frame equals itself on each frame of a video."""
  network, params = made(pattern=(("space",),), depth=1)
  x, t, cond = inputs()
  images = {"given": cond["given"][:, :1], "label": cond["label"], "null": cond["null"]}
  np.testing.assert_allclose(
    network.apply(params, x, t, cond)[:, :1], network.apply(params, x[:, :1], t[:, :1], images), atol=1e-6
  )


def test_rotary_logits_depend_on_the_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 12))
  for coordinates, shift in ((grid(5), [2.0]), (grid(3, 4), [1.0, 2.0]), (grid(2, 3, 4), [1.0, 1.0, 2.0])):
    turn = lambda x, c: rotate(jnp.repeat(x, len(c), axis=2), rope_angles(c, 12))[0, 0]
    logits = turn(q, coordinates) @ turn(k, coordinates).T
    moved = turn(q, coordinates + np.float32(shift)) @ turn(k, coordinates + np.float32(shift)).T
    np.testing.assert_allclose(logits, moved, atol=1e-5)
    assert np.ptp(logits) > 1e-3


@pytest.mark.parametrize("name, millions", [("S", 32.48), ("B", 129.55), ("L", 456.82), ("XL", 673.68)])
def test_named_sizes_are_the_published_ones(name, millions):
  """Latte's (arXiv:2401.03048) have 8 output channels and no channel for what is given; ours 4 and one."""
  cfg = TransformerConfig.sized(name, channels=4, qk_norm=False)
  shapes = jax.eval_shape(cfg.build(16, (32, 32), {}).init, jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  ours = 4 * cfg.width - (16 * cfg.width + 16)  # the mask's channel more, the variance's output less
  assert (count - ours) / 1e6 == pytest.approx(millions, abs=0.006)
  assert {"XL-9x128", "XL-10x128"} <= set(SIZES)


def test_flops_agree_with_the_published_figure_and_the_compiler():
  cfg = TransformerConfig.sized("S", channels=4)
  assert cfg.flops(16, (32, 32)) / 1e12 == pytest.approx(0.18, abs=0.006)  # Latte-S, one 16 x 256 x 256 clip
  small = config(depth=2, width=64, heads=2, classes=0)
  network = small.build(8, (16, 16), {})
  x, t, cond = inputs(8, (16, 16))
  counted = jax.jit(network.apply).lower(network.init(jax.random.key(0)), x, t, cond).compile().cost_analysis()["flops"]
  assert 2 * small.flops(8, (16, 16)) == pytest.approx(counted, rel=0.15)  # it also counts what is no product


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(pattern=("space",)), "not a tuple of attentions"),
    (dict(pattern=(("spice",),)), "'spice'.*one of space, time, causal, joint"),
    (dict(pattern=((("time", "half"),),)), "zero, single, none"),
    (dict(depth=3), "depth 3 is not a multiple of the pattern's 2 blocks"),
    (dict(heads=3), "width 16 is not a multiple of model.heads 3"),
    (dict(patch=(1, 4, 4)), "does not divide into patches"),
    (dict(dtype="float16"), "neither bfloat16 nor float32"),
    (dict(positions="late sincos", pattern=(("space", "time"),)), "late sincos.*patterns of two blocks"),
    (dict(remat="some"), r"none of none, dots, dots\+params, full, offload"),
  ],
)
def test_a_bad_model_is_named(fields, message):
  with pytest.raises(ValueError, match=message):
    config(**fields).build(FRAMES, SIZE, {})


def test_a_mesh_that_does_not_divide_the_model_is_named():
  with pytest.raises(ValueError, match=r"heads 2 is not a multiple of mesh.tensor 4; 9 patches .* mesh.sequence 2"):
    config().build(FRAMES, SIZE, {"tensor": 4, "sequence": 2})
