"""Do bodies bounce when it is heard? Turns of a track beside the impacts of the sound."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from vdt.evals import Run, Table, first, real_videos
from vdt.evals.statistics import wilson
from vdt.evals.tracking import alone, track

LOUD = 0.1  # of full volume, at least, in the frame of an impact,
RISE = 2.0  # and so many times what is heard in the frame before
TURN = 0.5  # px / frame^2, away from the clip's median acceleration, in a turn
WITHIN = 1.0  # frames


@dataclasses.dataclass
class Impacts:
  """Of the first `count` clips, those in which an impact is heard. Columns: how many (`clips`); the share of `samples`
  that turn as often as it is heard, each time within one frame of it, with its 95 % interval `low`, `high` (Wilson
  1927); of `real` clips; of samples and of real clips beside the sound of the next one (`shuffled`, `chance`).

  A clip in which no single object is seen is wrong. ValueError where fewer than two clips have an impact.
  """

  count: int = 256
  split: str = "test"
  every: int = 0

  @property
  def clips(self) -> int:
    return self.count

  def prepare(self, data: Any) -> None:
    """Before training: ValueError for clips without sound, or too few impacts."""
    if "sound" not in data.batch(0):
      raise ValueError("evals of impacts need clips with sound")
    if (loud := sum(len(times) > 0 for times in self.heard(data))) < 2:
      raise ValueError(f"an impact is heard in {loud} of {self.count} clips: raise count")

  def heard(self, data: Any) -> list[Float[np.ndarray, " k"]]:
    return [impacts(sound, data.frames) for sound in first(data, self.count)["sound"]]

  def __call__(self, run: Run) -> Table:
    data = run.data(self.split)
    heard, real = self.heard(data), real_videos(data, self.count)
    loud = [number for number, times in enumerate(heard) if len(times)]
    seen = [turns(video) for video in run.sample(self.count, split=self.split)[loud, 0]]
    there = [turns(video) for video in real[loud]]
    own = [heard[number] for number in loud]
    other = own[1:] + own[:1]
    right = lambda tracks, sounds: [together(*pair) for pair in zip(tracks, sounds)]
    low, high = wilson(sum(right(seen, own)), len(loud))
    shares = {"samples": right(seen, own), "real": right(there, own)}
    shares |= {"shuffled": right(seen, other), "chance": right(there, other)}
    row = {"clips": float(len(loud)), "low": low, "high": high}
    return {"impacts": row | {name: float(np.mean(each)) for name, each in shares.items()}}


def impacts(sound: Int16[np.ndarray, " n"], frames: int) -> Float[np.ndarray, " k"]:
  """When they are heard, in frames: the middle of each frame that begins loud."""
  parts = np.array_split(np.abs(sound.astype(np.float32)) / 2**15, frames)
  level = np.array([part.max() for part in parts])
  before = np.concatenate([[0.0], level[:-1]])
  return np.flatnonzero((level > LOUD) & (level > RISE * before)) + 0.5


def turns(video: Float[np.ndarray, "f h w c"]) -> Float[np.ndarray, " k"] | None:
  """When the object's velocity leaps, in frames; None where no single one is seen.

  Frames in which its acceleration is far from the clip's median are one turn where they touch, at their mean time.
  """
  found = track(video)
  if not alone(found):
    return None
  there = np.flatnonzero(np.isfinite(found.position[:, 0, 0]))
  every = np.arange(len(video))
  path = np.stack([np.interp(every, there, found.position[there, 0, axis]) for axis in range(2)], 1)
  bend = np.diff(path, n=2, axis=0)
  off = np.linalg.norm(bend - np.median(bend, axis=0), axis=1)
  far = np.flatnonzero(off > TURN)
  groups = np.split(far, np.flatnonzero(np.diff(far) > 1) + 1) if len(far) else []
  return np.array([np.average(group + 1, weights=off[group]) for group in groups])


def together(seen: Float[np.ndarray, " k"] | None, heard: Float[np.ndarray, " n"]) -> bool:
  """Whether there are as many turns as impacts, each within a frame of its own."""
  return seen is not None and len(seen) == len(heard) and bool((np.abs(seen - heard) <= WITHIN).all())
