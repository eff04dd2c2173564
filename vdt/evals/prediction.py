"""Are continuations of held-out clips better than trivial ones? Scores with intervals and paired differences."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, first, pixels, real_videos, vgg

MEAN_CLIPS = 2000  # at most so many training clips make the mean video


def energy_score(forecasts: Float[np.ndarray, " repeats *shape"], truth: Float[np.ndarray, "*shape"]) -> float:
  """E|X - y| - E|X - X'| / 2, equation 20 of Gneiting & Raftery 2007, in root mean square distance; lower is better.

  The second mean runs over the pairs of different repeats, so the estimate is unbiased for any number of repeats;
  one forecast is taken as certain and scores |x - y|. The distance is the Euclidean one over the root of the number
  of values, which keeps the score strictly proper.
  """
  flat = forecasts.reshape(len(forecasts), -1).astype(np.float64)
  root = np.sqrt(flat.shape[1])
  error = np.linalg.norm(flat - truth.reshape(1, -1), axis=1).mean() / root
  pairs = [np.linalg.norm(flat[i + 1 :] - flat[i], axis=1) for i in range(len(flat) - 1)]
  return float(error - (0.5 * np.concatenate(pairs).mean() / root if pairs else 0.0))


def sources(ids: Sequence[str]) -> list[str]:
  """The source of each clip: what stands before the last '#' of its id, else the id itself."""
  return [name.rsplit("#", 1)[0] for name in ids]


def interval(
  values: Float[np.ndarray, "*rows b"], groups: Sequence[str], draws: int = 2000, seed: int = 0
) -> tuple[Float[np.ndarray, "*rows"], Float[np.ndarray, "*rows"]]:
  """95 % percentile interval of the mean over b clips, by a cluster bootstrap that draws whole groups.

  Clips cut from one source are not independent, and drawing them one by one gives intervals that are too narrow.
  Every row is resampled alike, so the interval of a difference of rows is a paired one. NaN for a single group.
  """
  _, group = np.unique(np.asarray(groups), return_inverse=True)
  total = int(group.max()) + 1
  if total < 2:
    nothing = np.full(values.shape[:-1], np.nan)
    return nothing, nothing
  member = np.eye(total)[group]
  weights = np.random.default_rng(seed).multinomial(total, np.full(total, 1 / total), size=draws)
  means = (values @ member) @ weights.T / (weights @ member.sum(0))
  low, high = np.quantile(means, [0.025, 0.975], axis=-1)
  return np.asarray(low), np.asarray(high)


def mean_video(data: Any, limit: int = MEAN_CLIPS) -> Float[np.ndarray, "f h w c"]:
  """Mean over the first `limit` clips of `data`, or all if it holds fewer."""
  clips, total, left = min(limit, len(data)), 0.0, min(limit, len(data))
  for step in range(-(-clips // data.batch_size)):
    batch = pixels(data.batch(step)["video"][:left])
    total, left = total + batch.sum(0, dtype=np.float64), left - len(batch)
  return np.asarray(total / clips, np.float32)


@dataclasses.dataclass
class Prediction:
  """Continuations of held-out clips, scored on the frames that were not given.

  Columns: samples (MSE of the mean of the repeats; energy score of all of them), single sample (the first of them),
  copy-last (the last given frame repeated), mean video (of up to 2000 training clips); of a model of latents also
  reconstruction, the truth itself encoded and decoded, which no sample of it can be expected to beat.
  Rows: mse (pixels in [-1, 1]) and energy score, each with "low" and "high", the 95 % interval of the cluster
  bootstrap over sources (`interval`); "mse excess" and "energy score excess", a column's score minus that of
  samples on the same clips, with the paired interval: a low end above 0 means that the samples are better.
  Intervals are left out when all clips come from one source. The row "sources" counts them.

  A blurred mean wins on MSE over every sharp sample; the energy score is proper and does not reward that. lpips: a
  further row, the learned perceptual distance (`vgg.lpips`, needs extra [fvd]) of the first repeat's frames, which
  a blurred one loses; frames must be of 16 x 16 at least.
  ValueError if fewer than 1 or not fewer than all frames are given, or if repeats < 2.
  """

  count: int = 32
  repeats: int = 8
  given_frames: int = 4
  split: str = "test"
  every: int = 0
  lpips: bool = False

  def __post_init__(self):
    if self.repeats < 2 or self.given_frames < 1:
      raise ValueError(f"{self}: the energy score needs at least 2 repeats a clip, a prediction at least 1 given frame")

  @property
  def clips(self) -> int:
    return self.count

  def prepare(self, data: Any) -> None:
    """Before training: FileNotFoundError without LPIPS's weights, ValueError for frames that are too small for it."""
    if self.lpips:
      vgg.weights()
      if min(data.size) < vgg.LEAST:
        raise ValueError(f"lpips of frames of {tuple(data.size)}: at least {vgg.LEAST} x {vgg.LEAST}")

  def __call__(self, run: Run) -> Table:
    truth = real_videos(run.data(self.split), self.count)
    if not 1 <= self.given_frames < truth.shape[1]:
      raise ValueError(f"given_frames={self.given_frames} of {truth.shape[1]} frames: give 1 to {truth.shape[1] - 1}")
    plan = dict(task="prediction", split=self.split, repeats=self.repeats, given_frames=self.given_frames)
    samples = run.sample(self.count, **plan)[:, :, self.given_frames :]
    last, truth = truth[:, self.given_frames - 1 : self.given_frames], truth[:, self.given_frames :]
    mean = mean_video(run.data("train"))[self.given_frames :]
    forecasts = {
      "samples": samples,
      "single sample": samples[:, :1],
      "copy-last": np.broadcast_to(last, truth.shape)[:, None],
      "mean video": np.broadcast_to(mean, truth.shape)[:, None],
    }
    if run.inputs:  # the floor of a model of latents: the truth, encoded and decoded
      whole = real_videos(run.data(self.split), self.count)
      forecasts["reconstruction"] = run.reconstruct(whole)[:, self.given_frames :][:, None]
    perceptual = lambda forecast: run.map(vgg.perceptual(), np.ascontiguousarray(forecast[:, 0]), truth).mean(1)
    groups = sources(first(run.data(self.split), self.count)["id"].astype(str).tolist())
    scores = {
      "mse": {
        column: np.square(forecast.mean(1) - truth).mean((1, 2, 3, 4), dtype=np.float64)
        for column, forecast in forecasts.items()
      },
      "energy score": {
        column: np.array([energy_score(x, y) for x, y in zip(forecast, truth)])
        for column, forecast in forecasts.items()
      },
    }
    if self.lpips:
      scores["lpips"] = {column: perceptual(forecast).astype(np.float64) for column, forecast in forecasts.items()}
    table: Table = {}

    def add(row: str, column: str, values: np.ndarray):
      low, high = interval(values, groups)
      for name, value in ((row, values.mean()), (f"{row} low", low), (f"{row} high", high)):
        if not np.isnan(value):
          table.setdefault(name, {})[column] = float(value)

    for row, by_column in scores.items():
      for column, values in by_column.items():
        add(row, column, values)
      for column, values in by_column.items():
        if column != "samples":
          add(f"{row} excess", column, values - by_column["samples"])
    table["sources"] = {"samples": float(len(set(groups)))}
    return table
