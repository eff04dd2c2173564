"""What was given, for a network that is told of nothing given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.diffusion import EDM, Gaussian, RectifiedFlow, Sampler, inpainting, predictions
from vdt.diffusion.given import plan

RHO, SIDE = 0.95, 64
KEYS = jax.random.split(jax.random.key(0), 3)
COSINE = Gaussian("cosine", "v")


def exact(path):
  """The exact network of `path` where a pixel's two frames are Gaussian, of variance 1 and correlation RHO."""

  def denoise(x, t, cond):
    assert cond["given"].shape == (*x.shape[:-1], 1)
    alpha, sigma = (level[:, :, None, None, None] for level in path.levels(t))
    gain = lambda variance: alpha * variance / (alpha**2 * variance + sigma**2)
    common, apart = (x + x[:, ::-1]) / 2, (x - x[:, ::-1]) / 2
    x0 = gain((1 + RHO) / path.scale**2) * common + gain((1 - RHO) / path.scale**2) * apart
    return predictions.join(path.prediction, x0, predictions.split("x0", x0, x, alpha, sigma)[1], alpha, sigma)

  return denoise


def second_frame(path, sampler):
  """Mean and deviation of SIDE^2 second frames where the first one is 1.5."""
  clips = jnp.stack([jnp.full((SIDE, SIDE, 1), 1.5), jnp.full((SIDE, SIDE, 1), 9.0)])[None]
  given = jnp.stack([jnp.ones((SIDE, SIDE, 1)), jnp.zeros((SIDE, SIDE, 1))])[None]
  made = jax.jit(lambda keys: sampler.sample(path, exact(path), keys, clips, {"given": given}))(KEYS[:1])
  np.testing.assert_array_equal(made[:, 0], clips[:, 0])
  return float(made[:, 1].mean()), float(made[:, 1].std())


def ways(method, steps, weights, **more):
  yield Sampler(method, steps, given="replacement", **more)
  yield from (Sampler(method, steps, given="reconstruction", given_weight=weight, **more) for weight in weights)


def test_a_gaussian_with_known_condition():
  """Exact are a mean of 1.425 and a deviation of 0.312: replacement falls short of the mean, too much weight overshoots
  and collapses. Within four standard errors of what an independent loop over matrices gave in as many steps."""
  found = [second_frame(COSINE, sampler) for sampler in ways("ddpm", 256, (1.0, 2.0, 5.0, 10.0))]
  wanted = [(1.085, 0.428), (1.270, 0.345), (1.386, 0.292), (1.532, 0.217), (1.575, 0.180)]
  error = np.array([each[1] for each in wanted]) / SIDE
  assert (np.abs(np.array(found)[:, 0] - np.array(wanted)[:, 0]) < 4 * error + 0.002).all(), found
  assert (np.abs(np.array(found)[:, 1] - np.array(wanted)[:, 1]) < 4 * error / 2**0.5 + 0.002).all(), found
  means, deviations = zip(*found)
  assert list(means) == sorted(means) and list(deviations) == sorted(deviations, reverse=True)
  assert means[2] < 1.425 < means[3]


@pytest.mark.parametrize("path", [RectifiedFlow(), RectifiedFlow(prediction="x0", shift=3.0), COSINE, EDM()], ids=str)
def test_paths_and_units_agree(path):
  """The same weight is the same guidance on any path, as its ODE is the same."""
  _, guided = (second_frame(path, sampler) for sampler in ways("heun", 48, (2.0,)))
  assert guided == pytest.approx((1.19, 0.345), abs=0.025)


@pytest.mark.parametrize(
  "method, more",
  [("ddpm", {}), ("ddim", {"eta": 0.5}), ("euler", {}), ("heun", {"churn": 0.3}), ("dpm++", {}), ("unipc", {})],
)
def test_every_method_is_guided_nearer(method, more):
  replaced, guided = (second_frame(COSINE, sampler)[0] for sampler in ways(method, 24, (2.0,), **more))
  assert 0.75 < replaced < 1.25 and 0.12 < guided - replaced and guided < 1.5


def mixing(x, t, cond):
  """A network in which everything depends on everything, and on its class, but a video on no other."""
  shift = jnp.where(cond["null"]["label"], 0.0, 0.3)[:, None, None, None, None]
  return jnp.tanh(x + jnp.roll(x, 1, 1) - jnp.roll(x, 1, 2) * x.mean((1, 2, 3, 4), keepdims=True) + shift)


