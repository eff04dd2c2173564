import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.diffusion import EDM, Gaussian, RectifiedFlow, Sampler, predictions
from vdt.diffusion.flow import resolution_shift
from vdt.diffusion.given import plan
from vdt.diffusion.guidance import guided, null_cond
from vdt.diffusion.solvers import coefficients

MEAN, STD = 0.7, 0.3
KEYS = jax.random.split(jax.random.key(0), 4)


def exact(path):
  """The exact network of `path` where x0 ~ N(MEAN, STD^2)."""
  mean, std = MEAN / path.scale, STD / path.scale

  def denoise(x, t, cond):
    alpha, sigma = (level[:, :, None, None, None] for level in path.levels(t))
    variance = alpha**2 * std**2 + sigma**2
    x0, noise = mean + alpha * std**2 * (x - alpha * mean) / variance, sigma * (x - alpha * mean) / variance
    raw = predictions.join(path.prediction, x0, noise, alpha, sigma)
    return jnp.concatenate([raw, raw], -1) if path.variance else raw

  return denoise


gaussian, gaussian_x0 = exact(RectifiedFlow()), exact(RectifiedFlow(prediction="x0"))

PATHS = {
  "flow": RectifiedFlow(),
  "flow, x0": RectifiedFlow(prediction="x0"),
  "flow, shifted": RectifiedFlow(shift=3.0),
  "linear, noise": Gaussian(),
  "linear, x0": Gaussian(prediction="x0"),
  "scaled linear, v": Gaussian("scaled_linear", "v", zero_terminal_snr=True, spacing="linspace"),
  "cosine, noise": Gaussian("cosine"),
  "cosine, v": Gaussian("cosine", "v", spacing="linspace"),
  "no signal at the end": Gaussian(prediction="v", zero_terminal_snr=True),
  "EDM": EDM(),
}


@pytest.mark.parametrize(
  "method, steps, more, tolerance",
  [
    ("euler", 400, {}, 0.012),
    ("heun", 100, {}, 0.004),
    ("heun", 100, {"churn": 0.3}, 0.006),
    ("ddim", 400, {"eta": 0.5}, 0.012),
    ("ddpm", 400, {}, 0.02),
    ("dpm++", 100, {}, 0.004),
    ("unipc", 100, {}, 0.004),
  ],
)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_gaussian_with_known_score_comes_back(path, method, steps, more, tolerance):
  """In the mean, and in the variance, which too few steps make too small, not too large."""
  cond = {"given": jnp.zeros((4, 4, 32, 32, 1))}
  sampler = Sampler(method, steps, **more)
  x = jax.jit(lambda keys: sampler.sample(path, exact(path), keys, jnp.zeros((4, 4, 32, 32, 3)), cond))(KEYS)
  assert float(x.mean()) == pytest.approx(MEAN, abs=tolerance)
  assert float(x.std()) == pytest.approx(STD, rel=3 * tolerance)


def test_a_video_depends_on_its_own_key_and_churn_draws_fresh_noise():
  """With no churn the end is a function of the first noise alone, so two samples that share it differ by churn only."""
  cond = {"given": jnp.zeros((4, 2, 4, 4, 1))}
  make = lambda keys, churn: Sampler("heun", 8, churn).sample(
    RectifiedFlow(), gaussian, keys, jnp.zeros((len(keys), 2, 4, 4, 3)), {"given": cond["given"][: len(keys)]}
  )
  for churn in (0.0, 0.4):
    np.testing.assert_allclose(make(KEYS, churn)[1:3], make(KEYS[1:3], churn), rtol=1e-6)
  still, churned = make(KEYS, 0.0), make(KEYS, 0.4)
  first = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (2, 4, 4, 3)))(KEYS)
  correlation = lambda x: np.corrcoef(np.ravel(x), np.ravel(first))[0, 1]
  assert correlation(still) > 0.999 and 0.0 < correlation(churned) < 0.9


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_churn_makes_the_later_time_of_the_same_path(path):
  """What x_t of one clean value becomes has the mean alpha x0 and the deviation sigma of a time that is later."""
  rows = coefficients(Sampler("euler", 20, churn=0.3), path)
  alpha, sigma = path.levels(path.grid(20)[:-1])
  np.testing.assert_allclose(rows["churn_x"] * alpha, rows["alpha"], atol=1e-6)
  np.testing.assert_allclose((rows["churn_x"] * sigma) ** 2 + rows["churn_noise"] ** 2, rows["sigma"] ** 2, atol=1e-6)
  with np.errstate(divide="ignore"):
    np.testing.assert_allclose(path.levels(np.float64(rows["time"])), (rows["alpha"], rows["sigma"]), atol=1e-6)
    grown = np.arctan(np.divide(rows["sigma"], rows["alpha"])) - np.arctan(1.3 * sigma / alpha)
  last = np.arctan2(*path.levels(np.ones(1))[::-1])
  where = np.arctan(1.3 * np.divide(sigma, alpha, out=np.full_like(sigma, np.inf), where=alpha > 0)) < last
  np.testing.assert_allclose(grown[where], 0, atol=1e-5)
  assert (rows["time"] <= 1).all() and where.sum() > 10


