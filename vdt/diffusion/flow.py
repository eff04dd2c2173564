"""Rectified flow: a straight line from data to noise."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdt.diffusion.given import frame_times, mean_given

SMALLEST = 0.05
"""Time below which the loss of a predicted x0 no longer grows as 1 / t^2 (section 4 of arXiv:2511.13720)."""


def resolution_shift(tokens: int, base_tokens: int) -> float:
  """The shift that keeps the noise as destructive on `tokens` as it was on `base_tokens`: their ratio's root.

  Equation 23 of arXiv:2403.03206, with the tokens of a video (length times area) in place of an image's.
  """
  return math.sqrt(tokens / base_tokens)


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class RectifiedFlow:
  """x_t = (1 - t) x0 + t noise (arXiv:2209.03003); the loss is the squared error of the velocity, noise - x0.

  prediction: what the network's raw output is, "velocity", or "x0", from which the velocity follows. Clean pixels of a
  large patch lie near few dimensions and noise in all of them, so a narrow network learns x0 sooner (arXiv:2511.13720).
  mean, std: training times are logit-normal, t = sigmoid(mean + std n) (section 3.1 of arXiv:2403.03206).
  shift: moves times of training and sampling towards noise where > 1; see `resolution_shift`.
  anomaly: where > 0, a pixel that some frame gives is diffused as its difference from the mean of those frames, times
  this; what moves little against what was given is then as large as the noise (GenCast, arXiv:2312.15796, forecasts
  normalised differences so).
  """

  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  prediction: str = "velocity"
  anomaly: float = 0.0

  def __post_init__(self):
    if self.prediction not in ("velocity", "x0"):
      raise ValueError(f"unknown prediction {self.prediction!r}: choose velocity or x0")
    if self.shift <= 0 or self.std < 0 or self.anomaly < 0:
      raise ValueError(f"{self}: shift is above 0, std and anomaly are at least 0")

  def shifted(self, t: Float[Array, " n"]) -> Float[Array, " n"]:
    return self.shift * t / (1.0 + (self.shift - 1.0) * t)

  def times(self, key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    """Training times, one a video."""
    return self.shifted(jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (count,))))

  def draw(
    self, key: Key[Array, ""], x0: Float[Array, "b f h w c"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, " b"]]:
    """The noise and the times of a training batch; the training loss is the mean of `losses` there."""
    k_time, k_noise = jax.random.split(key)
    return jax.random.normal(k_noise, x0.shape), self.times(k_time, x0.shape[0])

  def grid(self, steps: int) -> Float[Array, " n"]:
    """The `steps + 1` sampling times from 1 to 0."""
    return self.shifted(jnp.linspace(1.0, 0.0, steps + 1))

  def corrupt(
    self, x0: Float[Array, "b f h w c"], noise: Float[Array, "b f h w c"], t: Float[Array, " b"]
  ) -> Float[Array, "b f h w c"]:
    """x_t, Equation 1 of arXiv:2209.03003."""
    t = t[:, None, None, None, None]
    return (1.0 - t) * x0 + t * noise

  def renoise(
    self, xt: Float[Array, "b f h w c"], t: Float[Array, ""], churn: float, noise: Float[Array, "b f h w c"]
  ) -> tuple[Float[Array, "b f h w c"], Float[Array, ""]]:
    """x_t with fresh noise, and its later time: t / (1 - t) grows by the factor 1 + churn; t = 1 stays.

    Lines 5 and 6 of Algorithm 2 of arXiv:2206.00364, for x_t / (1 - t) and its noise level t / (1 - t).
    """
    grown = 1.0 + churn * t
    return (xt + t * math.sqrt((1.0 + churn) ** 2 - 1.0) * noise) / grown, (1.0 + churn) * t / grown

  def relative(
    self, x0: Float[Array, "b f h w c"], given: Float[Array, "b f h w 1"]
  ) -> tuple[Float[Array, "b f h w c"], Callable[[Array], Array]]:
    """The video as it is diffused (see `anomaly`), and the way back. What was not given of `x0` does not decide."""
    if not self.anomaly:
      return x0, lambda x: x
    mean, known = mean_given(x0, given)
    scale = 1.0 + (self.anomaly - 1.0) * known
    return (x0 - mean) * scale, lambda x: x / scale + mean

  def velocity(
    self, raw: Float[Array, "b f h w c"], xt: Float[Array, "b f h w c"], t: Float[Array, "b f"]
  ) -> Float[Array, "b f h w c"]:
    """dx/dt of the sampling ODE, noise - x0, from the network's raw output."""
    if self.prediction == "velocity":
      return raw
    return (xt - raw) / jnp.maximum(t, 1e-6)[:, :, None, None, None]  # t = 0 only where all is given

  def losses(
    self,
    denoise: Callable,
    x0: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    t: Float[Array, " b"],
    cond: dict,
  ) -> Float[Array, " b"]:
    """Each video's mean squared error of the velocity over what was not given; a batch's loss is their mean."""
    x0, _ = self.relative(x0, cond["given"])
    hidden = 1.0 - cond["given"]
    xt = jnp.where(hidden > 0, self.corrupt(x0, noise, t), x0)
    frames = frame_times(t, cond["given"])
    raw = denoise(xt, frames, cond).astype(jnp.float32)
    error = jnp.square(self.velocity(raw, xt, frames) - (noise - x0)) * hidden
    if self.prediction == "x0":
      error *= jnp.minimum(t / SMALLEST, 1.0)[:, None, None, None, None] ** 2
    amount = hidden.sum(axis=(1, 2, 3, 4)) * x0.shape[-1]
    return error.sum(axis=(1, 2, 3, 4)) / jnp.maximum(amount, 1.0)
