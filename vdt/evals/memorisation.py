"""Are the samples copies of training clips? Nearest neighbours in pixels, against held-out clips."""

import dataclasses
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, pixels, real_videos
from vdt.evals.controls import memorised


def neighbours(videos: Float[np.ndarray, "b f h w c"], data: Any, nearest: int = 50) -> Float[np.ndarray, "b nearest"]:
  """Root mean square pixel distances, [-1, 1], to the `nearest` clips of `data`, ascending; brute force.

  All clips of `data` are read once, by `data.batch(step)`. Fewer columns if `data` holds fewer clips.
  """
  flat = videos.reshape(len(videos), -1)
  squares = np.square(flat).sum(1, dtype=np.float64)
  best = np.empty((len(flat), 0))
  for step in range(-(-len(data) // data.batch_size)):
    size = min(data.batch_size, len(data) - step * data.batch_size)
    clips = pixels(data.batch(step)["video"][:size]).reshape(size, -1)
    if clips.shape[1] != flat.shape[1]:
      raise ValueError(f"clips of {flat.shape[1]} values against training clips of {clips.shape[1]}")
    distances = squares[:, None] + np.square(clips).sum(1, dtype=np.float64) - 2.0 * (flat @ clips.T)
    winner = distances.argmin(1)  # its distance again, by differences: the product above cancels for near copies
    exact = np.square(flat - clips[winner]).sum(1, dtype=np.float64)
    distances[np.arange(len(flat)), winner] = exact
    best = np.sort(np.concatenate([best, distances], axis=1), axis=1)[:, :nearest]
  return np.sqrt(np.maximum(best, 0) / flat.shape[1])


def blurred(videos: Float[np.ndarray, "b f h w c"]) -> Float[np.ndarray, "b f h w c"]:
  """Each frame under a Gaussian of 1/16 of its height."""
  frames = videos.reshape(-1, *videos.shape[2:])
  soft = [cv2.GaussianBlur(frame, (0, 0), max(videos.shape[2] / 16, 0.5)) for frame in frames]
  return np.stack(soft).reshape(videos.shape)


@dataclasses.dataclass
class Memorisation:
  """Distance of samples to the training clips; columns held-out, held-out floor, memorised, blurred are references.

  nearest distance, nearest distance 5%: median and 5th percentile over clips of the root mean square distance over
    pixels to the nearest training clip; ratio to held-out: its median over that of the held-out clips.
  closer than held-out: share of clips nearer to a training clip than the 1st percentile of held-out clips.
  relative distance, relative distance 5%: the nearest distance over the mean of the `neighbours` nearest ones, the
    measure of equation 2 of arXiv:2301.13188; copies: the share of clips below the held-out clips' 1st percentile.

  Plain distances are biased: a blurred or faint sample lies nearer to *every* training clip (the mean video is the
  nearest of all), and noise that is left in a sample of standard deviation s adds s^2 to the square of every
  distance and hides a copy. The relative distance cancels most of the first, as the column "blurred" (held-out
  clips, blurred) shows: judge by `copies`, and look at "closer than held-out" only beside it. The column
  "memorised" (training clips with noise of 0.02) must be exposed by both, else the row cannot see copies here.
  A percentile of `count` held-out clips is no finer than 1 / count.
  """

  count: int = 64
  neighbours: int = 50
  split: str = "test"
  every: int = 0

  @property
  def clips(self) -> int:
    return 2 * self.count

  def __call__(self, run: Run) -> Table:
    train = run.data("train")
    real = real_videos(run.data(self.split), 2 * self.count)
    videos = {
      "samples": run.sample(self.count, split=self.split)[:, 0],
      "held-out": real[: self.count],
      "held-out floor": real[self.count :],
      "memorised": memorised(run, self.count),
      "blurred": blurred(real[: self.count]),
    }
    distances = neighbours(np.concatenate(list(videos.values())), train, self.neighbours)
    distances = dict(zip(videos, np.split(distances, len(videos))))
    nearest = {column: values[:, 0] for column, values in distances.items()}
    relative = {column: values[:, 0] / values.mean(1) for column, values in distances.items()}
    table: Table = {}
    for column in videos:
      near, ratio = nearest[column], relative[column]
      rows = {
        "nearest distance": np.median(near),
        "nearest distance 5%": np.quantile(near, 0.05),
        "ratio to held-out": np.median(near) / np.median(nearest["held-out"]),
        "closer than held-out": np.mean(near < np.quantile(nearest["held-out"], 0.01)),
        "relative distance": np.median(ratio),
        "relative distance 5%": np.quantile(ratio, 0.05),
        "copies": np.mean(ratio < np.quantile(relative["held-out"], 0.01)),
      }
      for row, value in rows.items():
        table.setdefault(row, {})[column] = float(value)
    return table
