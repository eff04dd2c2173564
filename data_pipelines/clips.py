"""Clips of a TFDS data set by step: a pure function of (seed, step), read through tf.data in the background."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from data_pipelines import remote, simulated, sound
from data_pipelines.reading import Batch, Reader, captioned, shuffled

DIGESTED = ("video", "label", "id", "caption", "sound")
"""Of a batch: the rest follows from it."""


@dataclasses.dataclass
class Clips(Reader):
  """Clips of `frames` frames of `size` (height, width) from the TFDS array_record set at `data_dir`/`name`.

  Stored clips that are longer, or larger, are cut at an offset drawn for each position in training; elsewhere at their
  start, and in their middle. strides: one is drawn for each training clip, of those for which what is stored is long
  enough: it shows every so many-th frame; what is held out has the least of them, of which `fps` is. flip: mirror half
  of the training clips, left to right. turn: turn each of them by 0, 90, 180 or 270 degrees. Epochs are shuffled apart.
  limit: of the training split, only so many clips are read, the first ones; 0: all. seed: of all that is drawn in
  training; what is held out comes in one order. prefetch, readers: see `Reader`. cache: where the mirror of a data_dir
  gs://... is kept, see `remote.local`.
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
  strides: tuple[int, ...] = (1,)
  limit: int = 0
  prefetch: int = 2
  readers: int = 2
  cache: str | None = None

  @property
  def directory(self) -> str:
    """On this machine."""
    return remote.local(os.path.join(self.data_dir, self.name), self.cache)

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
    stored, asked = self.stored, (self.frames, *self.size)
    if self.turn and stored[1] != stored[2]:
      raise ValueError(f"data.turn needs square clips, not {stored[1:]}: set it to False")
    if any(wanted > there for wanted, there in zip(asked, stored)):
      raise ValueError(f"{self.directory} holds clips of (frames, height, width) {stored}, data asks for {asked}")
    if not 0 <= self.limit <= (there := len(self._source)) and self.split == "train":
      raise ValueError(f"data.limit is {self.limit}: at least 0, and at most the {there} clips of {self.directory}")
    if not self.strides or min(self.strides) < 1 or (self.frames - 1) * min(self.strides) >= stored[0]:
      raise ValueError(
        f"data.strides {tuple(self.strides)} of {self.frames} frames: at least 1, and one of them must fit into the "
        f"{stored[0]} that {self.directory} holds a clip"
      )

  @functools.cached_property
  def _builder(self) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(self.directory)

  @functools.cached_property
  def _source(self) -> Any:
    return self._builder.as_data_source(self.split)

  @property
  def stored(self) -> tuple[int, int, int]:
    """Frames, height and width of what is stored."""
    metadata = self._builder.info.metadata
    return (int(metadata["frames"]), *map(int, metadata["size"]))

  def splits(self) -> list[str]:
    return list(self._builder.info.splits)

  def labels(self) -> list[str]:
    return self._builder.info.features["label"].names

  def fps(self) -> float:
    return float(self._builder.info.metadata["fps"]) / min(self.strides)

  def rule(self) -> dict[str, Any]:
    """How clips are made of what was recorded, or rendered: for the cards of figures."""
    offset = "drawn for each position" if self.split == "train" else "the start of each stored clip"
    return {"offset": offset, "stored": dict(self._builder.info.metadata)}

  def __len__(self) -> int:
    return self.limit if self.limit and self.split == "train" else len(self._source)

  def fingerprint(self) -> str:
    """A hash of what the data set is said to hold, of its files' names and sizes, and of the first clips of `split`."""
    return self._digest({name: value for name, value in self.batch(0).items() if name in DIGESTED})

  def content(self) -> str:
    """As `fingerprint`, of what is stored and of `size`, however it is read: two experiments may share what is made of
    it."""
    return self._digest(self.records(np.arange(min(len(self), 8))))

  def _digest(self, batch: Batch) -> str:
    digest = hashlib.sha256()
    for name in ("dataset_info.json", "features.json", "manifest.json"):
      if os.path.exists(path := os.path.join(self.directory, name)):
        digest.update(pathlib.Path(path).read_bytes())
    for entry in sorted(os.scandir(self.directory), key=lambda entry: entry.name):
      digest.update(f"{entry.name} {entry.stat().st_size}".encode() if "array_record" in entry.name else b"")
    for value in batch.values():
      digest.update(repr(value.tolist()).encode() if value.dtype.kind == "U" else value.tobytes())
    return digest.hexdigest()[:16]

  def read(self, positions: np.ndarray) -> Batch:
    """ "video" (n f h w 3) uint8, "label" (n,) int32, "fps" (n,) float32, "id" and "caption" (n,) of text, "captions"
    (n,) all that a clip has, one a line, of which "caption" is drawn in training, and the first elsewhere; where sound
    is stored, and no other stride than 1 is drawn, "sound" (n s) int16 of the same time."""
    index = shuffled(positions, len(self), self.seed if self.split == "train" else 0)
    examples = self._source.__getitems__(index.tolist())
    clips = [self._clip(example["video"], int(position)) for example, position in zip(examples, positions)]
    stored = float(self._builder.info.metadata["fps"])
    fps = np.array([stored / stride for _, stride, _ in clips], np.float32)
    batch = {"video": np.stack([clip for clip, _, _ in clips]), "fps": fps, **described(examples)}
    batch |= captioned(batch["caption"], self.split, self.seed, positions)
    if "sound" in examples[0] and tuple(self.strides) == (1,):
      length = sound.samples(self.frames, stored)
      pairs = zip(examples, clips)
      batch["sound"] = np.stack([sound.cut(example["sound"], start / stored, length) for example, (*_, start) in pairs])
    return batch

  def dropped(self) -> dict[str, int]:
    """How many files of the folder that it was made of gave no clips, by reason."""
    path = pathlib.Path(self.directory) / "manifest.json"
    return json.loads(path.read_text())["reasons"] if path.exists() else {}

  def captions(self) -> list[str]:
    """Of all clips of the split, in the order in which they are stored, several of one clip as lines; videos are not
    decoded."""
    import tensorflow_datasets as tfds

    source = self._builder.as_data_source(self.split, decoders={"video": tfds.decode.SkipDecoding()})
    return [source[number]["caption"].decode() for number in range(len(self))]

  def _clip(self, tall: np.ndarray, position: int) -> tuple[np.ndarray, int, int]:
    """A stored tall image (f h, w, 3) to a clip (f h w 3), its stride and first frame, every random choice keyed by the
    position alone."""
    frames, *size = self.stored
    clip, window = tall.reshape(frames, *size, 3), self.size
    if self.split != "train":
      top, left = ((there - asked) // 2 for there, asked in zip(size, window))
      stride = min(self.strides)
      return clip[: self.frames * stride : stride, top : top + window[0], left : left + window[1]], stride, 0
    rng = np.random.default_rng([self.seed, position])
    stride = 1
    if tuple(self.strides) != (1,):
      fitting = [each for each in self.strides if (self.frames - 1) * each < frames]
      stride = int(fitting[rng.integers(len(fitting))])
    start = rng.integers(frames - (self.frames - 1) * stride)
    clip = clip[start : start + (self.frames - 1) * stride + 1 : stride]
    clip = clip[:, :, ::-1] if self.flip and rng.random() < 0.5 else clip
    clip = np.rot90(clip, rng.integers(4), axes=(1, 2)) if self.turn else clip
    if tuple(clip.shape[1:3]) != tuple(window):
      top, left = (rng.integers(there - asked + 1) for there, asked in zip(clip.shape[1:3], window))
      clip = clip[:, top : top + window[0], left : left + window[1]]
    return clip, stride, int(start)

  def records(self, index: np.ndarray) -> Batch:
    """What is stored at `index` (n,) of the split, whole and unchanged, but for frames cut to `size` in their middle:
    "video" (n f h w 3), and as `read`, but for "fps"."""
    frames, *stored = self.stored
    top, left = ((there - asked) // 2 for there, asked in zip(stored, self.size))
    cut = np.s_[:, :, top : top + self.size[0], left : left + self.size[1]]
    examples = self._source.__getitems__(index.tolist())
    videos = np.stack([example["video"].reshape(frames, *stored, 3) for example in examples])
    heard = {"sound": np.stack([example["sound"] for example in examples])} if "sound" in examples[0] else {}
    return {"video": videos[cut], **described(examples), **heard}

  def clip(self, path: str, fps: float | None = None) -> np.ndarray:
    """A user's video or picture file as the data set's clips were made, or at another rate: (f h w 3) uint8, at most
    `frames` frames."""
    from data_pipelines.video import read_clip

    return read_clip(path, frames=self.frames, size=tuple(self.size), fps=fps or self.fps())


def described(examples: Sequence[dict[str, Any]]) -> Batch:
  """All of stored examples but their videos."""
  text = lambda name: np.array([example[name].decode() for example in examples])
  label = np.array([example["label"] for example in examples], np.int32)
  return {"label": label, "id": text("id"), "caption": text("caption")}


@dataclasses.dataclass
class SimulatedClips(Clips):
  """Clips of the simulated set `name`, rendered on first use, wherever that is."""

  rendered: ClassVar[bool] = True

  @functools.cached_property
  def directory(self) -> str:
    return os.fspath(simulated.prepare(self.name, self.data_dir, self.cache))
