"""Captions to the numbers of their pieces, by sentencepiece (arXiv:1808.06226)."""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece

PADDING, END, UNKNOWN = 0, 1, 2
"""Pieces of the models that are trained here, numbered as T5's are."""


class Tokenizer:
  """A sentencepiece model, from the bytes of its file. ValueError if they are none, or have no end of text.

  `len` is the size of its vocabulary.
  """

  def __init__(self, model: bytes):
    self.model = model
    self.processor = sentencepiece.SentencePieceProcessor()
    try:
      self.processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
      raise ValueError("this is no sentencepiece model: name a .model file") from error
    if self.processor.eos_id() < 0:
      raise ValueError("this sentencepiece model has no piece for the end of a text: train one with eos_id")

  def __len__(self) -> int:
    return self.processor.vocab_size()

  def ids(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of pieces (n, length) int32 and which are there (n, length): each text, cut where it is longer, its end,
    and padding."""
    ids = np.full((len(texts), length), max(self.processor.pad_id(), 0), np.int32)
    seen = np.zeros((len(texts), length), bool)
    for row, pieces in enumerate(self.processor.encode(list(texts))):
      pieces = [*pieces[: length - 1], self.processor.eos_id()]
      ids[row, : len(pieces)], seen[row, : len(pieces)] = pieces, True
    return ids, seen


def train(texts: Iterable[str], vocabulary: int) -> bytes:
  """A model of at most `vocabulary` pieces (byte pairs, arXiv:1508.07909), the same for the same texts; capitals are
  read as small letters, and for letters that are not in the texts there are bytes.

  ValueError where there is no text, or where so many pieces cannot hold the bytes.
  """
  told = [line for text in texts for line in text.splitlines() if line.strip()]
  if not told:
    raise ValueError("there are no captions to train a tokenizer on: ingest them again with --captions FILE")
  made = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(told),
      model_writer=made,
      model_type="bpe",
      vocab_size=vocabulary,
      hard_vocab_limit=False,
      byte_fallback=True,
      character_coverage=1.0,
      normalization_rule_name="nmt_nfkc_cf",
      num_threads=1,
      pad_id=PADDING,
      eos_id=END,
      unk_id=UNKNOWN,
      bos_id=-1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(f"no tokenizer of {vocabulary} pieces could be trained: {error}") from error
  return made.getvalue()


@dataclasses.dataclass
class Pieces:
  """How captions are read by `model.encoder`, which is trained along: see `vdt.config.Text`.

  length: pieces that are read of a caption, its end among them. file: a sentencepiece model; "" = one is trained on the
  captions of the training split, of at most `vocabulary` pieces.
  """

  length: int = 32
  file: str = ""
  vocabulary: int = 8192

  def check(self, model: Any) -> None:
    """ValueError for a model that does not read pieces."""
    if self.length < 2:
      raise ValueError(f"text.length is {self.length}: at least 2, a piece and the end")
    if not model.text or model.encoder is None:
      raise ValueError(
        "text=Pieces is for a model that reads: set model.text, model.encoder, and text in model.pattern"
      )

  def shapes(self, width: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"text": ((self.length,), "int32"), "text_seen": ((self.length,), "bool")}

  def make(self, data: Any) -> bytes:
    """The file, or one that is trained. FileNotFoundError or ValueError where neither can be had."""
    if not self.file:
      return train(data.captions(), self.vocabulary)
    try:
      return pathlib.Path(self.file).read_bytes()
    except OSError as error:
      raise FileNotFoundError(f"text.file {self.file} cannot be read ({error.strerror}): name a .model file") from error

  def open(self, kept: bytes, model: Any) -> Callable[[Sequence[str]], dict[str, np.ndarray]]:
    """Captions to "text" (n l) and "text_seen" (n l). ValueError for more pieces than the model knows."""
    tokenizer = Tokenizer(kept)
    if len(tokenizer) > model.encoder.vocabulary:
      raise ValueError(
        f"the tokenizer has {len(tokenizer)} pieces, model.encoder.vocabulary is {model.encoder.vocabulary}: raise it, "
        f"or lower text.vocabulary"
      )
    return lambda captions: dict(zip(("text", "text_seen"), tokenizer.ids(captions, self.length)))
