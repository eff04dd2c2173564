"""Clips that an autoencoder has encoded once: memory-mapped, and read as fast as they can be copied."""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from data_pipelines import remote, sound
from data_pipelines.reading import Batch, Reader, by_threads, captioned, shuffled

NAMES = ("autoencoder", "source", "views", "frames", "shape", "apart", "sound", "counts", "shard", "mean", "std")
"""What latents.json says, and a reader needs."""


@dataclasses.dataclass
class Latents(Reader):
  """Latents of `frames` frames of `size` (height, width), of the clips of `source`, in `data_dir`/`name`.

  `vdt encode` makes them: for each split, shards SPLIT-NNNNN.npy of bfloat16 (as uint16) of shape (n, views, f, h, w,
  c), labels, ids, captions and, where clips have it, sound beside them, and latents.json, which says what they were
  made by. Record i is clip i of the source: with one seed both are read in one order.

  flip: both the clip and its mirror image are encoded, and one of these views is drawn for each position in training.
  source: the clips, as they are stored: longer ones are encoded whole. Where no latent depends on other frames than its
  own, `frames` may be fewer than are stored, from a start that is drawn; else they are the first.
  """

  name: str
  frames: int
  size: tuple[int, int]
  batch_size: int
  source: Any
  data_dir: str = "data"
  split: str = "train"
  seed: int = 0
  flip: bool = False
  prefetch: int = 2
  readers: int = 2
  cache: str | None = None

  @functools.cached_property
  def directory(self) -> str:
    """On this machine."""
    return remote.local(os.path.join(self.data_dir, self.name), self.cache, "latents.json")

  @property
  def views(self) -> int:
    return 2 if self.flip else 1

  @functools.cached_property
  def clips(self) -> Any:
    return dataclasses.replace(self.source, split=self.split, seed=self.seed, batch_size=self.batch_size)

  def wanted(self) -> dict[str, Any]:
    """What the experiment asks for, as latents.json has it, but for the autoencoder."""
    return {"source": dataclasses.replace(self.source, split="train").content(), "views": self.views}

  def check_source(self) -> None:
    """ValueError for a source that is none, or that would draw what latents cannot show any more."""
    if missing := [name for name in ("records", "stored", "splits", "content") if not hasattr(self.source, name)]:
      raise ValueError(f"data.source is {type(self.source).__name__}, without {', '.join(missing)}: it has to be Clips")
    drawn = {"flip": self.source.flip, "turn": self.source.turn, "strides": tuple(self.source.strides) != (1,)}
    drawn["limit"] = self.source.limit
    if wrong := [name for name, there in drawn.items() if there]:
      raise ValueError(
        f"data.source.{wrong[0]} does nothing to latents, which are made once: leave it (data.flip mirrors)"
      )

  @property
  def info_path(self) -> str:
    """Written when all shards are there: without it the data set is not whole."""
    return os.path.join(self.directory, "latents.json")

  def shard_paths(self, split: str, number: int) -> tuple[str, str, str]:
    """The latents of a shard, its labels, ids and captions, and its sound."""
    stem = os.path.join(self.directory, f"{split}-{number:05d}")
    return f"{stem}.npy", f"{stem}.rows.npz", f"{stem}.sound.npy"

  @functools.cached_property
  def info(self) -> dict[str, Any]:
    """latents.json. FileNotFoundError if it is not there, ValueError if it is damaged."""
    path = self.info_path
    try:
      with open(path) as file:
        found = json.load(file)
      return {name: found[name] for name in NAMES}
    except FileNotFoundError:
      raise FileNotFoundError(
        f"no latents at {self.directory}: make them with `vdt encode` and the experiment's --config"
      ) from None
    except (ValueError, LookupError, TypeError) as error:
      raise ValueError(
        f"{path} is damaged, or of another version ({error}): remove {self.directory} and encode again"
      ) from error

  def prepare(self) -> None:
    """FileNotFoundError or ValueError if the latents are not there, or not whole, or others than are asked for."""
    self.check_source()
    self.clips.prepare()
    info = self.info
    for name, value in self.wanted().items():
      if info[name] != value:
        raise ValueError(
          f"the latents in {self.directory} are stale: {name} is {info[name]!r} there, and {value!r} now; encode anew "
          f"under another data.name"
        )
    if self.split not in info["counts"]:
      raise ValueError(f"{self.directory} has no split {self.split!r}: choose from {', '.join(info['counts'])}")
    frames, *size, _ = info["shape"]
    if self.frames > frames or tuple(self.size) != tuple(size):
      asked = (self.frames, *self.size)
      raise ValueError(
        f"{self.directory} holds latents of (frames, height, width) {(frames, *size)}, data asks for {asked}"
      )
    _ = self._shards, self._rows, self._sounds  # all are there

  def __len__(self) -> int:
    return self.info["counts"][self.split]

  @functools.cached_property
  def _shards(self) -> list[np.ndarray]:
    """Memory maps of all shards of the split. ValueError for one that is not whole."""
    return self._mapped(0, (self.info["views"], *self.info["shape"]), np.uint16)

  @functools.cached_property
  def _sounds(self) -> list[np.ndarray]:
    """As `_shards`, of the sound; none where there is none."""
    return self._mapped(2, (self.info["sound"],), np.int16) if self.info["sound"] else []

  def _mapped(self, which: int, row: tuple[int, ...], dtype: Any) -> list[np.ndarray]:
    count, per = len(self), self.info["shard"]
    found = []
    for number in range(-(-count // per)):
      paths = self.shard_paths(self.split, number)
      path = paths[which]
      shape = (min(per, count - number * per), *row)
      try:
        shard = np.load(path, mmap_mode="r")
        if shard.shape != shape or shard.dtype != dtype:
          raise ValueError(f"{shard.dtype} {shard.shape}, not {np.dtype(dtype)} {shape}")
      except (OSError, ValueError, EOFError) as error:
        others = f", and {os.path.basename(paths[0])}" if which else ""
        raise ValueError(f"{path} is not whole ({error}): remove it{others}, and run vdt encode again") from error
      found.append(shard)
    return found

  @functools.cached_property
  def _rows(self) -> Batch:
    """Labels, ids and captions of all records; text as UTF-8. ValueError for a file that is not whole."""
    found = []
    for number in range(len(self._shards)):
      _, path, _ = self.shard_paths(self.split, number)
      try:
        with open(path, "rb") as opened, np.load(opened) as file:  # a path stays open if it is not a zip file
          found.append({name: file[name] for name in ("label", "id", "caption")})
      except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not whole ({error}): remove it and its .npy, and run vdt encode again") from error
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}

  def read(self, positions: np.ndarray) -> Batch:
    """ "video" (n f h w c) bfloat16, standardised latents; "label", "fps", "id", "caption", "captions" and "sound" as
    those of clips."""
    index = shuffled(positions, len(self), self.seed if self.split == "train" else 0)
    stored, per = self.info["shape"][0], self.info["shard"]
    latents = np.empty((len(index), self.frames, *self.info["shape"][1:]), np.uint16)
    views, starts = np.zeros(len(index), int), np.zeros(len(index), int)
    if self.split == "train" and (self.flip or (self.info["apart"] and stored > self.frames)):
      for row, position in enumerate(positions):
        rng = np.random.default_rng([self.seed, int(position)])
        views[row] = rng.integers(self.views)
        starts[row] = rng.integers(stored - self.frames + 1) if self.info["apart"] else 0
    for row, (record, view, start) in enumerate(zip(index.tolist(), views.tolist(), starts.tolist())):
      latents[row] = self._shards[record // per][record % per, view, start : start + self.frames]
    rows = {name: values[index] for name, values in self._rows.items()}
    rows["fps"] = np.full(len(index), self.fps(), np.float32)
    text = {name: np.strings.decode(rows[name]) for name in ("id", "caption")}
    text |= captioned(text["caption"], self.split, self.seed, positions)
    if self._sounds:
      length = sound.samples(1 + (self.frames - 1) * self.stride, self.fps())
      heard = (self._sounds[record // per][record % per] for record in index.tolist())
      rows["sound"] = np.stack([sound.cut(each, begin / self.fps(), length) for each, begin in zip(heard, starts)])
    return {"video": latents.view(ml_dtypes.bfloat16), **rows, **text}

  @property
  def stride(self) -> int:
    """Frames of pixels that a latent one stands for, but for the first of a causal autoencoder."""
    return (self.info["frames"] - 1) // max(self.info["shape"][0] - 1, 1) or 1

  @property
  def first_share(self) -> float:
    return 1 / self.stride

  def dropped(self) -> dict[str, int]:
    """As the source's."""
    return self.source.dropped() if hasattr(self.source, "dropped") else {}

  def captions(self) -> list[str]:
    """Of all records of the split."""
    return np.strings.decode(self._rows["caption"]).tolist()

  def ahead(self) -> Callable[..., Iterator[Batch]]:
    return by_threads

  def made_by(self) -> str:
    return self.info["autoencoder"]

  def standard(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (c,) of what the autoencoder makes of the training clips, which read latents are
    without."""
    return np.array(self.info["mean"], np.float32), np.array(self.info["std"], np.float32)

  def labels(self) -> list[str]:
    return self.clips.labels()

  def fps(self) -> float:
    return self.clips.fps()

  def clip(self, path: str, fps: float | None = None) -> np.ndarray:
    """A user's own file as pixels: see `Clips.clip`."""
    return self.clips.clip(path, fps)

  def rule(self) -> dict[str, Any]:
    return {"autoencoder": self.info["autoencoder"], "source": self.clips.rule()}

  def fingerprint(self) -> str:
    """A hash of what latents.json says and of the first records of `split`."""
    digest = hashlib.sha256(json.dumps(self.info, sort_keys=True).encode())
    for value in self.batch(0).values():
      digest.update(repr(value.tolist()).encode() if value.dtype.kind == "U" else value.tobytes())
    return digest.hexdigest()[:16]
