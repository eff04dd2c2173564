"""Our solvers against diffusers' schedulers, step by step; see tests/parity/make_samplers.py."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.diffusion import Gaussian, RectifiedFlow, Sampler

GOLDEN = np.load(Path(__file__).parents[1] / "parity" / "samplers.npz")
LINEAR, COSINE = Gaussian(), Gaussian("cosine", "v")
CASES = {
  "ddim": (LINEAR, Sampler("ddim", 10)),
  "ddim eta": (LINEAR, Sampler("ddim", 10, eta=1.0)),
  "ddim v cosine": (COSINE, Sampler("ddim", 10)),
  "ddim v zero": (Gaussian(prediction="v", zero_terminal_snr=True), Sampler("ddim", 10)),
  "ddim x0": (Gaussian(prediction="x0"), Sampler("ddim", 10)),
  "ddim leading": (Gaussian(spacing="leading"), Sampler("ddim", 10)),
  "ddpm": (LINEAR, Sampler("ddpm", 10)),
  "ddpm learned": (Gaussian(variance=True, timesteps=10, betas=(0.01, 0.5)), Sampler("ddpm", 10)),
  "dpm++": (LINEAR, Sampler("dpm++", 10)),
  "dpm++ linspace": (LINEAR, Sampler("dpm++", 10)),
  "dpm++ v cosine": (COSINE, Sampler("dpm++", 10)),
  "unipc": (LINEAR, Sampler("unipc", 10)),
  "unipc linspace": (LINEAR, Sampler("unipc", 10)),
  "unipc v cosine": (COSINE, Sampler("unipc", 10)),
  "flow euler": (RectifiedFlow(shift=3.0), Sampler("euler", 10)),
  "flow heun": (RectifiedFlow(), Sampler("heun", 10)),
}
OWN_GRIDS = ("dpm++ linspace", "unipc linspace", "flow heun")
"""Where diffusers has other times than we would take: they are its, then."""


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_the_schedulers(name):
  path, sampler = CASES[name]
  grid, theirs = GOLDEN[f"{name}/grid"], GOLDEN[f"{name}/x"]
  if name in OWN_GRIDS:
    times = grid[[0, *range(1, len(grid), 2)]] if name == "flow heun" else grid
    kind = type("Given", (type(path),), {"grid": lambda self, steps: times})
    path = kind(**dataclasses.asdict(path))
  else:
    np.testing.assert_allclose(path.grid(10), grid, atol=1e-7)
  seen, predicts_noise = [], path.prediction == "noise"

  def network(x, t, cond):
    seen.append(np.asarray(x))
    t = t[:, :, None, None, None]
    raw = 0.9 * jnp.tanh(1.3 * x + t)
    if predicts_noise:
      alpha, sigma = path.levels(t)
      raw = sigma * x + 0.2 * alpha * raw
    return jnp.concatenate([raw, jnp.tanh(x)], -1) if path.variance else raw

  shape, keys = theirs.shape[1:], jax.random.split(jax.random.key(0), 2)
  with jax.disable_jit():
    last = sampler.sample(path, network, keys, jnp.zeros(shape), {"given": jnp.zeros((*shape[:4], 1))})
  assert len(seen) == len(theirs) - 1
  for mine, wanted in zip([*seen, last], theirs, strict=True):
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5)
  assert np.abs(theirs[0] - theirs[-1]).max() > 0.1
