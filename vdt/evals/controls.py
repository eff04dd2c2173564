"""Corrupted copies of real videos: what a metric must tell from the real ones. All are functions of a seed."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, real_videos

Videos = Float[np.ndarray, "b f h w c"]


def frozen(videos: Videos) -> Videos:
  """The first frame, repeated."""
  return np.repeat(videos[:, :1], videos.shape[1], axis=1)


def backward(videos: Videos) -> Videos:
  """The frames in reversed order."""
  return np.ascontiguousarray(videos[:, ::-1])


def shuffled(videos: Videos, seed: int = 0) -> Videos:
  """The frames of each clip in a random order of its own."""
  rng = np.random.default_rng(seed)
  order = rng.permuted(np.tile(np.arange(videos.shape[1]), (len(videos), 1)), axis=1)
  return np.take_along_axis(videos, order[:, :, None, None, None], axis=1)


def jitter(videos: Videos, distance: float = 1.0, seed: int = 0) -> Videos:
  """Each frame shifted by `distance` px in a random direction, bilinear, borders repeated."""
  rng = np.random.default_rng(seed)
  angle = rng.uniform(0, 2 * np.pi, videos.shape[:2])
  shift = distance * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
  height, width = videos.shape[2:4]
  rows, columns = np.mgrid[:height, :width].astype(np.float32)
  moved = np.empty_like(videos)
  for index in np.ndindex(videos.shape[:2]):
    x, y = shift[index].astype(np.float32)
    image = cv2.remap(videos[index], columns - x, rows - y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    moved[index] = image.reshape(moved[index].shape)
  return moved


def flicker(videos: Videos, amount: float = 0.1, seed: int = 0) -> Videos:
  """The brightness of each frame times 1 + `amount` x a standard normal number."""
  gain = 1 + amount * np.random.default_rng(seed).standard_normal((*videos.shape[:2], 1, 1, 1))
  return np.clip((videos + 1) * gain - 1, -1, 1).astype(videos.dtype)


def noised(videos: Videos, std: float = 0.1, seed: int = 0) -> Videos:
  """White noise of `std` (in units of [-1, 1]) added."""
  noise = np.random.default_rng(seed).standard_normal(videos.shape, dtype=np.float32)
  return np.clip(videos + std * noise, -1, 1).astype(videos.dtype)


CONTROLS = {
  "frozen": frozen,
  "jitter": jitter,
  "shuffled": shuffled,
  "reversed": backward,
  "flicker": flicker,
  "noised": noised,
}


MEMORISED = "memorised"
MEMORISED_NOISE = 0.02
"""What is added to training clips for the column of that name, in units of [-1, 1]."""


def memorised(run: Run, count: int) -> Videos:
  """The first training clips with a little noise: what a model that has learned them by heart makes."""
  return noised(real_videos(run.data("train"), count), MEMORISED_NOISE)


def columns(
  run: Run,
  split: str,
  count: int,
  controls: Sequence[str],
  floor: bool = False,
  task: str = "generation",
  given: int | None = None,
) -> dict[str, Videos]:
  """Columns of a table: samples, real clips, as many further real clips (the floor), and controls.

  Controls are the real clips corrupted, or, with `floor`, those of the floor: in a distance from the real clips those
  that they were made of would be no others. task, given: of the samples. ValueError if the split holds fewer than
  2 x count clips.
  """
  real = real_videos(run.data(split), 2 * count)
  source = real[count:] if floor else real[:count]
  make = lambda name: memorised(run, count) if name == MEMORISED else CONTROLS[name](source)
  return {
    "samples": run.sample(count, task=task, split=split, given_frames=given)[:, 0],
    "real": real[:count],
    "real floor": real[count:],
    **{name: make(name) for name in controls},
  }
