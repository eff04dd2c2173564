"""How tokens (b f n d) lie on a mesh: frames or patches over `sequence`, heads over `tensor`, and the switches between.

Space attention needs all patches of a frame and time attention all frames of a patch. A sharding constraint alone
makes the compiler gather whole activations between the two; one all-to-all moves each token once. Each layer's tokens
are held to the batch's axes as well: left alone, the compiler hands the parameters' split of the width on to the
tokens, and spends the step on reducing them. Without a mesh nothing here does anything.
"""

from functools import partial

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

BATCH = ("data", "fsdp")
FRAMES, PATCHES = 1, 2  # the axis of the tokens that lies over `sequence`
SPLIT = {"space": FRAMES, "time": PATCHES, "causal": PATCHES}  # joint attention takes either


def devices(axis: str) -> int:
  """Devices along a mesh axis; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape.get(axis, 1)


def constrain(x: Array, spec: P) -> Array:
  """`x`, to lie as `spec` says."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty or mesh.size == 1 else jax.lax.with_sharding_constraint(x, spec)


def _spec(split: int, *rest: str | tuple[str, ...] | None) -> P:
  return P(BATCH, *("sequence" if axis == split else None for axis in (FRAMES, PATCHES)), *rest)


def tokens(x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
  """Tokens with `split` laid over `sequence`."""
  return constrain(x, _spec(split, None))


def hidden(x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
  """What is inside an MLP, its width over `tensor`."""
  return constrain(x, _spec(split, "tensor"))


def whole(x: Float[Array, "b f d"]) -> Float[Array, "b f d"]:
  """What each frame is modulated by, on every device of `sequence`: it is small, and both layouts need it."""
  return constrain(x, P(BATCH, None, None))


def heads(x: Float[Array, "b f n k e"], split: int) -> Float[Array, "b f n k e"]:
  """Queries, keys, values or outputs with `split` laid over `sequence` and heads over `tensor`."""
  return constrain(x, _spec(split, "tensor", None))


def _exchange(x: Array, split: int, join: int, before: P, after: P) -> Array:
  """One all-to-all over `sequence`: axis `split` is cut, axis `join` put together."""
  move = partial(jax.lax.all_to_all, axis_name="sequence", split_axis=split, concat_axis=join, tiled=True)
  return jax.shard_map(move, mesh=jax.sharding.get_abstract_mesh(), in_specs=before, out_specs=after)(x)


def switch(x: Float[Array, "b f n d"], split: int, wanted: int) -> Float[Array, "b f n d"]:
  """Tokens that lie over `sequence` along `split` come to lie along `wanted`."""
  if split == wanted or devices("sequence") == 1:
    return x
  return _exchange(x, wanted, split, _spec(split, None), _spec(wanted, None))


def by_heads(x: Float[Array, "b f n k e"], split: int) -> Float[Array, "b f n k e"]:
  """All tokens of fewer heads, for attention over all of them (DeepSpeed-Ulysses, arXiv:2309.14509)."""
  if devices("sequence") == 1:
    return x
  return _exchange(x, 3, split, _spec(split, "tensor", None), P(BATCH, None, None, ("tensor", "sequence"), None))


def by_tokens(x: Float[Array, "b f n k e"], split: int) -> Float[Array, "b f n k e"]:
  """The way back from `by_heads`."""
  if devices("sequence") == 1:
    return x
  return _exchange(x, split, 3, P(BATCH, None, None, ("tensor", "sequence"), None), _spec(split, "tensor", None))
