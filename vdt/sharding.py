"""Where every array lives: parameters by the models' table of paths, and the batch over data x fsdp."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vdt.models import parameter_spec, path_name

BATCH = P(("data", "fsdp"))


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """A tree of shapes with the table's sharding on every leaf."""

  def leaf(path: tuple, x: Any) -> jax.ShapeDtypeStruct:
    where = parameter_spec(path_name(path), x.shape, mesh.shape)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where))

  return jax.tree_util.tree_map_with_path(leaf, tree)


def blocks(mesh: jax.sharding.Mesh) -> tuple[list[int], int]:
  """Which of the equal blocks that data x fsdp cuts a batch's rows into lie on this host's devices, in order, and how
  many there are. Hosts may have some in common, where another axis of the mesh goes from one to the other."""
  count = mesh.shape["data"] * mesh.shape["fsdp"]
  found = NamedSharding(mesh, BATCH).addressable_devices_indices_map((count,)).values()
  return sorted({begin for (rows,) in found for begin in [rows.indices(count)[0]]}), count


def put(batch: dict, mesh: jax.sharding.Mesh) -> dict:
  """The rows of a batch in this host's `blocks` to arrays of all its rows, split over data x fsdp."""
  (own, count), sharding = blocks(mesh), NamedSharding(mesh, BATCH)

  def whole(value: Any) -> jax.Array:
    size = len(value) // len(own)

    def shard(index: tuple[slice, ...]) -> Any:
      begin = own.index(index[0].indices(size * count)[0] // size) * size
      return value[begin : begin + size]

    return jax.make_array_from_callback((size * count, *value.shape[1:]), sharding, shard)

  return jax.tree.map(whole, batch)


def flags(value: int, mesh: jax.sharding.Mesh) -> jax.Array:
  """A number of each host's own, on each of its devices: int32 (devices of the mesh,)."""
  sharding = NamedSharding(mesh, P(mesh.axis_names))
  return jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.full(1, value, np.int32))


def without(updates: Any, freeze: str) -> Any:
  """Updates of parameters, zero where a parameter's path matches."""
  stays = lambda path: re.search(freeze, path_name(path))
  return jax.tree_util.tree_map_with_path(lambda path, x: jax.numpy.zeros_like(x) if stays(path) else x, updates)


def check_frozen(params: Any, freeze: str) -> None:
  """ValueError where all parameters match, or none."""
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  if freeze and len(matched := [name for name in names if re.search(freeze, name)]) in (0, len(names)):
    few = ", ".join(names[:8])
    raise ValueError(f"config.freeze {freeze!r} matches {'all' if matched else 'none'} of the parameters: {few}, ...")
