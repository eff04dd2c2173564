"""PSNR and flicker where they are known."""

import numpy as np
import pytest
from short import get_config

from vdt.evals import Run, pixels
from vdt.evals.fidelity import Fidelity, flicker, psnr
from vdt.reconstruction import Moments


def test_psnr_and_flicker_of_known_errors(data_dir):
  config = get_config()
  config.data.data_dir, config.data.split = data_dir, "test"
  config.data.prepare()
  late = 0.2 * (np.arange(8) == 7)[None, :, None, None, None].astype(np.float32)  # 0.1 of 1, in the last of 8 frames
  run = Run(None, 1, lambda split: config.data, None, reconstruct=lambda videos: videos + late)
  table = Fidelity(count=16)(run)
  assert table["PSNR"]["frame 7"] == pytest.approx(20.0, abs=1e-4)
  assert table["PSNR"]["all"] == pytest.approx(20.0 + 10 * np.log10(8), abs=1e-4)
  assert table["PSNR"]["frame 0"] > 100
  assert table["still"]["mean"] == pytest.approx(0.1 * np.sqrt(7) / 8, abs=1e-5)
  assert psnr(-np.ones(3), np.ones(3)) == pytest.approx(0.0) and flicker(np.zeros((1, 2, 2, 2, 3))) == 0
  assert len(table["PSNR"]) == 2 + pixels(config.data.batch(0)["video"]).shape[1]


def test_moments_in_parts_are_those_of_the_whole():
  x = np.random.default_rng(0).normal(1e3, [1e-3, 1.0, 50.0], (40, 2, 3, 3)).astype(np.float32)
  moments = Moments()
  for part in (x[:1], x[1:30], x[30:]):
    moments.add(part)
  whole = x.reshape(-1, 3).astype(np.float64)
  np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12)
  np.testing.assert_allclose(moments.std, whole.std(0), rtol=1e-9)
