"""One model under all plans of what is given: is that kept, does the rest join it, and is it better than filling in?"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from vdt.evals import Run, Table, first, real_videos
from vdt.evals.prediction import interval, sources

Video = Float[np.ndarray, "f h w c"]
Mask = Float[np.ndarray, "f h w 1"]
FAR = 1e6  # pixels, in frames: what is given at another place counts only where this place has none in any frame


@dataclasses.dataclass
class Plans:
  """Rows: plans, each a name, a task (`vdt.diffusion.given`) and how many frames it gives (None: as the task draws).

  Columns: `samples`, the mean squared error of the mean of the repeats where nothing was given, in [-1, 1];
  `copy-last`, of the nearest given frame, or pixel in a hole; `blend`, of linear blending between given frames, and of
  a hole inpainted (Telea 2004); `better`, the lower end of the 95 % interval of how much the better of these two is
  worse than samples, clip by clip: above 0, samples win. `given, off`: the largest difference where it was given;
  `before pasting`: the root mean square there of what the last step makes of it. `seam`: the root mean square of second
  differences across the border of what was given, over that of the clips themselves there.
  """

  plans: tuple[tuple[str, str, int | None], ...] = (
    ("image to video", "prediction", 1),
    ("first and last", "interpolation", 2),
    ("keyframes", "keyframes", 2),
    ("predict", "prediction", 3),
    ("backward", "backward", 3),
    ("hole", "completion", None),
  )
  count: int = 64
  repeats: int = 8
  split: str = "test"
  every: int = 0

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    data = run.data(self.split)
    truth = real_videos(data, self.count)
    groups = sources(first(data, self.count)["id"].astype(str).tolist())
    return {name: self.row(run, truth, groups, task, frames) for name, task, frames in self.plans}

  def row(self, run: Run, truth: np.ndarray, groups: list[str], task: str, frames: int | None) -> dict[str, float]:
    """The columns of one plan."""
    how = dict(task=task, split=self.split, given_frames=frames)
    given = run.given(self.count, **how)
    samples = run.sample(self.count, repeats=self.repeats, **how)
    raw = run.sample(self.count, repeats=1, paste=False, **how)[:, 0]
    hidden = 1.0 - given
    error = lambda made: (
      (np.square(made - truth) * hidden).sum((1, 2, 3, 4)) / (hidden.sum((1, 2, 3, 4)) * truth.shape[-1])
    )
    scores = {
      "samples": error(samples.mean(1)),
      "copy-last": error(np.stack([nearest(*pair) for pair in zip(truth, given)])),
      "blend": error(np.stack([blended(*pair) for pair in zip(truth, given)])),
    }
    low, _ = interval(np.minimum(scores["copy-last"], scores["blend"]) - scores["samples"], groups)
    joined = [seam(video, mask) for video, mask in zip(samples[:, 0], given)]
    real = [seam(video, mask) for video, mask in zip(truth, given)]
    kept = given > 0
    return {
      **{name: float(each.mean()) for name, each in scores.items()},
      "better": float(low),
      "given, off": float((np.abs(samples - truth[:, None]) * kept[:, None]).max()),
      "before pasting": float(np.sqrt((np.square(raw - truth) * kept).sum() / (kept.sum() * truth.shape[-1]))),
      "seam": float(np.sqrt(np.mean(joined) / np.mean(real))),
    }


def nearest(video: Video, given: Mask) -> Video:
  """What is given at the same place in the nearest frame, or else at the nearest place."""
  f, y, x = ndimage.distance_transform_edt(given[..., 0] == 0, sampling=(1, FAR, FAR), return_indices=True)[1]
  return video[f, y, x]


def blended(video: Video, given: Mask) -> Video:
  """Linear between given frames, the nearest of them before the first and after the last; holes inpainted."""
  whole = np.flatnonzero(given.min((1, 2, 3)))
  if len(whole):
    place = np.interp(np.arange(len(video)), whole, np.arange(len(whole)))
    before, part = np.floor(place).astype(int), (place % 1)[:, None, None, None]
    after = np.minimum(before + 1, len(whole) - 1)
    return video[whole[before]] * (1 - part) + video[whole[after]] * part
  bytes_ = np.round(np.clip(video * given + 1, 0, 2) * 127.5).astype(np.uint8)
  holes = (given[..., 0] == 0).astype(np.uint8)
  return np.stack([cv2.inpaint(frame, hole, 3, cv2.INPAINT_TELEA) for frame, hole in zip(bytes_, holes)]) / 127.5 - 1.0


def seam(video: Video, given: Mask) -> float:
  """The mean square of second differences, in time and in space, whose three pixels are not all given, or all made."""
  total, count = 0.0, 0
  for axis in range(3):
    length = video.shape[axis]
    if length < 3:
      continue
    parts = [np.take(each, np.arange(start, length - 2 + start), axis) for each in (video, given) for start in range(3)]
    bend, told = parts[0] - 2 * parts[1] + parts[2], parts[3] + parts[4] + parts[5]
    across = np.broadcast_to((told > 0) & (told < 3), bend.shape)
    total, count = total + float(np.square(bend[across]).sum()), count + int(across.sum())
  return total / max(count, 1)
