import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.diffusion import EDM, Gaussian, RectifiedFlow, predictions
from vdt.diffusion.gaussian import SCHEDULES
from vdt.diffusion.predictions import PREDICTIONS

SHAPE = (4, 2, 3, 3, 2)
LEVELS = [path.levels(np.linspace(0.02, 0.98, 9)) for path in (RectifiedFlow(), EDM(), *map(Gaussian, SCHEDULES))]


@pytest.mark.parametrize("have, want", [*itertools.product(PREDICTIONS, PREDICTIONS)])
def test_every_prediction_says_the_same(have, want):
  """x_t and any one of them give x0 and the noise back, on all paths and at all levels."""
  x0, noise = jax.random.normal(jax.random.key(0), (2, *SHAPE))
  for levels in LEVELS:
    for alpha, sigma in zip(*levels):
      xt = alpha * x0 + sigma * noise
      raw = predictions.join(have, x0, noise, alpha, sigma)
      there = predictions.convert(have, want, raw, xt, alpha, sigma)
      for found, true in zip(predictions.split(want, there, xt, alpha, sigma), (x0, noise)):
        np.testing.assert_allclose(found, true, atol=2e-5 / min(alpha, sigma))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
def test_schedules(schedule, zero):
  """From clean to noise, falling, of unit variance; the numbers of the papers at the ends."""
  alpha, sigma = Gaussian(schedule, "v", zero_terminal_snr=zero).table
  assert (alpha[0], sigma[0]) == (1, 0) and len(alpha) == 1001
  assert (np.diff(alpha) < 0).all() and (np.diff(sigma) >= 0).all()
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
  first = 1 - alpha[1] ** 2
  assert first == pytest.approx({"linear": 1e-4, "scaled_linear": 1e-4, "cosine": 4.1e-5}[schedule], rel=0.02)
  if zero:
    assert alpha[-1] == 0
  else:
    assert alpha[-1] ** 2 == pytest.approx(
      {"linear": 4.04e-5, "scaled_linear": 7.33e-4, "cosine": 2.4e-9}[schedule], 0.02
    )


def test_grids():
  for spacing, ends in (("trailing", (1.0, 0.1)), ("leading", (0.901, 0.001)), ("linspace", (1.0, 0.001))):
    grid = Gaussian(spacing=spacing).grid(10)
    assert grid[-1] == 0 and (grid[0], grid[-2]) == pytest.approx(ends) and (np.diff(grid) < 0).all()
    np.testing.assert_array_equal(Gaussian(spacing=spacing).grid(1), (1.0, 0.0))
  with pytest.raises(ValueError, match=r"1001.*1000 timesteps"):
    Gaussian().grid(1001)
  ratio = np.divide(*EDM().levels(EDM().grid(18)[:-1])[::-1]) * EDM().data_std
  np.testing.assert_allclose((ratio[0], ratio[-1]), (80.0, 0.002), rtol=1e-6)  # of 18 steps, table 1


def test_edm_is_edm():
  """The denoiser made of its c_skip, c_out, c_in and F, and its loss weight, are what ours make of the same F."""
  path, (x0, noise) = EDM(), jax.random.normal(jax.random.key(0), (2, *SHAPE))
  network = lambda x: jnp.sin(2 * x)
  for level in (0.01, 0.5, 20.0):
    root = math.hypot(level, path.data_std)
    noised = x0 + level * noise
    theirs = path.data_std**2 / root**2 * noised + level * path.data_std / root * network(noised / root)
    t = path.inverse(np.array([level / path.data_std]))
    alpha, sigma = (each.item() for each in path.levels(t))
    xt = alpha * x0 / path.data_std + sigma * noise
    np.testing.assert_allclose(xt, noised / root, rtol=2e-5, atol=1e-5)
    ours, _ = predictions.split("v", -network(xt), xt, alpha, sigma)
    np.testing.assert_allclose(path.scale * ours, theirs, atol=3e-5)
    weight = (level**2 + path.data_std**2) / (level * path.data_std) ** 2
    wanted = weight * jnp.square(theirs - x0).mean(axis=(1, 2, 3, 4))
    cond = {"given": jnp.zeros((*SHAPE[:4], 1))}
    found = path.losses(lambda x, t, cond: -network(x), x0, noise, jnp.full(4, t[0], jnp.float32), cond)
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
def test_min_snr_weighs_x0_alike_whatever_is_predicted(prediction):
  """The same error of x0 costs min(SNR, 5) times its square (Equation 1 of arXiv:2303.09556)."""
  path, (x0, noise) = Gaussian("cosine", prediction, min_snr=5.0), jax.random.normal(jax.random.key(0), (2, *SHAPE))
  for t in (0.1, 0.3, 0.7):
    alpha, sigma = (each.item() for each in path.levels(np.array([t])))
    xt = alpha * x0 + sigma * noise
    wrong = x0 + 0.1
    raw = predictions.join(prediction, wrong, (xt - alpha * wrong) / sigma, alpha, sigma)
    loss = path.losses(
      lambda x, t, cond, raw=raw: raw, x0, noise, jnp.full(4, t), {"given": jnp.zeros((*SHAPE[:4], 1))}
    )
    np.testing.assert_allclose(loss, min((alpha / sigma) ** 2, 5) * 0.01, rtol=2e-3)


def test_the_learned_variance_is_best_where_it_is_true():
  """With x0 known the true variance is the least one; the mean gets no gradient from the bound."""
  path, (x0, noise) = Gaussian(variance=True), jax.random.normal(jax.random.key(0), (2, *SHAPE))
  cond, t = {"given": jnp.zeros((*SHAPE[:4], 1))}, jnp.full(4, 0.004)

  def loss(extra, off=0.0):
    raw = lambda x, t, cond: jnp.concatenate([noise + off, jnp.full_like(noise, extra)], -1)
    return path.losses(raw, x0, noise, t, cond).mean()

  bits = [float(loss(extra)) for extra in (-1.2, -1.0, -0.8, 1.0)]
  assert bits[1] == pytest.approx(0, abs=1e-5) and min(bits[0], bits[2], bits[3]) > bits[1] + 1e-7
  off = jnp.full((), 0.1)
  assert float(jax.grad(lambda off: loss(0.3, off))(off)) == pytest.approx(2 * 0.1, rel=1e-3)
  with pytest.raises(ValueError, match=r"2 channels.*4.*variance"):
    path.losses(lambda x, t, cond: x, x0, noise, t, cond)


def test_what_cannot_be():
  for message, make in {
    "schedule": lambda: Gaussian("cubic"),
    "prediction": lambda: Gaussian(prediction="velocity"),
    "zero_terminal_snr": lambda: Gaussian(zero_terminal_snr=True),
    "spacing": lambda: Gaussian(spacing="even"),
    "betas": lambda: Gaussian(betas=(0.1, 0.01)),
    "betas=": lambda: Gaussian(betas=(0.1, float("nan"))),
    "min_snr": lambda: Gaussian(min_snr=float("nan")),
    "data_std": lambda: EDM(data_std=0.0),
  }.items():
    with pytest.raises(ValueError, match=message):
      make()
