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

from vdt import text_encoder
from vdt.config import Mesh
from vdt.encode import put

Arrays = dict[str, np.ndarray]


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
    self.store([line for text in data.captions() for line in text.split("\n")])
    return json.dumps({"encoder": self.encoder.fingerprint, "name": self.encoder.name}).encode()

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
      tokens = np.load(path.with_suffix(".npy"), mmap_mode="r")
      found |= {caption: (row, count) for row, (caption, count) in zip(tokens, json.loads(path.read_text()))}
    return found

  def store(self, captions: Sequence[str]) -> None:
    """Makes and keeps what is missing of these; a process that is killed here leaves nothing that counts."""
    new = self.learn(captions)
    if new:
      path, content = self.place / f"{uuid.uuid4().hex}.npy", io.BytesIO()
      np.save(content, np.stack([self.known[caption][0] for caption in new]))
      put(path, content.getbuffer())
      put(path.with_suffix(".json"), json.dumps([(caption, self.known[caption][1]) for caption in new]).encode())

  def learn(self, captions: Sequence[str]) -> list[str]:
    """Those that were missing, each once; now they are known here."""
    new = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
    if new:
      with alone():
        tokens, seen = self.encoder.encode(new, self.length)
      tokens = tokens.astype(ml_dtypes.bfloat16).view(np.uint16)
      self.known.update({caption: (row, int(there.sum())) for caption, row, there in zip(new, tokens, seen)})
    return new

  def read(self, captions: Sequence[str]) -> Arrays:
    """See `open`."""
    self.learn(captions)
    rows = [self.known[caption] for caption in captions]
    seen = np.arange(self.length) < np.array([count for _, count in rows])[:, None]
    return {"text": np.stack([row for row, _ in rows]).view(ml_dtypes.bfloat16), "text_seen": seen}
