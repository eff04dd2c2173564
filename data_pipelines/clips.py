"""Clips of a TFDS data set by step: a pure function of (seed, step), read through tf.data in the background."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines import simulated
from data_pipelines.shuffle import permute


@dataclasses.dataclass
class Clips:
  """Clips of `frames` frames of `size` (height, width) from the TFDS array_record set at `data_dir`/`name`.

  Stored clips that are longer are cut at an offset drawn for each position in training, at their start elsewhere.
  flip: mirror half of the training clips, left to right. turn: turn each of them by 0, 90, 180 or 270 degrees. Epochs
  are shuffled apart, the last batch of one runs into the next. seed: of all that is drawn in training; what is held out
  comes in one order.
  """

  name: str
  frames: int
  size: tuple[int, int]
  batch_size: int
  data_dir: str = "data"
  split: str = "train"
  seed: int = 0
  flip: bool = False
  turn: bool = False

  @property
  def directory(self) -> str:
    return os.path.join(self.data_dir, self.name)

  def prepare(self) -> None:
    """FileNotFoundError if the data set is not there, ValueError if it does not hold what is asked for."""
    if not os.path.exists(os.path.join(self.directory, "dataset_info.json")):
      raise FileNotFoundError(
        f"no data set at {self.directory}: make it with `vdt ingest FOLDER --out {self.directory}`, or set "
        f"data.data_dir"
      )
    info = self._builder.info
    if self.split not in info.splits:
      raise ValueError(f"{self.directory} has no split {self.split!r}: choose from {', '.join(info.splits)}")
    if self.turn and self.size[0] != self.size[1]:
      raise ValueError(f"data.turn needs square clips, not {tuple(self.size)}: set it to False")
    stored = (info.metadata["frames"], *info.metadata["size"])
    if self.frames > stored[0] or tuple(self.size) != stored[1:]:
      asked = (self.frames, *self.size)
      raise ValueError(f"{self.directory} holds clips of (frames, height, width) {stored}, data asks for {asked}")

  @functools.cached_property
  def _builder(self) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(self.directory)

  @functools.cached_property
  def _source(self) -> Any:
    return self._builder.as_data_source(self.split)

  def labels(self) -> list[str]:
    return self._builder.info.features["label"].names

  def fps(self) -> float:
    return float(self._builder.info.metadata["fps"])

  def rule(self) -> dict[str, Any]:
    """How clips are made of what was recorded, or rendered: for the cards of figures."""
    offset = "drawn for each position" if self.split == "train" else "the start of each stored clip"
    return {"offset": offset, "stored": dict(self._builder.info.metadata)}

  def __len__(self) -> int:
    return len(self._source)

  def fingerprint(self) -> str:
    """A hash of what the data set is said to hold, of its files' names and sizes, and of the first clips of `split`."""
    digest = hashlib.sha256()
    for name in ("dataset_info.json", "features.json", "manifest.json"):
      if os.path.exists(path := os.path.join(self.directory, name)):
        digest.update(pathlib.Path(path).read_bytes())
    for entry in sorted(os.scandir(self.directory), key=lambda entry: entry.name):
      digest.update(f"{entry.name} {entry.stat().st_size}".encode() if "array_record" in entry.name else b"")
    for value in self.batch(0).values():
      digest.update(repr(value.tolist()).encode() if value.dtype.kind == "U" else value.tobytes())
    return digest.hexdigest()[:16]

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """The global batch of a step: "video" (b f h w 3) uint8, "label" (b,) int32, "id" and "caption" (b,) of text."""
    return self._read(step * self.batch_size + np.arange(self.batch_size))

  def batches(self, start: int, host: int = 0, hosts: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """This host's part of the batches from step `start` on, for ever, read ahead by tf.data's threads."""
    import tensorflow as tf

    if self.batch_size % hosts:
      raise ValueError(f"data.batch_size {self.batch_size} is not a multiple of the {hosts} hosts")
    local = self.batch_size // hosts
    example = self._read(np.arange(1))
    names = list(example)

    def read(step: np.ndarray) -> list[np.ndarray]:
      batch = self._read(step * self.batch_size + host * local + np.arange(local))
      return [batch[name] for name in names]

    text = lambda value: value.dtype.kind in "UO"
    types = [tf.string if text(value) else value.dtype for value in example.values()]
    load = lambda step: tf.numpy_function(read, [step], types, stateful=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    steps = tf.data.Dataset.range(start, 2**40).map(load, num_parallel_calls=2, deterministic=True)
    for values in steps.prefetch(2).with_options(options).as_numpy_iterator():
      decoded = (np.strings.decode(np.asarray(value, "S")) if text(value) else value for value in values)
      yield dict(zip(names, decoded))

  def _read(self, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The clips at global positions: epoch position // len, its shuffled order, its own crop and flip."""
    count = len(self)
    epochs = positions // count
    index = np.empty_like(positions)
    for epoch in np.unique(epochs):
      chosen = epochs == epoch
      seed = self.seed if self.split == "train" else 0
      index[chosen] = permute(positions[chosen] % count, count, seed, int(epoch))
    examples = self._source.__getitems__(index.tolist())
    clips = [self._clip(example["video"], int(position)) for example, position in zip(examples, positions)]
    return {
      "video": np.stack(clips),
      "label": np.array([example["label"] for example in examples], np.int32),
      "id": np.array([example["id"].decode() for example in examples]),
      "caption": np.array([example["caption"].decode() for example in examples]),
    }

  def _clip(self, tall: np.ndarray, position: int) -> np.ndarray:
    """A stored tall image (f h, w, 3) to a clip (f h w 3), every random choice keyed by the position alone."""
    clip = tall.reshape(-1, *self.size, 3)
    if self.split != "train":
      return clip[: self.frames]
    rng = np.random.default_rng([self.seed, position])
    start = rng.integers(clip.shape[0] - self.frames + 1)
    clip = clip[start : start + self.frames]
    clip = clip[:, :, ::-1] if self.flip and rng.random() < 0.5 else clip
    return np.rot90(clip, rng.integers(4), axes=(1, 2)) if self.turn else clip

  def clip(self, path: str) -> np.ndarray:
    """A user's video or picture file as the data set's clips were made: (f h w 3) uint8, at most `frames` frames."""
    from data_pipelines.video import read_clip

    return read_clip(path, frames=self.frames, size=tuple(self.size), fps=self.fps())


@dataclasses.dataclass
class SimulatedClips(Clips):
  """Clips of the simulated set `name`, rendered on first use."""

  @functools.cached_property
  def directory(self) -> str:
    return os.fspath(simulated.prepare(self.name, self.data_dir))
