"""Is what is held out in the training set too? Nearest training clips, by what survives a re-encoding."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, first, pixels
from vdt.evals.prediction import sources

SIDE = 16
"""Height and width that frames are shrunk to."""
FLAT = 0.01
"""Standard deviation of a frame, in units of [-1, 1], below which it is of one colour."""
DOUBT = 0.05
"""Share of accused training clips from which on no accusation is believed."""
SHOWN = 10
"""Pairs that are printed."""


def signature(videos: Float[np.ndarray, "b f h w c"]) -> Float[np.ndarray, "b f d"]:
  """Each frame shrunk, without its mean, of length 1: what resizing, compression and a change of contrast leave.

  A frame of one colour has none: its signature is NaN.
  """
  frames = videos.reshape(-1, *videos.shape[2:])
  small = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])
  small = small.reshape(*videos.shape[:2], -1)
  small = small - small.mean(-1, keepdims=True)
  length = np.linalg.norm(small, axis=-1, keepdims=True)
  return np.where(length > FLAT * small.shape[-1] ** 0.5, small / np.maximum(length, 1e-6), np.nan)


def apart(one: Float[np.ndarray, "a f d"], other: Float[np.ndarray, "b g d"]) -> Float[np.ndarray, "a b"]:
  """Root mean square distance of the frames of two clips, at the shift in time at which it is least.

  At least half of the shorter one must overlap, and have signatures; else it is infinite.
  """
  f, g = one.shape[1], other.shape[1]
  product = np.einsum("afd,bgd->abfg", one, other, optimize=True)
  square = 2 - 2 * product  # of vectors of length 1
  least = np.full(square.shape[:2], np.inf)
  for shift in range(-(f // 2), g - (f + 1) // 2 + 1):
    diagonal = np.diagonal(square, shift, 2, 3)
    seen = ~np.isnan(diagonal)
    mean = np.where(seen, diagonal, 0).sum(-1) / np.maximum(seen.sum(-1), 1)
    least = np.minimum(least, np.where(seen.sum(-1) * 2 >= min(f, g), mean, np.inf))
  return np.sqrt(np.maximum(least, 0))


def reencoded(videos: Float[np.ndarray, "b f h w c"], quality: int = 60) -> Float[np.ndarray, "b f h w c"]:
  """Each frame at two thirds of its size, as a JPEG, and back: a copy as it lies about in collections."""
  height, width = videos.shape[2:4]
  made = np.empty_like(videos)
  for index in np.ndindex(videos.shape[:2]):
    image = np.clip(np.rint((videos[index] + 1) * 127.5), 0, 255).astype(np.uint8)
    small = cv2.resize(image, (max(width * 2 // 3, 1), max(height * 2 // 3, 1)), interpolation=cv2.INTER_AREA)
    stored = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_UNCHANGED)
    made[index] = pixels(cv2.resize(stored, (width, height)).reshape(videos[index].shape))
  return made


class Nearest(NamedTuple):
  """For each of some clips, the nearest training clip that is of another source: distance (b,), and its id."""

  distance: np.ndarray
  id: np.ndarray


@dataclasses.dataclass
class Stored:
  """A data set's records as they are stored, but for what is cut off around their middle."""

  data: Any

  @property
  def batch_size(self) -> int:
    return self.data.batch_size

  def __len__(self) -> int:
    return len(self.data)

  def batch(self, step: int) -> dict[str, np.ndarray]:
    return self.data.records((step * self.batch_size + np.arange(self.batch_size)) % len(self))


def whole(data: Any) -> Any:
  """The training clips as they are stored: not cut at random, mirrored or turned."""
  if hasattr(data, "records"):
    return Stored(data)
  if not dataclasses.is_dataclass(data):
    return data
  changes = {name: False for name in ("flip", "turn") if hasattr(data, name)}
  if hasattr(data, "rule") and "frames" in (stored := data.rule().get("stored", {})):
    changes["frames"] = int(stored["frames"])
  return dataclasses.replace(data, **changes)