CLIPS = jax.random.normal(jax.random.key(1), (3, 4, 4, 4, 2))


def sample(sampler, keys=KEYS, clips=CLIPS, task="completion"):
  given = plan(task, jax.random.key(2), CLIPS.shape[:4])[: len(clips)]
  cond = {"given": given, "null": {"label": jnp.zeros(len(clips), bool)}}
  made = jax.jit(lambda keys, clips: sampler.sample(RectifiedFlow(prediction="x0"), mixing, keys, clips, cond))
  return np.asarray(made(keys, clips)), np.asarray(jnp.broadcast_to(given > 0, CLIPS[: len(clips)].shape))


@pytest.mark.parametrize("method", ["ddpm", "heun"])
@pytest.mark.parametrize("task", ["prediction", "completion"])
def test_what_was_given_comes_out_and_what_was_not_decides_nothing(method, task):
  guided = Sampler(method, 4, given="reconstruction", given_weight=3.0, guidance_scale=2.0)
  made, given = sample(guided, task=task)
  np.testing.assert_array_equal(made[given], CLIPS[given])
  np.testing.assert_array_equal(made, sample(guided, clips=jnp.where(given, CLIPS, 7.0), task=task)[0])
  np.testing.assert_allclose(made[:2], sample(guided, KEYS[:2], CLIPS[:2], task)[0], atol=1e-5)
  other = sample(guided, KEYS[::-1], task=task)[0]
  assert (made != other)[[0, 2]][~given[[0, 2]]].all()
  unguided = dataclasses.replace(guided, guidance_scale=1.0)
  assert (made != sample(unguided, task=task)[0])[~given].any()


def test_the_network_is_told_of_nothing():
  """Neither by its mask nor by its times."""
  told = []

  def network(x, t, cond):
    jax.debug.callback(lambda *each: told.append(tuple(map(float, each))), t.min(), t.max(), cond["given"].max())
    return jnp.zeros_like(x)

  given = {"given": plan("prediction", KEYS[0], CLIPS.shape[:4], 1, 2)}
  made = Sampler("euler", 4, given="replacement").sample(RectifiedFlow(prediction="x0"), network, KEYS, CLIPS, given)
  jax.block_until_ready(made)
  jax.effects_barrier()
  assert sorted(told) == [(t, t, 0.0) for t in (0.25, 0.5, 0.75, 1.0)]


def test_no_weight_is_replacement():
  replaced = sample(Sampler("heun", 4, churn=0.3, given="replacement"))[0]
  weight = lambda weight: sample(Sampler("heun", 4, churn=0.3, given="reconstruction", given_weight=weight))[0]
  np.testing.assert_array_equal(weight(0.0), replaced)
  np.testing.assert_allclose(weight(1e-6), replaced, atol=1e-4)
  assert np.abs(weight(1.0) - replaced).max() > 1e-2


def test_equation_7():
  """Against its gradient written out; what was given is not moved, but known."""
  given = plan("completion", jax.random.key(2), CLIPS.shape[:4])
  cond, xt = {"null": {"label": jnp.zeros(3, bool)}}, jax.random.normal(KEYS[0], CLIPS.shape)
  x0, rest = inpainting.reconstructed(lambda x: (mixing(x, None, cond), 5), xt, CLIPS, given, jnp.float32(0.4), 3.0)
  error = lambda x: (given * jnp.square(CLIPS - mixing(x, None, cond))).sum()
  wanted = mixing(xt, None, cond) - 3.0 * 0.4 / 2 * jax.grad(error)(xt)
  np.testing.assert_allclose(x0, jnp.where(given > 0, CLIPS, wanted), atol=1e-5)
  assert rest == 5


def test_refused():
  for wrong in (dict(given="told"), dict(given="replacement", given_weight=2.0), dict(given_weight=-1.0)):
    with pytest.raises(ValueError, match=r"sampler\.given"):
      Sampler(**wrong)
  with pytest.raises(ValueError, match="anomaly"):
    Sampler(given="replacement").check(RectifiedFlow(anomaly=4.0))
  assert Sampler(given="reconstruction", given_weight=9.0).card()["sampler, the rest"]["given_weight"] == 9.0
