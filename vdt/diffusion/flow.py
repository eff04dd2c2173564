"""Rectified flow: a straight line from data to noise."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdt.diffusion.given import frame_times


def resolution_shift(tokens: int, base_tokens: int) -> float:
  """The shift that keeps the noise as destructive on `tokens` as it was on `base_tokens`: their ratio's root.

  Equation 23 of arXiv:2403.03206, with the tokens of a video (length times area) in place of an image's.
  """
  return math.sqrt(tokens / base_tokens)


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class RectifiedFlow:
  """x_t = (1 - t) x0 + t noise; the network's raw output is the velocity, noise - x0 (arXiv:2209.03003).

  mean, std: training times are logit-normal, t = sigmoid(mean + std n) (section 3.1 of arXiv:2403.03206).
  shift: moves times of training and sampling towards noise where > 1; see `resolution_shift`.
  """

  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0

  def shifted(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
    return self.shift * t / (1.0 + (self.shift - 1.0) * t)

  def times(self, key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    """Training times, one a video."""
    return self.shifted(jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (count,))))

  def grid(self, steps: int) -> Float[Array, " n"]:
    """The `steps + 1` sampling times from 1 to 0."""
    return self.shifted(jnp.linspace(1.0, 0.0, steps + 1))

  def corrupt(
    self, x0: Float[Array, "b f h w c"], noise: Float[Array, "b f h w c"], t: Float[Array, " b"]
  ) -> Float[Array, "b f h w c"]:
    """x_t, Equation 1 of arXiv:2209.03003."""
    t = t[:, None, None, None, None]
    return (1.0 - t) * x0 + t * noise

  def velocity(
    self, raw: Float[Array, "b f h w c"], xt: Float[Array, "b f h w c"], t: Float[Array, "b f"]
  ) -> Float[Array, "b f h w c"]:
    """dx/dt of the sampling ODE from the network's raw output, which for this family is it already."""
    return raw

  def losses(
    self,
    denoise: Callable,
    x0: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    t: Float[Array, " b"],
    cond: dict,
  ) -> Float[Array, " b"]:
    """Each video's mean squared error of the velocity over what was not given."""
    hidden = 1.0 - cond["given"]
    xt = jnp.where(hidden > 0, self.corrupt(x0, noise, t), x0)
    raw = denoise(xt, frame_times(t, cond["given"]), cond)
    error = jnp.square(raw.astype(jnp.float32) - (noise - x0)) * hidden
    amount = hidden.sum(axis=(1, 2, 3, 4)) * x0.shape[-1]
    return error.sum(axis=(1, 2, 3, 4)) / jnp.maximum(amount, 1.0)

  def loss(self, denoise: Callable, key: Key[Array, ""], x0: Float[Array, "b f h w c"], cond: dict) -> Float[Array, ""]:
    """The training loss: `losses` at drawn times and noise, each video weighing the same."""
    k_time, k_noise = jax.random.split(key)
    noise = jax.random.normal(k_noise, x0.shape)
    return self.losses(denoise, x0, noise, self.times(k_time, x0.shape[0]), cond).mean()
