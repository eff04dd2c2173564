import numpy as np
import pytest

from vdt.evals import Run, pixels
from vdt.evals.controls import jitter
from vdt.evals.physics import Physics, flight, momentum_error, permanence_error
from vdt.evals.tracking import area_range, intact, track

SIZE, RADIUS, GRAVITY, RESTITUTION = 16, 2.2, 0.35, 0.7
RED, GREEN = (240, 48, 48), (48, 216, 72)


def render(positions, radius=RADIUS, colours=(RED,), size=SIZE, bar=None):
  """positions (f, n, 2) to a uint8 video of anti-aliased balls, a grey bar over columns `bar` before them."""
  points = (np.arange(size * 8) + 0.5) / 8 - 0.5
  video = np.full((len(positions), size, size, 3), (16.0, 16.0, 24.0))
  for frame, centres in zip(video, positions):
    for (x, y), colour in zip(centres, colours):
      inside = (points - x) ** 2 + (points[:, None] - y) ** 2 <= radius**2
      cover = inside.reshape(size, 8, size, 8).mean((1, 3))[..., None]
      frame += cover * (np.array(colour) - frame)
  if bar:
    video[:, :, bar[0] : bar[1]] = 128
  return np.rint(video).astype(np.uint8)


def bounce(rng, frames=8, substeps=50):
  """Track (f, 2) of a ball between the borders."""
  low, high = RADIUS - 0.5, SIZE - 0.5 - RADIUS
  position, speed = rng.uniform(low, [high, 0.7 * high]), rng.uniform([-1.5, -1], [1.5, 0.5])
  track = []
  for _ in range(frames):
    track.append(position.copy())
    for _ in range(substeps):
      position += (speed + np.array([0, GRAVITY / substeps / 2])) / substeps
      speed[1] += GRAVITY / substeps
      out = ((position < low) & (speed < 0)) | ((position > high) & (speed > 0))
      speed[out] *= -RESTITUTION
  return np.array(track)


class Clips:
  split, batch_size = "test", 16

  def __init__(self, videos):
    self.videos = videos

  def __len__(self):
    return len(self.videos)

  def batch(self, step):
    return {"video": self.videos[step * 16 : (step + 1) * 16]}


@pytest.fixture(scope="module")
def balls():
  rng = np.random.default_rng(0)
  tracks = np.stack([bounce(rng) for _ in range(96)])
  return tracks, np.stack([render(track[:, None]) for track in tracks])


@pytest.fixture(scope="module")
def table(balls):
  videos = balls[1]
  samples = jitter(pixels(videos[64:]), 0.25, seed=1)
  parts = dict.fromkeys(Run._fields, lambda *args, **kwargs: None)
  parts |= {"data": lambda split: Clips(videos[:64]), "sample": lambda count, **kwargs: samples[:count, None]}
  return Physics(count=32)(Run(**parts))


def test_tracker_finds_centres_to_a_twentieth_of_a_pixel(balls):
  tracks, videos = balls
  found = np.stack([track(video).position[:, 0] for video in pixels(videos)])
  assert np.abs(found - tracks).max() < 0.05


def test_known_motion_is_recovered_and_controls_are_exposed(table):
  assert table["gravity"]["real"] == pytest.approx(GRAVITY, rel=0.01)
  assert table["gravity error"]["real floor"] < 0.01
  assert table["trajectory residual"]["real"] < 0.02
  assert table["trajectory residual"]["jitter"] > 0.6
  assert 0.1 < table["trajectory residual"]["samples"] < 0.25
  assert table["gravity deviation"]["jitter"] > 0.2
  assert table["trajectory residual"]["shuffled"] > 0.8 and table["gravity deviation"]["shuffled"] > 0.9
  assert abs(table["gravity"]["frozen"]) < 0.01 and table["contacts"]["frozen"] == 0
  assert min(table["intact"][column] for column in ("real", "samples", "jitter", "shuffled")) > 0.95


