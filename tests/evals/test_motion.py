import numpy as np
import pytest

from vdt.evals import Run
from vdt.evals.controls import CONTROLS, jitter
from vdt.evals.motion import Motion, motion


def drifting(count, frames=8, size=16, seed=0):
  """Smooth random textures in [-1, 1] that drift at 0.3 to 0.8 px a frame, each at its own constant velocity."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:size, :size]
  videos = np.zeros((count, frames, size, size, 3), np.float32)
  for video in videos:
    speed, angle = rng.uniform(0.3, 0.8), rng.uniform(0, 2 * np.pi)
    dx, dy = speed * np.cos(angle), speed * np.sin(angle)
    for _ in range(6):
      kx, ky = rng.uniform(-0.8, 0.8, 2)
      phase, colour = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.15, 3)
      for frame in range(frames):
        wave = np.sin(kx * (x - dx * frame) + ky * (y - dy * frame) + phase)
        video[frame] += wave[..., None].astype(np.float32) * colour.astype(np.float32)
  return videos


class Clips:
  split, batch_size = "test", 4

  def __init__(self, videos):
    self.videos = videos

  def __len__(self):
    return len(self.videos)

  def batch(self, step):
    return {"video": np.rint((self.videos[step * 4 : step * 4 + 4] + 1) * 127.5).astype(np.uint8)}


@pytest.fixture(scope="module")
def table():
  videos = drifting(24)
  frozen = np.repeat(videos[16:, :1], 8, axis=1)
  parts = dict.fromkeys(Run._fields, lambda *args, **kwargs: None)
  parts |= {"data": lambda split: Clips(videos[:16]), "sample": lambda count, **kwargs: frozen[:count, None]}
  return Motion(count=8)(Run(**parts))


def test_a_frozen_video_wins_on_warping_error_and_is_exposed_by_the_dynamic_degree(table):
  assert table["warping error"]["samples"] == table["warping error"]["frozen"] == 0
  assert table["warping error"]["real"] > 0
  assert table["dynamic degree"]["samples"] < 0.01 < 0.2 < table["dynamic degree"]["real"]


def test_each_corruption_raises_its_row(table):
  real = {row: max(values["real"], values["real floor"]) for row, values in table.items()}
  assert table["acceleration"]["jitter"] > 3 * real["acceleration"]
  assert table["flicker"]["flicker"] > 3 * real["flicker"]
  assert table["warping error"]["noised"] > 3 * real["warping error"]
  assert table["acceleration"]["shuffled"] > 3 * real["acceleration"]
  assert table["warping error"]["reversed"] == pytest.approx(table["warping error"]["real"], rel=0.3)


def test_flow_is_in_pixels_of_the_video_as_it_came():
  """A texture that moves by (0.6, 0) px a frame, at two sizes: the small one is enlarged for the flow."""
  for size in (16, 64):
    y, x = np.mgrid[:size, :size]
    frames = [np.sin(0.7 * (x - 0.6 * f)) * 0.5 + np.sin(0.5 * y + 0.4 * (x - 0.6 * f)) * 0.4 for f in range(6)]
    video = np.repeat(np.stack(frames)[..., None], 3, axis=-1).astype(np.float32)
    assert motion(video)["dynamic degree"] == pytest.approx(0.6, rel=0.15)


def test_controls_do_what_they_say():
  videos = drifting(3)
  ramp = np.broadcast_to(np.linspace(-0.5, 0.5, 16, dtype=np.float32)[:, None], (1, 5, 16, 16, 3)).copy()
  shifts = (ramp - jitter(ramp, 1.0))[0, :, 5, 5, 0] * 15  # the ramp changes by 1/15 a pixel
  assert np.abs(shifts).max() <= 1.01 and len(np.unique(shifts.round(3))) == 5
  for name, control in CONTROLS.items():
    corrupted = control(videos)
    assert corrupted.shape == videos.shape and corrupted.dtype == np.float32, name
    assert np.array_equal(corrupted, control(videos)) and not np.array_equal(corrupted, videos), name
  assert np.array_equal(np.sort(CONTROLS["shuffled"](videos), axis=1), np.sort(videos, axis=1))
  assert np.array_equal(CONTROLS["reversed"](videos)[:, 0], videos[:, -1])


def test_too_short_clips_are_refused():
  with pytest.raises(ValueError, match="at least 3 frames"):
    motion(np.zeros((2, 16, 16, 3), np.float32))
