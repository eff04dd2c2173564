import numpy as np
import pytest
from test_leakage import draw

from vdt.evals import Run, controls, pixels
from vdt.evals.fvmd import FVMD, STILL, summary, tracks


def test_points_go_where_the_image_goes():
  """A texture that moves by (1.5, -0.5) px a frame, in its middle."""
  rng = np.random.default_rng(0)
  import cv2

  big = cv2.GaussianBlur(rng.uniform(-1, 1, (96, 96, 3)).astype(np.float32), (0, 0), 2) * 3
  video = np.stack(
    [cv2.warpAffine(big, np.float32([[1, 0, 1.5 * t], [0, 1, -0.5 * t]]), (96, 96))[16:80, 16:80] for t in range(6)]
  )
  steps = np.diff(tracks(np.clip(video, -1, 1)), axis=0).reshape(5, 8, 8, 2)[:, 2:6, 2:6]
  np.testing.assert_allclose(np.median(steps, axis=(0, 1, 2)), (1.5, -0.5), atol=0.1)


def test_a_summary_says_where_and_how_much():
  right = np.broadcast_to(np.array([2.0, 0.0]), (4, 9, 2))
  sizes = lambda steps: np.exp(summary(steps)[8:]) - STILL
  np.testing.assert_allclose(sizes(right), (2, 2, 0), atol=1e-9)
  assert summary(right)[:8].sum() == pytest.approx(2 / (2 + STILL))
  assert summary(right)[:8] @ summary(-right)[:8] == 0, "other directions, in other bins"
  shaking = right + np.array([0.5, -0.5, 0.5, -0.5])[:, None, None]
  assert sizes(shaking)[2] == pytest.approx(0.5)


def test_half_a_pixel_of_shaking_is_seen():
  videos = pixels(draw(48, 0, size=32))

  class Data:
    batch_size, split = 48, "test"

    def __len__(self):
      return 48

    def batch(self, step):
      return {"video": np.rint((videos + 1) * 127.5).astype(np.uint8)}

  shaken = controls.jitter(pixels(draw(24, 1, size=32)), 0.5)
  run = Run(None, 1, lambda split: Data(), lambda count, **_: shaken[:, None])
  found = FVMD(count=24, controls=("frozen",))(run)
  for row in ("velocity distance", "acceleration distance"):
    assert found[row]["samples"] > 5 * found[row]["real floor"], row
    assert found[f"{row} low"]["samples"] > found[f"{row} high"]["real floor"], row
  assert found["velocity distance"]["frozen"] > found["velocity distance"]["real floor"]