def test_arrow_of_time_flips_under_reversal(table):
  loss = (1 - RESTITUTION**2) / (1 + RESTITUTION**2)
  assert table["arrow of time"]["real"] == pytest.approx(loss, abs=0.03)
  assert table["arrow of time"]["reversed"] == pytest.approx(-loss, abs=0.03)
  assert table["gravity"]["reversed"] == pytest.approx(GRAVITY, rel=0.01)
  assert "frozen" not in table["arrow of time"]


def test_residual_of_a_free_parabola_is_the_noise():
  rng = np.random.default_rng(0)
  times = np.arange(40.0)
  path = np.stack([20 + 2.0 * times, 20 + 0.5 * 0.1 * times**2 + times], axis=1)
  noisy = [path + 0.3 * rng.standard_normal(path.shape) for _ in range(20)]
  residual = np.mean([flight(p, 2.0, (200, 200)).residual for p in noisy])
  # two coordinates, 40 - 2 and 40 - 3 degrees of freedom
  assert residual == pytest.approx(0.3 * np.sqrt((38 + 37) / 40), rel=0.05)
  assert flight(path, 2.0, (200, 200)).gravity == pytest.approx(0.1, rel=1e-6)


def test_intact_notices_what_is_wrong():
  path = np.stack([np.linspace(3, 10, 8), np.linspace(4, 8, 8)], axis=1)[:, None]
  good = render(path)
  accepted = area_range([track(pixels(good))])

  def verdict(video):
    return intact(track(pixels(video)), *accepted)

  vanished, swollen, recoloured, joined = (good.copy() for _ in range(4))
  vanished[3] = vanished[3, -1, -1]
  swollen[5:] = render(path[5:], radius=RADIUS * 1.5)
  recoloured[5:] = render(path[5:], colours=(GREEN,))
  joined[4] = render(np.concatenate([path[4:5], [[[12.0, 13.0]]]], axis=1), radius=RADIUS, colours=(RED, RED))[0]
  assert verdict(good)
  assert not any(verdict(video) for video in (vanished, swollen, recoloured, joined))
  assert not verdict(render(path, radius=RADIUS * 1.5)), "constant, but not the size of the real ball"
  assert not verdict(np.full_like(good, 20)), "an empty clip"


def test_permanence_behind_an_occluder():
  times = np.arange(12.0)
  path = np.stack([4 + 2.0 * times, np.full(12, 14.0)], axis=1)[:, None]
  good = render(path, size=32, bar=(12, 20))
  late, gone = good.copy(), good.copy()
  late[6:] = render(path[6:] - [2.0, 0.0], size=32, bar=(12, 20))
  gone[6:] = render(path[6:] + 100, size=32, bar=(12, 20))
  tracks = [track(pixels(video), occluder=True) for video in (good, late, gone)]
  accepted = area_range(tracks[:1])
  assert permanence_error(tracks[0]) < 0.05
  assert permanence_error(tracks[1]) == pytest.approx(2.0, abs=0.05)
  assert permanence_error(tracks[2]) == pytest.approx(np.hypot(32, 32))
  assert intact(tracks[0], *accepted) and not intact(tracks[2], *accepted)


def test_momentum_across_a_collision():
  times = np.arange(10.0)
  before, after = np.minimum(times, 4.5), np.maximum(times - 4.5, 0)

  def error(first, second):
    x = np.stack([11.3 + 1.0 * before + first * after - 2.0, 22.7 - 1.0 * before + second * after - 2.0], axis=1)
    path = np.stack([x, np.full_like(x, 14.0)], axis=-1)
    return momentum_error(track(pixels(render(path, colours=(RED, GREEN), size=32)), objects=2), (32, 32))

  assert error(-1.0, 1.0) < 0.05  # equal masses change places
  assert error(0.0, 1.0) == pytest.approx(0.5, abs=0.05)  # half of the momenta has gone
  apart = render(np.array([[[6.0, 6.0], [24.0, 24.0]]] * 8), colours=(RED, GREEN), size=32)
  assert np.isnan(momentum_error(track(pixels(apart), objects=2), (32, 32)))


def test_what_cannot_be_fitted_is_refused():
  with pytest.raises(ValueError, match="gravity=False"):
    Physics(objects=2)
  with pytest.raises(ValueError, match="no object was found"):
    area_range([track(np.zeros((4, 16, 16, 3), np.float32))])
