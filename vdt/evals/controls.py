"""Corrupted copies of real videos: what a metric must tell from the real ones. All are functions of a seed."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float

from vdt.diffusion import TASKS
from vdt.evals import Run, first, pixels, real_videos

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


ALL = (*CONTROLS, MEMORISED)


def memorised(run: Run, count: int) -> Videos:
  """The first training clips with a little noise: what a model that has learned them by heart makes."""
  return noised(pixels(first(run.data("train"), count)["video"]), MEMORISED_NOISE)


def check(names: Sequence[str]) -> None:
  """ValueError for a control that there is not, or for one name in the place of several."""
  if isinstance(names, str):
    raise ValueError(f"controls {names!r}: name several, as ({names!r},)")
  if unknown := {*names} - {*CONTROLS, MEMORISED}:
    choose = ", ".join((*CONTROLS, MEMORISED))
    raise ValueError(f"unknown controls {', '.join(sorted(unknown))}: choose from {choose}")


def check_task(task: str, given: int | None, frames: int) -> None:
  """ValueError for samples that cannot be: of an unknown task, or given more frames than leave one to make."""
  if task not in TASKS:
    raise ValueError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")
  if given is not None and (task != "prediction" or not 1 <= given < frames):
    raise ValueError(f"given_frames {given} of {frames} with task {task}: 1 to {frames - 1}, of task prediction")


def columns(
  run: Run, split: str, count: int, controls: Sequence[str], task: str = "generation", given: int | None = None
) -> Iterator[tuple[str, Videos]]:
  """Columns of a table, one after the other: real, real floor, samples, and controls.

  The real clips are the second `count` of the split. The floor's are the first, as the samples': they go on with these,
  or have their labels; and controls are these, corrupted. So none is of the clips that it is compared with, but
  "memorised", where the split is the training set: then it is these, and a distance from them rewards it.
  ValueError if the split holds fewer than 2 x count clips.
  """
  clips = real_videos(run.data(split), 2 * count)
  source, real = clips[:count], clips[count:]
  yield "real", real
  yield "real floor", source
  yield "samples", run.sample(count, task=task, split=split, given_frames=given)[:, 0]
  for name in controls:
    if name != MEMORISED:
      yield name, CONTROLS[name](source)
    else:
      yield name, noised(real, MEMORISED_NOISE) if split == "train" else memorised(run, count)
