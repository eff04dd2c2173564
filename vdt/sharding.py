"""Where every array lives: one table from parameter path to PartitionSpec, and the batch over data x fsdp."""

import re
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = P(("data", "fsdp"))
PARAMS = (  # specs name trailing dimensions, so stacked layers, averages and moments match the same rows
  (r"(query|key|value|up|projection)/kernel$", P("fsdp", "tensor")),
  (r"modulation/kernel$", P("fsdp", "tensor")),
  (r"(spatial|temporal/dense|(up|down)/\d+)/kernel$", P("fsdp", "tensor")),
  (r"(out|down)/kernel$", P("tensor", "fsdp")),
  (r"", P()),
)


def _name(key: Any) -> str:
  return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def path_name(path: tuple) -> str:
  """A tree path as "a/b/c"."""
  return "/".join(map(_name, path))


def spec(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> P:
  """The table's row for a path; an axis that does not divide its dimension is left out."""
  row = next(row for pattern, row in PARAMS if re.search(pattern, path))
  lead = len(shape) - len(row)
  if lead < 0:
    return P()
  axes = [axis if shape[lead + i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(row)]
  return P(*[None] * lead, *axes)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """A tree of shapes with the table's sharding on every leaf."""

  def leaf(path: tuple, x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(path_name(path), x.shape, mesh)))

  return jax.tree_util.tree_map_with_path(leaf, tree)


def put(batch: dict, mesh: jax.sharding.Mesh) -> dict:
  """This host's part of a batch to device arrays, split over data x fsdp."""
  sharding = NamedSharding(mesh, BATCH)
  return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), batch)


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