def test_no_noise_is_drawn_twice(monkeypatch):
  """Churn, the step's own noise and that of what was given, of the same step, are others."""
  numbers, fold_in = [], jax.random.fold_in
  monkeypatch.setattr(jax.random, "fold_in", lambda key, number: numbers.append(int(number)) or fold_in(key, number))
  monkeypatch.setattr(jax, "vmap", lambda function: lambda keys: jnp.stack([function(key) for key in keys]))
  cond, sampler = {"given": jnp.zeros((1, 2, 2, 2, 1))}, Sampler("ddim", 4, eta=1.0, churn=0.3, given="replacement")
  with jax.disable_jit():
    sampler.sample(Gaussian(), lambda x, time, t, cond=None: x, KEYS[:1], jnp.zeros((1, 2, 2, 2, 3)), cond)
  assert len(numbers) == len({*numbers}) >= 12


def test_predicting_x0_is_predicting_velocity():
  """The same loss from either, in particular the same weight for every time; given frames, at t = 0, do no harm."""
  x0, noise = MEAN + STD * jax.random.normal(jax.random.key(0), (2, 4, 8, 4, 4, 3))
  given = plan("prediction", jax.random.key(1), x0.shape[:4])
  for t in (0.06, 0.5, 1.0):
    loss = [
      RectifiedFlow(prediction=prediction).losses(denoise, x0, noise, jnp.full(4, t), {"given": given})
      for prediction, denoise in (("velocity", gaussian), ("x0", gaussian_x0))
    ]
    np.testing.assert_allclose(*loss, rtol=2e-4)


@pytest.mark.parametrize("task", ["prediction", "completion", "generation"])
def test_anomalies_depend_on_what_was_given_alone_and_lead_back(task):
  flow, x0 = RectifiedFlow(anomaly=4.0), jax.random.normal(jax.random.key(1), (2, 4, 4, 4, 3))
  given = plan(task, jax.random.key(2), x0.shape[:4], 1, 2)
  y, absolute = flow.relative(x0, given)
  np.testing.assert_allclose(absolute(y), x0, atol=1e-5)
  other, _ = flow.relative(jnp.where(given > 0, x0, 9.0), given)
  np.testing.assert_array_equal(jnp.where(given > 0, other, y), y)
  known = jnp.broadcast_to(given.max(1, keepdims=True), x0.shape) > 0
  spread = lambda x: np.asarray(x.std(1, keepdims=True) * jnp.ones_like(x))
  np.testing.assert_allclose(spread(y)[known], 4 * spread(x0)[known], rtol=1e-4)
  np.testing.assert_array_equal(y[~known], x0[~known])


def test_a_network_that_foresees_no_anomaly_gives_the_mean_of_what_was_given():
  x0, still = jax.random.normal(jax.random.key(1), (2, 4, 4, 4, 3)), lambda x, t, cond: jnp.zeros_like(x)
  cond = {"given": plan("prediction", jax.random.key(2), x0.shape[:4], 1, 2)}
  x = Sampler("heun", 4).sample(RectifiedFlow(prediction="x0", anomaly=4.0), still, KEYS[:2], x0, cond)
  np.testing.assert_allclose(x[:, 2:], jnp.repeat(x0[:, :2].mean(1, keepdims=True), 2, axis=1), atol=1e-5)
  np.testing.assert_array_equal(x[:, :2], x0[:, :2])


