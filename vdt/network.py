"""What a collective needs of the networks between chips: the links inside a slice, or what joins slices."""

import collections
import math
from typing import Any

import numpy as np

from vdt.topology import Chip, Slice


def taken(each: Any, kind: str, moved: float, where: Slice) -> tuple[str, float, frozenset[str]]:
  """The network that a collective of `moved` bytes a chip uses, for how many seconds, and what of it: lanes, of which
  each carries one transfer at a time. Links inside a slice are two lanes along each axis, one each way."""
  if not each.source_target_pairs:
    devices = [where.devices[number] for number in group(each, len(where.devices))]
    name, needed = seconds(kind, moved, devices, where)
    spanned = [axis for axis, column in enumerate(zip(*(device.coords for device in devices))) if len({*column}) > 1]
    inside = frozenset(f"ici {axis}{way}" for axis in spanned for way in "+-")
    return name, needed, inside if name == "ici" else frozenset(["send"])
  pairs = [(where.devices[pair.source], where.devices[pair.target]) for pair in each.source_target_pairs]
  if any(getattr(a, "slice_index", 0) != getattr(b, "slice_index", 0) for a, b in pairs):
    return "dcn", moved / where.chip.dcn, frozenset(["send"])
  by_slice = collections.defaultdict(list)
  for a, b in pairs:
    by_slice[getattr(a, "slice_index", 0)].append((a.coords, b.coords))
  loads = [load(each, where.shape, where.chip.ring) for each in by_slice.values()]
  most = max(max(each.values(), default=0) for each in loads)
  lanes = frozenset(f"ici {axis}{way}" for each in loads for *_, axis, way in each)
  return "ici", moved * most / where.chip.link, lanes


def load(pairs: list[tuple[Any, Any]], shape: tuple[int, ...], ring: int) -> collections.Counter:
  """How many of the pairs' messages each link (where it begins, its axis and way) carries, each sent axis by axis and
  the shorter way round."""
  carried = collections.Counter()
  for start, end in pairs:
    at = [*start]
    for axis, (length, target) in enumerate(zip(shape, end)):
      there = (target - at[axis]) % length if length % ring == 0 else target - at[axis]
      way = there - length if length % ring == 0 and 2 * there > length else there
      for _ in range(abs(way)):
        carried[(*at, axis, "+" if way > 0 else "-")] += 1
        at[axis] = (at[axis] + (1 if way > 0 else -1)) % length
  return carried


def group(each: Any, count: int) -> list[int]:
  """The first group of a collective, as its devices' places among the `count` of the program."""
  if each.HasField("mesh_axes_replica_group_list"):
    named = each.mesh_axes_replica_group_list
    shape = [axis.size for axis in named.mesh.axes]
    grid = np.arange(math.prod(shape)).reshape(shape)
    if named.mesh.device_ids:
      grid = np.asarray(named.mesh.device_ids).reshape(shape)
    axes = [axis.mesh_axis_index for axis in named.axes]
    whole = all(not axis.HasField("sub_axis_info") for axis in named.axes)
    order = [axis for axis in range(len(shape)) if axis not in axes] + axes
    size = math.prod(shape[axis] for axis in axes)
    return grid.transpose(order).reshape(-1, size)[0].tolist() if whole else list(range(count))
  listed = each.collective_device_list
  if listed.HasField("iota_replica_group_list"):
    iota = listed.iota_replica_group_list
    ids = np.arange(math.prod(iota.iota_reshape_dims)).reshape(list(iota.iota_reshape_dims))
    return ids.transpose(list(iota.iota_transpose_perm)).reshape(-1, iota.num_devices_per_group)[0].tolist()
  groups = list(listed.replica_groups) or list(each.replica_groups)
  return list(groups[0].replica_ids) if groups and groups[0].replica_ids else list(range(count))


def seconds(kind: str, moved: float, devices: list[Any], where: Slice) -> tuple[str, float]:
  """The network that a collective of a group of devices uses, and for how long; see the equations in `links`."""
  if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
    slices = len({device.slice_index for device in devices})
    factor = {"all-reduce": 2.0}.get(kind, 1.0)
    return "dcn", factor * moved * (slices - 1) / slices / where.chip.dcn
  return "ici", links(kind, moved, [tuple(device.coords) for device in devices], where.shape, where.chip)


def links(kind: str, moved: float, coords: list[tuple[int, ...]], shape: tuple[int, ...], chip: Chip) -> float:
  """Seconds that a collective of `moved` bytes a chip keeps the links busy between chips at `coords`.

  On a ring of n chips whose links carry w bytes a second each way, gathering V bytes takes V (n - 1) / n / 2w, as
  does leaving each with its part of a sum, reducing to all of them twice that, and exchanging V bytes V n / 8w; on a
  line, with no link back, each takes twice as long. Several axes gather side by side; an exchange is bound by the
  longest one (jax-ml.github.io/scaling-book, "Sharded matrices"). Groups that lie between each other share links, so
  theirs are that much slower.
  """
  columns = [sorted(set(column)) for column in zip(*coords)]
  spans = [(column, shape[axis]) for axis, column in enumerate(columns) if len(column) > 1]
  if not spans:
    return 0.0
  rate, slowest = 0.0, 0.0
  for column, length in spans:
    gaps = (column[-1] - column[0]) // (len(column) - 1)
    ring = len(column) == length and length % chip.ring == 0
    each = chip.link * (2 if ring else 1) / gaps
    rate += each
    slowest = max(slowest, len(column) / 4 / each)
  count = len(coords)
  match kind:
    case "all-to-all":
      return moved * slowest
    case "all-reduce":
      return 2 * moved * (count - 1) / count / rate
  return moved * (count - 1) / count / rate
