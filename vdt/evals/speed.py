"""Do objects move as fast as the frame rate that is asked for has it? Steps of a track, at one rate and another."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, real_videos
from vdt.evals.statistics import RESAMPLES, interval
from vdt.evals.tracking import alone, track


@dataclasses.dataclass
class Speed:
  """Rows: each frame rate that a stride of the data gives, fastest first, asked for with all else as it was ("8 a
  second"); and how many times as far an object goes from a frame to the next at each as at the first ("4 over 8").
  Columns: px a frame (or times) of `samples`, with the 95 % interval over clips `low`, `high`; of `real` clips, read at
  that rate; and the share of samples in which one object is `seen`, the others being left out.

  The rate alone tells samples of a clip apart: same noise, same captions. Where none is seen there are no `samples`,
  and where nothing moves, no times. ValueError for data with one stride, or whose clips show no single object that
  moves.
  """

  count: int = 256
  split: str = "test"
  every: int = 0
  conditions = ("fps",)

  @property
  def clips(self) -> int:
    return self.count

  def prepare(self, data: Any) -> None:
    """Before training: ValueError for data with one rate."""
    if len(strides(data)) < 2:
      raise ValueError(
        f"evals of speed compare the frame rates of one data set, here of strides {strides(data)}: give data.strides"
      )

  def __call__(self, run: Run) -> Table:
    data, table, made, there = run.data(self.split), {}, {}, {}
    for stride in strides(data):
      like = dataclasses.replace(data, strides=(stride,))
      name = f"{like.fps():g}"
      there[name] = speeds(real_videos(like, self.count))
      made[name] = speeds(run.sample(self.count, split=self.split, fps=like.fps())[:, 0])
      seen = np.isfinite(made[name])
      real = there[name][np.isfinite(there[name])]
      if not (len(real) and real.mean() > 0):
        raise ValueError(f"no single object moves in the real clips, at {name} a second: these are clips of one")
      found = row(made[name][seen], real) if seen.any() else {"real": mean(real)}
      table[f"{name} a second"] = found | {"seen": float(seen.mean())}
    first, *rest = made
    for name in rest:
      pairs, real = (np.stack([each[name], each[first]], -1) for each in (made, there))
      pairs, real = (each[np.isfinite(each).all(-1)] for each in (pairs, real))
      if len(pairs) and len(real) and min(pairs[:, 1].mean(), real[:, 1].mean()) > 0:
        table[f"{name} over {first}"] = row(pairs, real)
    return table


def strides(data: Any) -> list[int]:
  """Those that are drawn: what is stored may be too short for some."""
  fit = lambda stride: (data.frames - 1) * stride < data.stored[0]
  return sorted({stride for stride in data.strides if fit(stride)}) if hasattr(data, "strides") else [1]


def mean(values: Float[np.ndarray, "n ..."]) -> float:
  """Of numbers; or of pairs, the ratio of the first ones' to the second ones'."""
  means = np.mean(values, axis=0)
  return float(means if means.ndim == 0 else means[0] / means[1])


def row(samples: np.ndarray, real: np.ndarray) -> dict[str, float]:
  """Means, with the interval of that of samples, whose clips are drawn anew."""
  rng = np.random.default_rng(0)
  draws = [mean(samples[rng.integers(0, len(samples), len(samples))]) for _ in range(5 * RESAMPLES)]
  low, high = interval(np.array(draws))
  return {"samples": mean(samples), "low": low, "high": high, "real": mean(real)}


def speeds(videos: Float[np.ndarray, "b f h w c"]) -> Float[np.ndarray, " b"]:
  """How far the object of each clip goes from a frame to the next, px, on average; NaN where no single one is seen."""
  found = np.full(len(videos), np.nan)
  for number, tracks in enumerate(map(track, videos)):
    steps = np.linalg.norm(np.diff(tracks.position[:, 0], axis=0), axis=1)
    if alone(tracks) and np.isfinite(steps).any():
      found[number] = np.nanmean(steps)
  return found
