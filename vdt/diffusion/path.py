"""What all diffusions share: a path x_t = alpha x0 + sigma noise, and the loss along it."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdt.diffusion import predictions
from vdt.diffusion.given import frame_times, mean_given

Video = Float[Array, "b f h w c"]


class Path(abc.ABC):
  """A diffusion, but for its levels of noise. A subclass is a dataclass with the fields `prediction` and `anomaly`.

  It has `levels`, `inverse`, `times` and `grid`; where it likes, `weight` and `scale`. prediction: what the network
  puts out (`predictions`). measure: in what the loss is the squared error, by default in that. variance: the network
  puts out as many channels more, for the variance of a step back.
  anomaly: where > 0, a pixel that some frame gives is diffused as its difference from the mean of those frames, times
  this; what moves little against what was given is then as large as the noise (GenCast, arXiv:2312.15796, forecasts
  normalised differences so).
  """

  prediction: str
  anomaly: float
  variance: bool = False
  scale: float = 1.0
  """What a video is divided by before it is diffused."""

  @property
  def measure(self) -> str:
    return self.prediction

  @abc.abstractmethod
  def levels(self, t: Any) -> tuple[Any, Any]:
    """(alpha, sigma) at diffusion times `t`: of NumPy in float64, of JAX in float32."""

  @abc.abstractmethod
  def inverse(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The times at which sigma / alpha is `ratio`, or the last one where that is past the end."""

  @abc.abstractmethod
  def times(self, key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    """Training times, one a video."""

  @abc.abstractmethod
  def grid(self, steps: int) -> Float[np.ndarray, " n"]:
    """The `steps + 1` sampling times, falling, the last one 0."""

  def weight(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """What the loss of a time is multiplied by."""
    return jnp.ones_like(t)

  def draw(self, key: Key[Array, ""], x0: Video) -> tuple[Video, Float[Array, " b"]]:
    """The noise and the times of a training batch; the training loss is the mean of `losses` there."""
    k_time, k_noise = jax.random.split(key)
    return jax.random.normal(k_noise, x0.shape), self.times(k_time, x0.shape[0])

  def corrupt(self, x0: Video, noise: Video, t: Float[Array, " b"]) -> Video:
    """x_t = alpha x0 + sigma noise."""
    alpha, sigma = (level[:, None, None, None, None] for level in self.levels(t))
    return alpha * x0 + sigma * noise

  def relative(self, x0: Video, given: Float[Array, "b f h w 1"]) -> tuple[Video, Callable[[Array], Array]]:
    """The video as it is diffused (see `anomaly`, `scale`), and the way back. What was not given does not decide."""
    if not self.anomaly:
      return (x0, lambda x: x) if self.scale == 1 else (x0 / self.scale, lambda x: x * self.scale)
    mean, known = mean_given(x0, given)
    factor = (1.0 + (self.anomaly - 1.0) * known) / self.scale
    return (x0 - mean) * factor, lambda x: x / factor + mean

  def losses(self, denoise: Callable, x0: Video, noise: Video, t: Float[Array, " b"], cond: dict) -> Float[Array, " b"]:
    """Each video's mean squared error over what was not given, weighted; a batch's loss is their mean."""
    x0, _ = self.relative(x0, cond["given"])
    hidden = 1.0 - cond["given"]
    xt = jnp.where(hidden > 0, self.corrupt(x0, noise, t), x0)
    frames = frame_times(t, cond["given"])
    alpha, sigma = (level[:, :, None, None, None] for level in self.levels(frames))
    raw, extra = self.parts(denoise(xt, frames, cond).astype(jnp.float32), x0.shape[-1])
    found = predictions.convert(self.prediction, self.measure, raw, xt, alpha, sigma)
    error = jnp.square(found - predictions.join(self.measure, x0, noise, alpha, sigma))
    error *= self.weight(t)[:, None, None, None, None]
    if self.variance:
      error += self.bound(raw, extra, x0, xt, t)
    amount = hidden.sum(axis=(1, 2, 3, 4)) * x0.shape[-1]
    return (error * hidden).sum(axis=(1, 2, 3, 4)) / jnp.maximum(amount, 1.0)

  def parts(self, raw: Float[Array, "b f h w o"], channels: int) -> tuple[Video, Video | None]:
    """The prediction, and what is said of the variance, if anything. ValueError for another number of channels."""
    wanted = channels * (1 + self.variance)
    if raw.shape[-1] != wanted:
      raise ValueError(
        f"the network puts out {raw.shape[-1]} channels, this diffusion reads {wanted}: set model.variance and "
        f"diffusion.variance alike"
      )
    return (raw[..., :channels], raw[..., channels:]) if self.variance else (raw, None)
