"""How far are the motions of samples from real ones? Fréchet distances of what is tracked (after arXiv:2407.16124)."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, controls
from vdt.evals.motion import enlarged, flow
from vdt.evals.statistics import compared, extrapolated, frechet_distance

GRID = 8
"""Points that are followed, along height and along width."""
ANGLES = 8
"""Bins of a histogram of directions."""
STILL = 0.02
"""Px a frame, below which flow is noise."""


def tracks(video: Float[np.ndarray, "f h w c"]) -> Float[np.ndarray, "f n 2"]:
  """Where the points of a grid over the first frame go, by optical flow from frame to frame; x, y in px."""
  frames, grey = enlarged(video)
  height, width = frames.shape[1:3]
  middle = lambda length: ((np.arange(GRID) + 0.5) * length / GRID - 0.5).astype(np.float32)
  x, y = (axis.reshape(-1, 1) for axis in np.meshgrid(middle(width), middle(height)))
  found = [np.concatenate([x, y], 1)]
  for there in flow(grey):
    moved = cv2.remap(there, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 2)
    x, y = x + moved[:, :1], y + moved[:, 1:]
    found.append(np.concatenate([x, y], 1))
  return np.stack(found) * video.shape[1] / height


def summary(steps: Float[np.ndarray, "t n 2"]) -> Float[np.ndarray, " d"]:
  """Of velocities or accelerations of one clip: where they point, and how large they are.

  The histogram is of directions, each weighing by its length, as shares; then the logarithms, from `STILL` on, of the
  mean length, of its 90th percentile over points and frames, and of the spread over frames of the mean of all points,
  which is the shaking of the whole image. Sizes are nearly log-normal: else the fastest clip would outweigh all others.
  """
  size, angle = np.linalg.norm(steps, axis=-1), np.arctan2(steps[..., 1], steps[..., 0])
  bins = np.floor((angle / (2 * np.pi) + 0.5) * ANGLES).astype(int) % ANGLES
  shares = np.bincount(bins.ravel(), size.ravel(), ANGLES) / (size.sum() + STILL * size.size)
  sizes = np.array([size.mean(), np.quantile(size, 0.9), steps.mean(1).std(0).mean()])
  return np.concatenate([shares, np.log(STILL + sizes)])


@dataclasses.dataclass
class FVMD:
  """Rows: the Fréchet distances of velocities and of accelerations, with intervals and excess as of `FVD`.

  Columns as there. Points of a grid are followed by optical flow; each clip's velocities and accelerations are
  summarised (`summary`) and the summaries' distributions compared. It sees a shaking of half a pixel, and says nothing
  of what moves.
  """

  count: int = 64
  controls: tuple[str, ...] = controls.ALL
  split: str = "test"
  every: int = 0

  def __post_init__(self):
    controls.check(self.controls)
    if not isinstance(self.count, int) or self.count < 16:
      raise ValueError(f"FVMD of {self.count} clips: take a whole number, at least 16")

  @property
  def clips(self) -> int:
    return 2 * self.count

  def __call__(self, run: Run) -> Table:
    table: Table = {}
    videos = controls.columns(run, self.split, self.count, self.controls)
    followed = {column: np.stack([tracks(video) for video in clips]) for column, clips in videos}
    for row, order in (("velocity distance", 1), ("acceleration distance", 2)):
      summed = lambda clips, order=order: np.stack([summary(np.diff(each, order, axis=0)) for each in clips])
      features = {column: summed(clips) for column, clips in followed.items()}
      real = features.pop("real")
      table |= compared(row, frechet_distance, real, features)
      table[f"{row}, infinitely many"] = {name: extrapolated(real, made) for name, made in features.items()}
    return table
