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
LEAP = 0.4  # of what real clips do at their impacts, the median of them, is a turn
WITHIN = 1.0  # frames


@dataclasses.dataclass
class Impacts:
  """Rows: of the first `count` clips, those in which an impact is heard, and those in which none is (`silence`).
  Columns: how many (`clips`); the share of `samples` that turn as often as it is heard, each time within one frame of
  it, with its 95 % interval `low`, `high` (Wilson 1927); of `real` clips; and where something is heard, of samples and
  of real clips beside the sound of the next such clip (`shuffled`, `chance`).

  A clip in which no single object is seen is wrong. ValueError where fewer than two clips have an impact, or no real
  one turns at it.
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

  def heard(self, data: Any) -> list[Float[np.ndarray, " _"]]:
    return [impacts(sound, data.frames) for sound in first(data, self.count)["sound"]]

  def __call__(self, run: Run) -> Table:
    data = run.data(self.split)
    heard, real = self.heard(data), real_videos(data, self.count)
    loud = [number for number, times in enumerate(heard) if len(times)]
    silent = [number for number, times in enumerate(heard) if not len(times)]
    least = LEAP * usual_leap(real[loud], [heard[number] for number in loud])
    seen = [turns(video, least) for video in run.sample(self.count, split=self.split)[:, 0]]
    there = [turns(video, least) for video in real]
    right = lambda tracks, sounds: [together(tracks[to], heard[of]) for to, of in zip(loud, sounds)]
    other = loud[1:] + loud[:1]
    table = {"impacts": row(right(seen, loud), right(there, loud))}
    table["impacts"] |= {"shuffled": np.mean(right(seen, other)).item(), "chance": np.mean(right(there, other)).item()}
    if silent:
      quiet = lambda tracks: [together(tracks[number], heard[number]) for number in silent]
      table["silence"] = row(quiet(seen), quiet(there))
    return table


def row(samples: list[bool], real: list[bool]) -> dict[str, float]:
  """Shares, with the interval of that of samples."""
  low, high = wilson(sum(samples), len(samples))
  shares = {"samples": np.mean(samples).item(), "low": low, "high": high, "real": np.mean(real).item()}
  return {"clips": float(len(samples)), **shares}


def impacts(sound: Int16[np.ndarray, " n"], frames: int) -> Float[np.ndarray, " k"]:
  """When they are heard, in frames: the middle of each frame that begins loud."""
  parts = np.array_split(np.abs(sound.astype(np.float32)) / 2**15, frames)
  level = np.array([part.max() for part in parts])
  before = np.concatenate([[0.0], level[:-1]])
  return np.flatnonzero((level > LOUD) & (level > RISE * before)) + 0.5


def usual_leap(videos: Float[np.ndarray, "b f h w c"], heard: list[Float[np.ndarray, " _"]]) -> float:
  """The median over clips of the largest of `leaps` near an impact, px / frame^2. ValueError if none is seen."""
  found = []
  for video, times in zip(videos, heard):
    size = leaps(video)
    if size is not None:
      near = np.abs(1 + np.arange(len(size))[:, None] - times).min(1) <= WITHIN
      found += [size[near].max()] if near.any() else []
  usual = float(np.median(found)) if found else 0.0
  if usual <= 0:
    raise ValueError("no real clip turns where an impact is heard: these are clips of one bright object that bounces")
  return usual


def turns(video: Float[np.ndarray, "f h w c"], least: float) -> Float[np.ndarray, " k"] | None:
  """When the object's velocity leaps by `least` or more (px / frame^2), in frames; None where no single one is seen.

  Frames in which it does are one turn where they touch, at their mean time.
  """
  size = leaps(video)
  if size is None:
    return None
  far = np.flatnonzero(size >= least)
  groups = np.split(far, np.flatnonzero(np.diff(far) > 1) + 1) if len(far) else []
  return np.array([np.average(group + 1, weights=size[group]) for group in groups])


def leaps(video: Float[np.ndarray, "f h w c"]) -> Float[np.ndarray, " n"] | None:
  """How far the object's acceleration is from the clip's median in frames 1 to f - 2; None where no single one is
  seen."""
  found = track(video)
  if not alone(found):
    return None
  there = np.flatnonzero(np.isfinite(found.position[:, 0, 0]))
  every = np.arange(len(video))
  path = np.stack([np.interp(every, there, found.position[there, 0, axis]) for axis in range(2)], 1)
  bend = np.diff(path, n=2, axis=0)
  return np.linalg.norm(bend - np.median(bend, axis=0), axis=1)


def together(seen: Float[np.ndarray, " k"] | None, heard: Float[np.ndarray, " n"]) -> bool:
  """Whether there are as many turns as impacts, each within a frame of its own."""
  return seen is not None and len(seen) == len(heard) and bool((np.abs(seen - heard) <= WITHIN).all())
