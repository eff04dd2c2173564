"""Metrics of a trained model, each a dataclass called with a `Run` and answering with a `Table`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Float

Table = dict[str, dict[str, float]]
"""Metric (row) to column ("samples", "real", "frozen", ...) to value."""
ROUNDING = 1e-12
"""Below this a figure is shown as 0."""


def cell(row: dict[str, float], column: str) -> str:
  """A number of a table's row, for people; nothing where the row has none."""
  if column not in row:
    return ""
  return f"{0.0 if abs(row[column]) < ROUNDING else row[column]:.4g}"


class Run(NamedTuple):
  """All that an eval may look at.

  losses: `losses(x0, noise, t, cond)` to each video's loss (b,), x0 and noise (b f h w c), t (b,).
  patch_frames: the frames of a temporal patch.
  data: split name to a data object with `.batch(step)`, `.batch_size` and `len()`, of pixels.
  sample: `sample(count, task="generation", split="test", repeats=1, given_frames=None, paste=True, swapped=(),
    caption=0, fps=None)` to float32 videos in [-1, 1], `(count, repeats, f, h, w, c)`, conditioned like the first
    `count` clips of the split. Cached by its arguments. paste: what is given is put where it belongs. swapped: what is
    the next clip's, of its batch's names. caption: which one of a clip's captions is read. fps: the frame rate that is
    told.
  given: `given(count, task, split="test", given_frames=None)`, what of these clips is given (count f h w 1).
  map: `map(function, *inputs)` to `function` of the inputs' rows, which are independent, over all devices.
  reconstruct: `reconstruct(videos)`, what an autoencoder makes of videos in [-1, 1].
  how: what samples depend on beside the model and the clips, for cards.
  inputs: as `data`, of what the model sees, which may be latents.
  told: `told(batch)`, what the model is told of a batch of its clips, beside what is given of them.
  """

  losses: Callable[..., np.ndarray]
  patch_frames: int
  data: Callable[[str], Any]
  sample: Callable[..., np.ndarray]
  map: Callable[..., np.ndarray] = lambda function, *inputs: np.asarray(jax.jit(function)(*inputs))
  reconstruct: Callable[[np.ndarray], np.ndarray] = lambda videos: videos
  how: dict[str, Any] = {}
  inputs: Callable[[str], Any] | None = None
  told: Callable[[dict[str, np.ndarray]], dict[str, Any]] = lambda batch: {}
  given: Callable[..., np.ndarray] | None = None


class Eval(Protocol):
  """every: the period in steps inside training; 0 = only after the last step. clips: how many of `split` it reads.

  One that can fail for what is known before training has `prepare(data)`, of `split`, which raises then. One whose
  figures depend on more than its fields, the clips and the samples has `card(run)`, line to value: see `card`. sampled
  is False of one that draws no samples. conditions, where it has them: what the model must be told.
  """

  every: int
  split: str

  @property
  def clips(self) -> int: ...

  def __call__(self, run: Run) -> Table: ...


def card(made: Any, run: Run) -> dict[str, Any]:
  """All that an eval's figures depend on beside the model's weights: its fields, the real clips, and the samples."""
  data = run.data(made.split)
  said = lambda name: getattr(data, name)() if hasattr(data, name) else "not said"
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  fields = {each.name: plain(getattr(made, each.name)) for each in dataclasses.fields(made) if each.name != "every"}
  first_lines = {"real split": f"{made.split}, {said('fingerprint')}", "frames": data.frames, "size": list(data.size)}
  return {
    **first_lines,
    "frames a second": said("fps"),
    "clips": said("rule"),
    "value range": "[-1, 1], samples clipped",
    "codec of samples": "none: as the sampler made them",
    **{name: value for name, value in fields.items() if name != "split"},
    **(run.how if getattr(made, "sampled", True) else {}),
  }


def pixels(video: np.ndarray) -> Float[np.ndarray, "..."]:
  """uint8 video to float32 in [-1, 1]; latents stay what they are."""
  return video.astype(np.float32) / 127.5 - 1.0 if video.dtype == np.uint8 else video.astype(np.float32)


def nth_caption(captions: np.ndarray, number: int) -> np.ndarray:
  """Caption `number` (b,) of each clip, from its captions, one a line (b,). ValueError where one has fewer."""
  lines = [text.split("\n") for text in captions.tolist()]
  if short := [each for each in lines if len(each) <= number]:
    raise ValueError(f"caption {number} was asked for, a clip has {len(short[0])}, from 0: {', '.join(short[0])}")
  return np.array([each[number] for each in lines])


def first(data: Any, count: int) -> dict[str, np.ndarray]:
  """A batch of the first `count` clips of `data` in its own order, which starts anew where it ends."""
  batches = [data.batch(step) for step in range(-(-count // data.batch_size))]
  return {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}


def real_videos(data: Any, count: int) -> Float[np.ndarray, "b f h w c"]:
  """The videos of `first`, in [-1, 1]; ValueError if `data` holds fewer than `count`."""
  if count > len(data):
    raise ValueError(f"{count} clips asked for, but split {data.split!r} has {len(data)}: lower the eval's count")
  return pixels(first(data, count)["video"])
