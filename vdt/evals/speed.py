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

  The rate alone tells samples of a clip apart: same noise, same captions. ValueError for data with one stride, or where
  real clips, or no samples, show a single object that moves.
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
      raise ValueError(f"evals of speed compare frame rates, data.strides are {strides(data)}: give several")

  def __call__(self, run: Run) -> Table:
    data, table, made, there = run.data(self.split), {}, {}, {}
    for stride in strides(data):
      like = dataclasses.replace(data, strides=(stride,))
      name = f"{like.fps():g}"
      there[name] = speeds(real_videos(like, self.count))
      made[name] = speeds(run.sample(self.count, split=self.split, fps=like.fps())[:, 0])
      seen = np.isfinite(made[name])
      if not (np.nanmean(there[name]) > 0 and seen.any()):
        raise ValueError(f"no single object moves in real clips, or none is seen in samples, at {name} a second")
      table[f"{name} a second"] = row(made[name][seen], there[name]) | {"seen": float(seen.mean())}
    first, *rest = made
    for name in rest:
      both = np.isfinite(made[first]) & np.isfinite(made[name])
      if both.any():
        pairs = np.stack([made[name][both], made[first][both]], -1)
        table[f"{name} over {first}"] = row(pairs, np.stack([there[name], there[first]], -1))
    return table


def strides(data: Any) -> list[int]:
  return sorted(getattr(data, "strides", (1,)))


def mean(values: Float[np.ndarray, "n ..."]) -> float:
  """Of numbers; or of pairs, the ratio of the first ones' to the second ones'."""
  means = np.nanmean(values, axis=0)
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
