"""Is what is held out in the training set too? Nearest training clips, by what survives a re-encoding."""

import dataclasses
import sys
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, first, pixels
from vdt.evals.prediction import sources

SIDE = 16
"""Height and width that frames are shrunk to."""
SHOWN = 10
"""Pairs that are printed."""


def signature(videos: Float[np.ndarray, "b f h w c"]) -> Float[np.ndarray, "b f d"]:
  """Each frame shrunk, without its mean, of length 1: what resizing, compression and a change of contrast leave."""
  frames = videos.reshape(-1, *videos.shape[2:])
  small = np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames])
  small = small.reshape(*videos.shape[:2], -1)
  small = small - small.mean(-1, keepdims=True)
  return small / (np.linalg.norm(small, axis=-1, keepdims=True) + 1e-3)  # a frame of one colour has none


def apart(one: Float[np.ndarray, "a f d"], other: Float[np.ndarray, "b g d"]) -> Float[np.ndarray, "a b"]:
  """Root mean square distance of two clips' frames, at the shift in time at which it is least; half must overlap."""
  f, g = one.shape[1], other.shape[1]
  product = one.reshape(-1, one.shape[-1]) @ other.reshape(-1, other.shape[-1]).T
  square = np.square(one).sum(-1)[:, :, None, None] + np.square(other).sum(-1)[None, None]
  square = square - 2 * product.reshape(len(one), f, *other.shape[:2])
  square = square.transpose(0, 2, 1, 3)  # a b f g
  least = np.full(square.shape[:2], np.inf)
  for shift in range(-(f // 2), f // 2 + 1):
    diagonal = np.diagonal(square, shift, 2, 3)
    if diagonal.shape[-1] * 2 >= min(f, g):
      least = np.minimum(least, diagonal.mean(-1))
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


def nearest(clips: dict[str, np.ndarray], data: Any, but_own: bool = False) -> Nearest:
  """Brute force over all clips of `data`, once, not mirrored or turned; but_own: leave out those of a clip's source."""
  if dataclasses.is_dataclass(data):
    data = dataclasses.replace(data, **{name: False for name in ("flip", "turn") if hasattr(data, name)})
  ours = signature(pixels(clips["video"]))
  own = np.array(sources(clips["id"].astype(str).tolist()))
  distance, found = np.full(len(ours), np.inf), np.full(len(ours), "", object)
  for step in range(-(-len(data) // data.batch_size)):
    size = min(data.batch_size, len(data) - step * data.batch_size)
    batch = data.batch(step)
    ids = batch["id"][:size].astype(str)
    between = apart(ours, signature(pixels(batch["video"][:size])))
    if but_own:
      between[own[:, None] == np.array(sources(ids.tolist()))[None]] = np.inf
    winner = between.argmin(1)
    better = between[np.arange(len(ours)), winner] < distance
    distance[better], found[better] = between[np.arange(len(ours)), winner][better], ids[winner[better]]
  return Nearest(distance, found)


@dataclasses.dataclass
class Leakage:
  """Columns: held-out, the clips of `split`; copies, the same re-encoded; training, as many training clips.

  nearest distance, nearest distance 1%: median and 1st percentile of the distance to the nearest training clip: of
    copies, to what they are copies of; of training clips, to the nearest one of another source, which is what a clip
    that is in the set only once has. The distance is that of frames, shrunk and normalised, at the best shift in time.
  leaked: the share of clips that are as near as a copy, or nearer: nearer than the 99th percentile of the copies, and
    than the 1st percentile of training clips. Of copies it is the share that is found, of training clips the share of
    clean clips that is accused wrongly, or is twice in the training set. The pairs are printed.
  Where copies are not nearer than others are ("separable" 0), as in a world of few, alike things, nothing can be said.
  """

  count: int = 256
  split: str = "test"
  every: int = 0

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    held_out, train = first(run.data(self.split), self.count), run.data("train")
    videos = pixels(held_out["video"])
    pairs = zip(signature(videos), signature(reencoded(videos)))
    copies = np.array([apart(one[None], other[None])[0, 0] for one, other in pairs])
    found = nearest(held_out, train)
    clean = nearest(first(train, min(self.count, len(train))), train, but_own=True).distance
    limit = min(np.quantile(copies, 0.99), np.quantile(clean, 0.01))
    leaked = found.distance <= limit
    worst = [number for number in np.argsort(found.distance, kind="stable") if leaked[number]]
    for number in worst[:SHOWN]:
      pair = f"{held_out['id'][number]} of {self.split} is as near as a copy to {found.id[number]} of train"
      print(f"leakage: {pair}, {found.distance[number]:.3g} (limit {limit:.3g})", file=sys.stderr)
    if len(worst) > SHOWN:
      print(f"leakage: and {len(worst) - SHOWN} more", file=sys.stderr)
    columns = {"held-out": found.distance, "copies": copies, "training": clean}
    table: Table = {}
    for column, distance in columns.items():
      rows = {
        "nearest distance": np.median(distance),
        "nearest distance 1%": np.quantile(distance, 0.01),
        "leaked": np.mean(distance <= limit),
      }
      for row, value in rows.items():
        table.setdefault(row, {})[column] = float(value)
    table["separable"] = {"copies": float(np.quantile(copies, 0.99) < np.quantile(clean, 0.01))}
    return table
