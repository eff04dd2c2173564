"""All plans of what is given: what is exact, what joins, and what filling in would do as well."""

import jax
import numpy as np
import pytest

from vdt.diffusion import given
from vdt.evals import Run, pixels
from vdt.evals.plans import Plans, blended, nearest, seam

VIDEOS = np.stack(
  [np.linspace(start, start + 60, 8)[:, None, None, None] + np.zeros((8, 6, 6, 3)) for start in range(40)]
)
VIDEOS = (VIDEOS + 40 * np.random.default_rng(0).random((40, 1, 6, 6, 3))).astype(np.uint8)  # ever brighter


class Clips:
  split, frames, size, batch_size = "test", 8, (6, 6), 8

  def __len__(self):
    return 40

  def batch(self, step):
    index = np.arange(8 * step, 8 * step + 8) % 40
    return {"video": VIDEOS[index], "id": np.array([f"a{i}" for i in index])}


def table(make):
  plan = lambda count, task, split, given_frames: np.asarray(
    given.plan(task, jax.random.key(0), (count, 8, 6, 6), 1, given_frames)
  )

  def sample(count, task, split, given_frames, repeats=1, paste=True):
    truth = pixels(VIDEOS[:count])
    return np.repeat(make(truth, plan(count, task, split, given_frames), paste)[:, None], repeats, 1)

  return Plans(count=16, repeats=2)(Run(None, 1, lambda split: Clips(), sample, given=plan))


def test_the_truth_wins_and_what_is_wrong_shows():
  found = table(lambda truth, mask, paste: truth if paste else truth + 0.1)
  for name, row in found.items():
    assert row["samples"] == row["given, off"] == 0 and row["seam"] == 1, name
    assert row["before pasting"] == pytest.approx(0.1, rel=1e-4)
    assert row["copy-last"] > 0 and (row["better"] > 1e-3) == (name != "first and last")
  assert found["first and last"]["blend"] < 1e-4 < found["first and last"]["copy-last"], "a line is blended exactly"

  frozen = table(lambda truth, mask, paste: np.where(mask > 0, truth, truth[:, :1]))
  assert frozen["image to video"]["better"] == pytest.approx(0, abs=1e-6), "no better than the first frame again"
  assert frozen["backward"]["seam"] > 3
  off = table(lambda truth, mask, paste: truth + 0.2)
  assert all(row["given, off"] == pytest.approx(0.2, rel=1e-3) for row in off.values())


def test_filling_in():
  video = np.arange(5.0)[:, None, None, None] ** 2 + np.zeros((5, 4, 4, 1))
  ends = np.zeros((5, 4, 4, 1))
  ends[[0, 4]] = 1
  assert blended(video, ends)[:, 0, 0, 0].tolist() == [0, 4, 8, 12, 16]
  assert nearest(video, ends)[[0, 1, 3, 4], 0, 0, 0].tolist() == [0, 0, 16, 16]
  hole = np.ones((5, 4, 4, 1))
  hole[:, 1:3, 1:3] = 0
  flat = np.full((5, 4, 4, 3), 0.5)
  np.testing.assert_allclose(blended(flat, hole), 0.5, atol=0.02)
  np.testing.assert_array_equal(nearest(flat, hole), flat)
  assert seam(flat, hole) == 0 and seam(flat * hole, hole) > 0.05
