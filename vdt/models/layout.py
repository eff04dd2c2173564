"""How parameters lie on a mesh, by one table from their path; and how tokens (b f n d) do: frames or patches over
`sequence`, heads over `tensor`, and the switches between.

Space attention needs all patches of a frame and time attention all frames of a patch. A sharding constraint alone
makes the compiler gather whole activations between the two; one all-to-all moves each token once. Each layer's tokens
are held to the batch's axes as well: left alone, the compiler hands the parameters' split of the width on to the
tokens, and spends the step on reducing them. Without a mesh nothing here moves anything.
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

BATCH = ("data", "fsdp")
FRAMES, PATCHES = 1, 2  # the axis of the tokens that lies over `sequence`
SPLIT = {"space": FRAMES, "time": PATCHES, "causal": PATCHES}  # joint attention takes either
GATHERED = "gathered"  # the name of parameters that were, for a remat that keeps them
HEADS = P(BATCH, None, None, ("tensor", "sequence"))  # joint attention's: all tokens of some heads
PARAMS = (  # specs name trailing dimensions, so stacked layers, averages and moments match the same rows
  (r"(query|key|value|up|projection)/kernel$", P("fsdp", "tensor")),
  (r"modulation/kernel$", P("fsdp", "tensor")),
  (r"(spatial|temporal/dense|(up|down)/\d+)/kernel$", P("fsdp", "tensor")),
  (r"(out|down)/kernel$", P("tensor", "fsdp")),
  (r"", P()),
)


def devices(axis: str) -> int:
  """Devices along a mesh axis; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape.get(axis, 1)


def meshed() -> bool:
  """Whether there is a mesh of more than one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def constrain(x: Array, spec: P) -> Array:
  """`x`, to lie as `spec` says."""
  return jax.lax.with_sharding_constraint(x, spec) if meshed() else x


def path_name(path: tuple) -> str:
  """A tree path as "a/b/c"."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def parameter_spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
  """The table's row for a path, on a mesh of these sizes; an axis that does not divide its dimension is left out."""
  row = next(row for pattern, row in PARAMS if re.search(pattern, path))
  lead = len(shape) - len(row)
  if lead < 0:
    return P()
  axes = [axis if shape[lead + i] % sizes[axis] == 0 else None for i, axis in enumerate(row)]
  return P(*[None] * lead, *axes)


def gathered(params: dict, dtype: jnp.dtype) -> dict:
  """Plain nested parameters, of which those that lie over `fsdp` are, in `dtype`, on each of its devices."""
  if not meshed():
    return params
  sizes = jax.sharding.get_abstract_mesh().shape

  def leaf(path: tuple, x: Array) -> Array:
    where = parameter_spec(path_name(path), x.shape, sizes)
    if "fsdp" not in where or sizes["fsdp"] == 1:
      return x
    together = P(*(None if axis == "fsdp" else axis for axis in where))
    return checkpoint_name(constrain(x.astype(dtype), together), GATHERED)

  return jax.tree_util.tree_map_with_path(leaf, params)


def _spec(split: int, *rest: str | tuple[str, ...] | None) -> P:
  return P(BATCH, *("sequence" if axis == split else None for axis in (FRAMES, PATCHES)), *rest)


def tokens(x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
  """Tokens with `split` laid over `sequence`."""
  return constrain(x, _spec(split, None))


def hidden(x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
  """What is inside an MLP or an attention, its width, or heads, over `tensor`."""
  return constrain(x, _spec(split, "tensor"))


def whole(x: Float[Array, "b f d"]) -> Float[Array, "b f d"]:
  """What each frame is modulated by, on every device of `sequence`: it is small, and both layouts need it."""
  return constrain(x, P(BATCH, None, None))


def _exchange(x: Array, split: int, join: int, before: P, after: P) -> Array:
  """One all-to-all over `sequence`: axis `split` is cut, axis `join` put together."""
  move = partial(jax.lax.all_to_all, axis_name="sequence", split_axis=split, concat_axis=join, tiled=True)
  return jax.shard_map(move, mesh=jax.sharding.get_abstract_mesh(), in_specs=before, out_specs=after)(x)


def switch(x: Float[Array, "b f n d"], split: int, wanted: int) -> Float[Array, "b f n d"]:
  """Tokens that lie over `sequence` along `split` come to lie along `wanted`."""
  if split == wanted or devices("sequence") == 1:
    return x
  return _exchange(x, wanted, split, _spec(split, None), _spec(wanted, None))


def by_heads(x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
  """All tokens of fewer heads, for attention over all of them (DeepSpeed-Ulysses, arXiv:2309.14509)."""
  return x if devices("sequence") == 1 else _exchange(x, 3, split, _spec(split, "tensor"), HEADS)


def by_tokens(x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
  """The way back from `by_heads`."""
  return x if devices("sequence") == 1 else _exchange(x, split, 3, HEADS, _spec(split, "tensor"))


def inside(split: int, joint: bool) -> tuple[P | None, tuple[int, int, int]]:
  """How queries, keys and values (b f n d) of an attention lie, and over how many devices frames, patches and heads.

  None and ones where no mesh splits them.
  """
  if not meshed():
    return None, (1, 1, 1)
  spec = HEADS if joint else _spec(split, "tensor")
  count = lambda part: math.prod(map(devices, part if isinstance(part, tuple) else (part,))) if part else 1
  return spec, tuple(count(part) for part in spec[1:])


def on_tpu() -> bool:
  """Whether what is traced is for a TPU: of the mesh, which may be described only, or of this machine."""
  mesh = jax.sharding.get_abstract_mesh()
  return (jax.default_backend() if mesh.empty else mesh.abstract_device.platform) == "tpu"