def test_network_evaluations_are_counted_and_heun_ends_with_euler():
  calls = []
  count = lambda x, t, cond: (jax.debug.callback(lambda: calls.append(1)), x)[1]
  video, cond = jnp.ones((1, 1, 2, 2, 1)), {"given": jnp.zeros((1, 1, 2, 2, 1))}
  for method, evaluations in (("euler", 5), ("heun", 9), ("ddpm", 5), ("dpm++", 5), ("unipc", 5)):
    calls.clear()
    jax.block_until_ready(Sampler(method, 5).sample(RectifiedFlow(), count, KEYS[:1], video, cond))
    jax.effects_barrier()
    assert len(calls) == evaluations


def test_what_was_given_comes_out_untouched():
  x0 = jax.random.normal(jax.random.key(1), (2, 4, 4, 4, 3))
  for task in ("prediction", "completion", "interpolation"):
    given = plan(task, jax.random.key(2), x0.shape[:4])
    x = Sampler("heun", 4, churn=0.3).sample(RectifiedFlow(), gaussian, KEYS[:2], x0, {"given": given})
    assert (np.where(given > 0, x == x0, x != x0)).all()


def test_guidance():
  """uncond + s (cond - uncond): 1 is off, and it acts only inside its interval; what was given is never dropped."""
  cond = {"given": jnp.ones((1, 2, 1, 1, 1)), "label": jnp.array([3]), "null": {"label": jnp.zeros(1, bool)}}
  denoise = lambda x, t, cond: x * jnp.where(cond["null"]["label"], 1.0, 2.0)[:, None, None, None, None]
  x, t = jnp.ones((1, 2, 1, 1, 1)), jnp.ones((1, 2))
  at = lambda scale, time, interval=(0.0, 1.0): guided(denoise, scale, interval)(x, jnp.float32(time), t, cond).mean()
  assert at(1.0, 0.5) == 2.0 and at(3.0, 0.5) == 4.0 and at(0.0, 0.5) == 1.0
  assert at(3.0, 0.9, (0.2, 0.8)) == 2.0 and at(3.0, 0.7, (0.2, 0.8)) == 4.0
  assert (null_cond(cond)["given"] == 1).all()


def test_times():
  flow = RectifiedFlow(shift=resolution_shift(4096, 1024))
  assert flow.shift == 2.0
  for shift in (1e-3, 0.3, 3.0, 1e3):  # rounded at no end
    assert (RectifiedFlow(shift=shift).shifted(1.0), RectifiedFlow(shift=shift).shifted(0.0)) == (1.0, 0.0)
  grid = np.asarray(flow.grid(10))
  assert grid[0] == 1 and grid[-1] == 0 and (np.diff(grid) < 0).all() and grid[5] == pytest.approx(2 / 3)
  logits = jax.scipy.special.logit(RectifiedFlow(mean=-0.5, std=0.8).times(jax.random.key(0), 20_000))
  assert (float(logits.mean()), float(logits.std())) == pytest.approx((-0.5, 0.8), abs=0.02)


@pytest.mark.parametrize("method", ["euler", "heun", "ddpm", "dpm++", "unipc"])
def test_without_pasting_the_rest_is_the_same_and_what_was_given_is_the_networks(method):
  x0 = jax.random.normal(jax.random.key(1), (2, 4, 4, 4, 3))
  given = plan("prediction", jax.random.key(2), x0.shape[:4], 1, 2)
  pasted, raw = (
    Sampler(method, 4).sample(RectifiedFlow(), gaussian, KEYS[:2], x0, {"given": given}, paste)
    for paste in (True, False)
  )
  np.testing.assert_allclose(np.where(given > 0, 0, pasted), np.where(given > 0, 0, raw), atol=1e-6)
  assert (np.where(given > 0, raw == x0, False)).mean() < 0.1
