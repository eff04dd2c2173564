"""Captions as the tokens of a frozen encoder, each made once and kept for all runs that read so."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vdt import distributed, files, text_encoder
from vdt.config import Mesh

Arrays = dict[str, np.ndarray]
PART = 1024
"""Captions that are made and kept together: what a process that is killed loses."""


def alone() -> contextlib.AbstractContextManager:
  """A mesh of one device of this process, whatever mesh the model is on."""
  return jax.set_mesh(Mesh(data=1).build(jax.local_devices()[:1]))


@dataclasses.dataclass
class Frozen:
  """How captions are read by an encoder that is not trained: see `vdt.config.Text`.

  path: as `vdt.text_encoder.load` takes it. length: tokens that are read of a caption, its end among them. folder:
  where what is made of captions is kept, as bfloat16, by encoder and length: all that the training split has is made
  before the first step, what is missing there when it is needed.
  """

  path: str = text_encoder.MINILM
  length: int = 32
  folder: str = "data/captions"

  def check(self, model: Any) -> None:
    """ValueError for a model that does not read what an encoder makes."""
    if files.remote(self.folder):
      raise ValueError(f"text.folder is {self.folder}: captions are kept on a disk, name a folder there")
    if not model.text or getattr(model, "encoder", None) is not None:
      raise ValueError(
        "text=Frozen needs a model that reads: set model.text, and text in model.pattern, not its encoder"
      )

  def shapes(self, width: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"text": ((self.length, width), "bfloat16"), "text_seen": ((self.length,), "bool")}

  @functools.cached_property
  def encoder(self) -> text_encoder.TextEncoder:
    with alone():
      return text_encoder.load(self.path)

  def make(self, data: Any) -> bytes:
    """Makes what is missing of the training captions; a run keeps which encoder it was."""
    self.prepare(data)
    return json.dumps({"encoder": self.encoder.fingerprint, "name": self.encoder.name}).encode()

  def prepare(self, *sets: Any) -> None:
    """Makes and keeps what is missing of the captions of data sets; also when a run is resumed, elsewhere."""
    self.store([line for data in sets for text in data.captions() for line in text.split("\n")])

  def open(self, kept: bytes, model: Any) -> Callable[[Sequence[str]], Arrays]:
    """Captions to "text" (n l e) bfloat16 and "text_seen" (n l). ValueError for another encoder than the run's, or one
    of another width than the model reads."""
    was = json.loads(kept)
    if was["encoder"] != self.encoder.fingerprint:
      raise ValueError(
        f"this run reads captions by {was['name']} {was['encoder']}, text.path {self.path} is "
        f"{self.encoder.fingerprint}: put the other back"
      )
    if self.encoder.width != model.text:
      raise ValueError(f"{self.path} makes tokens of {self.encoder.width} numbers, model.text is {model.text}: set it")
    return self.read

  @property
  def place(self) -> pathlib.Path:
    return pathlib.Path(self.folder) / f"{self.encoder.fingerprint}-{self.length}"

  @functools.cached_property
  def known(self) -> dict[str, tuple[np.ndarray, int]]:
    """Tokens (l e) of each caption, as uint16, and how many of them are there."""
    found = {}
    for path in sorted(self.place.glob("*.json")):
      found |= part(path)
    return found

  def store(self, captions: Sequence[str]) -> None:
    """Makes and keeps what is missing of these, PART by PART, each process its own; then what others made of theirs is
    known, or made here as well where it lies on another machine's disk."""
    wanted = [*dict.fromkeys(captions)]
    self.keep(wanted[jax.process_index() :: jax.process_count()])
    if jax.process_count() > 1:
      distributed.barrier("captions are made")
      self.__dict__.pop("known", None)
      self.keep(wanted)

  def keep(self, captions: Sequence[str]) -> None:
    """Makes those that are not known, and writes them down."""
    new = self.missing(captions)
    for begin in range(0, len(new), PART):
      chunk = new[begin : begin + PART]
      tokens, counts = self.encoded(chunk)
      path, content = self.place / f"{uuid.uuid4().hex}.json", io.BytesIO()
      np.save(content, tokens)
      files.put(path.with_suffix(".npy"), content.getbuffer())
      files.put(path, json.dumps([*zip(chunk, counts)]).encode())
      self.known.update(part(path))

  def missing(self, captions: Sequence[str]) -> list[str]:
    return [caption for caption in dict.fromkeys(captions) if caption not in self.known]

  def encoded(self, captions: list[str]) -> tuple[np.ndarray, list[int]]:
    """As `known` has them."""
    with alone():
      tokens, seen = self.encoder.encode(captions, self.length)
    return tokens.astype(ml_dtypes.bfloat16).view(np.uint16), seen.sum(1).tolist()

  def read(self, captions: Sequence[str]) -> Arrays:
    """See `open`."""
    if new := self.missing(captions):
      self.known.update(zip(new, zip(*self.encoded(new))))
    rows = [self.known[caption] for caption in captions]
    seen = np.arange(self.length) < np.array([count for _, count in rows])[:, None]
    return {"text": np.stack([row for row, _ in rows]).view(ml_dtypes.bfloat16), "text_seen": seen}


def part(path: pathlib.Path) -> dict[str, tuple[np.ndarray, int]]:
  """What `Frozen.keep` wrote down at once, its tokens on the disk."""
  tokens = np.load(path.with_suffix(".npy"), mmap_mode="r")
  return {caption: (row, count) for row, (caption, count) in zip(tokens, json.loads(path.read_text()))}