def nearest(ours: Float[np.ndarray, "b f d"], own: list[str], sets: Sequence[Any]) -> Nearest:
  """Of clips by their signatures, and by their sources, which are left out; brute force over all clips of `sets`."""
  distance, found = np.full(len(ours), np.inf), np.full(len(ours), "", object)
  for data, step in ((each, step) for each in sets for step in range(-(-len(each) // each.batch_size))):
    size = min(data.batch_size, len(data) - step * data.batch_size)
    batch = data.batch(step)
    ids = batch["id"][:size].astype(str)
    between = apart(ours, signature(pixels(batch["video"][:size])))
    between[np.array(own)[:, None] == np.array(sources(ids.tolist()))[None]] = np.inf
    winner = between.argmin(1)
    closest = between[np.arange(len(ours)), winner]
    better = closest < distance
    distance[better], found[better] = closest[better], ids[winner[better]]
  return Nearest(distance, found)


@dataclasses.dataclass
class Leakage:
  """Columns: held-out, the clips of `split`; copies, the same re-encoded; training, as many training clips.

  nearest distance, nearest distance 1%: median and 1st percentile of the distance to the nearest training clip; of
    copies, to what they are copies of; of training clips, to the nearest one of another source. The distance is that of
    frames, shrunk and normalised, at the best shift in time; all training clips are looked at, as they are stored.
  leaked: the share that is nearer than 99 of 100 copies are to theirs. Of training clips it is the share that is
    accused though it is of another source: wrongly, or because it is in the training set twice.
  told apart: 1 where less than `DOUBT` of the training clips are accused. Else, as in a world of few, alike things,
    nothing can be said of single clips, and nothing is; where it is 1 the pairs are printed.
  The training column is left out where all training clips are of one source.
  """

  count: int = 256
  split: str = "test"
  every: int = 0
  sampled: ClassVar[bool] = False

  def __post_init__(self):
    if self.split == "train":
      raise ValueError("leakage of the training split into itself: name the split that is held out")
    if not isinstance(self.count, int) or self.count < 1:
      raise ValueError(f"leakage of {self.count} clips: take a whole number, at least 1")

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    held_out, train = first(run.data(self.split), self.count), run.data("train")
    sets = [whole(part) for part in getattr(train, "members", [train])]
    videos = pixels(held_out["video"])
    ours = signature(videos)
    pairs = zip(ours, signature(reencoded(videos)))
    distances = {"copies": np.array([apart(one[None], other[None])[0, 0] for one, other in pairs])}
    known = np.isfinite(distances["copies"])  # of others nothing is left but one colour
    limit = np.quantile(distances["copies"][known], 0.99) if known.any() else -np.inf
    found = nearest(ours, [""] * self.count, sets)
    distances["held-out"] = found.distance
    clean = first(sets[0], min(self.count, len(sets[0])))
    clips = signature(pixels(clean["video"][:, : videos.shape[1]]))
    others = nearest(clips, sources(clean["id"].astype(str).tolist()), sets).distance
    if np.isfinite(others).any():
      distances["training"] = others
    table: Table = {}
    for column, distance in distances.items():
      known = distance[np.isfinite(distance)]
      if len(known):
        rows = {"nearest distance": np.median(known), "nearest distance 1%": np.quantile(known, 0.01)}
        for row, value in (*rows.items(), ("leaked", np.mean(distance <= limit))):
          table.setdefault(row, {})[column] = float(value)
    told = np.isfinite(limit) and np.mean(others <= limit) < DOUBT
    table["told apart"] = {"held-out": float(told)}
    if told and jax.process_index() == 0:
      leaked = [number for number in np.argsort(found.distance, kind="stable") if found.distance[number] <= limit]
      for number in leaked[:SHOWN]:
        pair = f"{held_out['id'][number]} of {self.split} is as near as a copy to {found.id[number]} of train"
        print(f"leakage: {pair}, {found.distance[number]:.3g} (limit {limit:.3g})", file=sys.stderr)
      if len(leaked) > SHOWN:
        print(f"leakage: and {len(leaked) - SHOWN} more", file=sys.stderr)
    return table
