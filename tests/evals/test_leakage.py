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
    return {"video": videos, "id": np.array([f"{self.split}{number}#0" for number in at])}


def found(train, test, **fields):
  data = {"train": Data(train, "train", **fields), "test": Data(test, "test")}
  run = Run(None, 1, data.get, None)
  return Leakage(count=len(test))(run)


def test_a_planted_leak_is_found_and_a_clean_split_is_not_accused(capfd):
  """Five in a hundred, re-encoded, one of them a frame late: found, all of them and no other."""
  train, test = draw(300, 0), draw(100, 1)
  clean = found(train, test)
  assert clean["leaked"]["held-out"] <= 0.02 and clean["leaked"]["training"] <= 0.02
  assert clean["leaked"]["copies"] >= 0.98 and clean["separable"]["copies"] == 1
  capfd.readouterr()
  copies = leakage.reencoded(pixels(test[[3, 20, 41, 60, 99]]), quality=75)
  copies[0] = np.roll(copies[0], 1, axis=0)
  planted = np.concatenate([train[:150], np.rint((copies + 1) * 127.5).astype(np.uint8), train[150:]])
  leaked = found(planted, test)
  assert leaked["leaked"]["held-out"] == pytest.approx(0.05, abs=0.011)
  said = capfd.readouterr().err
  for number, at in ((3, 150), (20, 151), (99, 154)):
    assert f"test{number}#0 of test is as near as a copy to train{at}#0 of train" in said
  flipped = found(planted, test, flip=True)
  assert flipped["leaked"]["held-out"] == leaked["leaked"]["held-out"], "training's own mirroring hides nothing"


def test_what_cannot_be_told_apart_is_said_to_be():
  """Where all clips are alike nothing is accused with more confidence than copies deserve."""
  rng = np.random.default_rng(0)
  alike = np.repeat(draw(1, 0), 60, axis=0).astype(int) + rng.integers(-2, 3, (60, 8, 48, 48, 3))
  alike = np.clip(alike, 0, 255).astype(np.uint8)
  assert found(alike[:40], alike[40:])["separable"]["copies"] == 0


def test_distances_are_of_the_best_shift():
  one = leakage.signature(pixels(draw(2, 0)))
  moved = np.concatenate([one[:, 3:], leakage.signature(pixels(draw(2, 5)))[:, :3]], axis=1)
  between = leakage.apart(one, moved)
  assert between[0, 0] == pytest.approx(0, abs=1e-3) and between[1, 1] == pytest.approx(0, abs=1e-3)
  assert between[0, 1] > 0.1
