import numpy as np
import pytest

from vdt.evals import Run, pixels
from vdt.evals.memorisation import Memorisation, neighbours


class Clips:
  batch_size = 7  # does not divide the number of clips

  def __init__(self, videos, split="train"):
    self.videos, self.split = videos, split

  def __len__(self):
    return len(self.videos)

  def batch(self, step):  # the last batch goes on in the next epoch
    return {"video": self.videos[(step * 7 + np.arange(7)) % len(self.videos)]}


def draw(count, seed):
  """Random smooth videos, uint8."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(20, 236, (count, 2, 4, 4, 3))
  return np.repeat(np.repeat(np.repeat(coarse, 2, 1), 4, 2), 4, 3).astype(np.uint8)


def evaluated(samples):
  train, test = Clips(draw(100, 0)), Clips(draw(64, 1), "test")
  parts = dict.fromkeys(Run._fields, lambda *args, **kwargs: None)
  parts |= {"data": {"train": train, "test": test}.get, "sample": lambda count, **kwargs: samples[:count, None]}
  return Memorisation(count=32, neighbours=20)(Run(**parts))


def test_neighbours_are_those_of_the_definition():
  train, videos = draw(30, 0), pixels(draw(5, 1))
  videos[2] = pixels(train[29]) + np.float32(1e-4)  # nearly a copy: squares of products would cancel
  direct = np.sqrt(np.square(videos[:, None] - pixels(train)[None]).mean((2, 3, 4, 5), dtype=np.float64))
  found = neighbours(videos, Clips(train), nearest=8)
  assert np.allclose(found, np.sort(direct, axis=1)[:, :8], atol=1e-5)
  assert found[2, 0] == pytest.approx(1e-4, rel=1e-2)
  assert neighbours(videos, Clips(train), nearest=50).shape == (5, 30)


def test_copies_are_exposed_and_new_clips_are_not():
  rng = np.random.default_rng(2)
  new, copied = pixels(draw(32, 3)), pixels(draw(100, 0)[40:72])
  copied[:16] = new[:16]
  copied += rng.normal(0, 0.03, copied.shape).astype(np.float32)
  fresh, half = evaluated(new), evaluated(copied)
  assert fresh["copies"]["memorised"] == fresh["closer than held-out"]["memorised"] == 1
  assert fresh["ratio to held-out"]["memorised"] < 0.2 and fresh["ratio to held-out"]["held-out"] == 1
  assert fresh["copies"]["samples"] < 0.2 and fresh["copies"]["held-out floor"] < 0.2
  assert fresh["ratio to held-out"]["samples"] == pytest.approx(1, abs=0.05)
  assert 0.5 <= half["copies"]["samples"] < 0.65


def test_blur_shortens_distances_and_is_not_taken_for_copying():
  table = evaluated(pixels(draw(32, 3)))
  assert table["closer than held-out"]["blurred"] > 0.4 > 0.2 > table["closer than held-out"]["held-out floor"]
  assert table["copies"]["blurred"] < 0.2


def test_other_shapes_are_refused():
  with pytest.raises(ValueError, match="values against training clips"):
    neighbours(np.zeros((2, 4, 8, 8, 3), np.float32), Clips(draw(10, 0)))
