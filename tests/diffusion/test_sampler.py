import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.diffusion import RectifiedFlow, Sampler
from vdt.diffusion.flow import resolution_shift
from vdt.diffusion.given import plan
from vdt.diffusion.guidance import guided, null_cond

MEAN, STD = 0.7, 0.3


def gaussian_x0(x, t, cond):
  """The exact E[x0 | x_t] where x0 ~ N(MEAN, STD^2)."""
  t = t[:, :, None, None, None]
  return MEAN + (1 - t) * STD**2 * (x - (1 - t) * MEAN) / ((1 - t) ** 2 * STD**2 + t**2)


def gaussian(x, t, cond):
  """The exact velocity E[noise - x0 | x_t] of the same."""
  s = t[:, :, None, None, None]
  return s * (x - (1 - s) * MEAN) / ((1 - s) ** 2 * STD**2 + s**2) - gaussian_x0(x, t, cond)


@pytest.mark.parametrize("method, steps, tolerance", [("euler", 400, 0.01), ("heun", 100, 0.004)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("prediction, denoise", [("velocity", gaussian), ("x0", gaussian_x0)])
def test_a_gaussian_with_known_velocity_comes_back(method, steps, tolerance, shift, prediction, denoise):
  noise = jax.random.normal(jax.random.key(0), (4, 4, 32, 32, 3))
  cond = {"given": jnp.zeros((4, 4, 32, 32, 1))}
  sampler, flow = Sampler(method, steps), RectifiedFlow(shift=shift, prediction=prediction)
  x = sampler.sample(flow, denoise, noise, jnp.zeros_like(noise), cond)
  assert float(x.mean()) == pytest.approx(MEAN, abs=tolerance)
  assert float(x.std()) == pytest.approx(STD, rel=3 * tolerance)


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


def test_network_evaluations_are_counted_and_heun_ends_with_euler():
  calls = []
  count = lambda x, t, cond: (jax.debug.callback(lambda: calls.append(1)), x)[1]
  noise, cond = jnp.ones((1, 1, 2, 2, 1)), {"given": jnp.zeros((1, 1, 2, 2, 1))}
  for method, evaluations in (("euler", 5), ("heun", 9)):
    calls.clear()
    jax.block_until_ready(Sampler(method, 5).sample(RectifiedFlow(), count, noise, noise, cond))
    jax.effects_barrier()
    assert len(calls) == evaluations


def test_what_was_given_comes_out_untouched():
  x0 = jax.random.normal(jax.random.key(1), (2, 4, 4, 4, 3))
  for task in ("prediction", "completion", "interpolation"):
    given = plan(task, jax.random.key(2), x0.shape[:4])
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    x = Sampler("heun", 4).sample(RectifiedFlow(), gaussian, noise, x0, {"given": given})
    assert (np.where(given > 0, x == x0, x != x0)).all()


def test_guidance():
  """uncond + s (cond - uncond): 1 is off, and it acts only inside its interval; what was given is never dropped."""
  cond = {"given": jnp.ones((1, 2, 1, 1, 1)), "label": jnp.array([3]), "null": jnp.zeros(1, bool)}
  denoise = lambda x, t, cond: x * jnp.where(cond["null"], 1.0, 2.0)[:, None, None, None, None]
  x, t = jnp.ones((1, 2, 1, 1, 1)), jnp.ones((1, 2))
  at = lambda scale, time, interval=(0.0, 1.0): guided(denoise, scale, interval)(x, jnp.float32(time), t, cond).mean()
  assert at(1.0, 0.5) == 2.0 and at(3.0, 0.5) == 4.0 and at(0.0, 0.5) == 1.0
  assert at(3.0, 0.9, (0.2, 0.8)) == 2.0 and at(3.0, 0.7, (0.2, 0.8)) == 4.0
  assert (null_cond(cond)["given"] == 1).all()


def test_times():
  flow = RectifiedFlow(shift=resolution_shift(4096, 1024))
  assert flow.shift == 2.0
  grid = np.asarray(flow.grid(10))
  assert grid[0] == 1 and grid[-1] == 0 and (np.diff(grid) < 0).all() and grid[5] == pytest.approx(2 / 3)
  logits = jax.scipy.special.logit(RectifiedFlow(mean=-0.5, std=0.8).times(jax.random.key(0), 20_000))
  assert (float(logits.mean()), float(logits.std())) == pytest.approx((-0.5, 0.8), abs=0.02)
