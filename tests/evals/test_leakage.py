"""Held-out clips that are in the training set, re-encoded, are found; clean ones are not accused."""

import dataclasses

import numpy as np
import pytest

from vdt.evals import Run, leakage, pixels
from vdt.evals.leakage import Leakage


def draw(count, seed, frames=8, size=48):
  """Blobs that move and grow over a background with a gradient, uint8."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:size, :size] / size
  made = np.empty((count, frames, size, size, 3))
  for clip in made:
    start, speed, colour = rng.uniform(0.1, 0.9, (4, 2)), rng.normal(0, 0.04, (4, 2)), rng.uniform(0, 200, (4, 3))
    tilt = rng.uniform(-60, 60, (2, 3))
    for number in range(frames):
      clip[number] = 120 + x[..., None] * tilt[0] + y[..., None] * tilt[1]
      for (cx, cy), each in zip(start + number * speed, colour):
        clip[number] += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.02)[..., None] * (each - 100)
  return np.clip(made, 0, 255).astype(np.uint8)


@dataclasses.dataclass
class Data:
  videos: np.ndarray
  split: str
  flip: bool = False
  batch_size: int = 7

  def __len__(self):
    return len(self.videos)

  def batch(self, step):
    at = (step * self.batch_size + np.arange(self.batch_size)) % len(self.videos)
    videos = self.videos[at][:, :, :, ::-1] if self.flip else self.videos[at]
    return {
      "video": videos,
      "id": np.array([f"{self.split}#{number}" if "#" in self.split else f"{self.split}{number}#0" for number in at]),
    }


def found(train, test, **fields):
  data = {"train": Data(train, "train", **fields), "test": Data(test, "test")}
  run = Run(None, 1, data.get, None)
  return Leakage(count=len(test))(run)


def accused(said):
  return {line.split()[1] for line in said.splitlines() if line.startswith("leakage: test")}


def test_a_planted_leak_is_found_and_a_clean_split_is_not_accused(capfd):
  """Five in a hundred, re-encoded, one of them a frame late: these, and no other."""
  train, test = draw(300, 0), draw(100, 1)
  clean = found(train, test)
  assert clean["told apart"]["held-out"] == 1 and clean["leaked"]["held-out"] == 0 == clean["leaked"]["training"]
  assert not accused(capfd.readouterr().err)
  planted = [3, 20, 41, 60, 99]
  copies = leakage.reencoded(pixels(test[planted]), quality=75)
  copies[0] = np.roll(copies[0], 1, axis=0)
  copies = np.rint((copies + 1) * 127.5).astype(np.uint8)
  for fields in ({}, {"flip": True}):  # training's own mirroring hides nothing
    leaked = found(np.concatenate([train[:150], copies, train[150:]]), test, **fields)
    assert leaked["leaked"]["held-out"] == 0.05 and leaked["leaked"]["training"] == 0
    said = capfd.readouterr().err
    assert accused(said) == {f"test{number}#0" for number in planted}
    for at, number in enumerate(planted):
      assert f"test{number}#0 of test is as near as a copy to train{150 + at}#0 of train" in said
  doubles = np.concatenate([train, train[:2], copies])  # a training set's own doubles hide nothing
  assert found(doubles, test)["leaked"]["held-out"] == 0.05


def test_a_leak_is_found_anywhere_in_a_longer_clip():
  one = leakage.signature(pixels(draw(3, 0)))
  longer = np.concatenate([leakage.signature(pixels(draw(3, 5, frames=16))), one], axis=1)
  np.testing.assert_allclose(np.diag(leakage.apart(one, longer)), 0, atol=1e-3)


def test_what_cannot_be_told_apart_is_said_to_be(capfd):
  """Where all clips are alike, of one source, or of one colour, nothing is accused."""
  rng = np.random.default_rng(0)
  alike = np.repeat(draw(1, 0), 60, axis=0).astype(int) + rng.integers(-2, 3, (60, 8, 48, 48, 3))
  alike = np.clip(alike, 0, 255).astype(np.uint8)
  made = found(alike[:40], alike[40:])
  assert made["told apart"]["held-out"] == 0 and made["leaked"]["training"] == 1
  assert not accused(capfd.readouterr().err)
  grey = np.full((20, 8, 48, 48, 3), 90, np.uint8)
  assert found(draw(40, 0), grey)["leaked"].get("held-out", 0) == 0
  one_source = {"train": Data(draw(40, 0), "train#"), "test": Data(draw(20, 1), "test")}
  made = Leakage(count=20)(Run(None, 1, one_source.get, None))
  assert np.isfinite([value for row in made.values() for value in row.values()]).all()


def test_distances_are_of_the_best_shift():
  one = leakage.signature(pixels(draw(2, 0)))
  moved = np.concatenate([one[:, 3:], leakage.signature(pixels(draw(2, 5)))[:, :3]], axis=1)
  between = leakage.apart(one, moved)
  assert between[0, 0] == pytest.approx(0, abs=1e-3) and between[1, 1] == pytest.approx(0, abs=1e-3)
  assert between[0, 1] > 0.1


def test_the_training_split_does_not_leak_into_itself():
  with pytest.raises(ValueError, match="name the split that is held out"):
    Leakage(split="train")
