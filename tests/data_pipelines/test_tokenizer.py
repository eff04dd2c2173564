"""Captions to numbers: sentencepiece's own, and the same for the same captions."""

import io

import numpy as np
import pytest
import sentencepiece

from data_pipelines.scenes import simulate
from data_pipelines.tokenizer import END, PADDING, Pieces, Tokenizer, train

CAPTIONS = [simulate("sprites", "train", index, frames=2, size=16, seed=0).caption for index in range(60)]


def test_numbers_are_sentencepieces_own():
  model = train(CAPTIONS, 400)
  assert model == train(CAPTIONS, 400) == train(["\n".join(CAPTIONS)], 400), "also as the captions of one clip"
  theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=model), Tokenizer(model)
  ids, seen = ours.ids([*CAPTIONS, ""], 40)
  for caption, row, there in zip([*CAPTIONS, ""], ids, seen):
    wanted = [*theirs.encode(caption), END]
    assert row[: len(wanted)].tolist() == wanted and (row[len(wanted) :] == PADDING).all()
    assert there.sum() == len(wanted) and there[: len(wanted)].all()
  short, seen = ours.ids(CAPTIONS[:1], 4)
  assert short[0].tolist() == [*theirs.encode(CAPTIONS[0])[:3], END] and seen.all(), "cut, with its end"
  strange = ours.ids(["ein Haus im Schnee \N{SNOWMAN}"], 40)[0]
  assert theirs.decode([int(each) for each in strange[0] if each > END]) == "ein haus im schnee \N{SNOWMAN}", "by bytes"
  assert (ours.ids([CAPTIONS[0].capitalize()], 40)[0] == ids[0]).all()


def test_what_is_no_tokenizer_is_named(tmp_path):
  with pytest.raises(ValueError, match="no sentencepiece model"):
    Tokenizer(b"nonsense")
  made = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS), model_writer=made, vocab_size=60, eos_id=-1, hard_vocab_limit=False, minloglevel=2
  )
  with pytest.raises(ValueError, match="no piece for the end"):
    Tokenizer(made.getvalue())
  with pytest.raises(ValueError, match="no captions"):
    train(["", " "], 400)
  with pytest.raises(ValueError, match="60 pieces"):
    train(CAPTIONS, 60)
  with pytest.raises(FileNotFoundError, match="nowhere\\.model cannot be read"):
    Pieces(file=str(tmp_path / "nowhere.model")).make(None)
  assert np.array_equal(*(Tokenizer(train(CAPTIONS, 400)).ids(CAPTIONS, 8)[0] for _ in range(2)))
