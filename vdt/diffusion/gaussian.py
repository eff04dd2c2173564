"""The Gaussian family: variance-preserving diffusions with a table of noise levels, and EDM's."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdt.diffusion import predictions
from vdt.diffusion.path import Path, Video

SCHEDULES = ("linear", "scaled_linear", "cosine")
SPACINGS = ("trailing", "leading", "linspace")


@functools.cache
def table(
  schedule: str, betas: tuple[float, float], timesteps: int, zero_terminal_snr: bool
) -> tuple[np.ndarray, np.ndarray]:
  """(alpha, sigma) at t = 0, 1 / timesteps, ..., 1, in float64; at 0 they are 1 and 0."""
  match schedule:
    case "linear":  # section 4 of arXiv:2006.11239
      steps = np.linspace(*betas, timesteps)
    case "scaled_linear":  # Stable Diffusion's
      steps = np.linspace(*np.sqrt(betas), timesteps) ** 2
    case "cosine":  # Equation 17 of arXiv:2102.09672
      curve = np.cos((np.linspace(0, 1, timesteps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
      steps = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
  alpha = np.sqrt(np.cumprod(1 - steps))
  if zero_terminal_snr:  # Algorithm 1 of arXiv:2305.08891
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
  alpha = np.concatenate([[1.0], alpha])
  return alpha, np.sqrt(1 - alpha**2)


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class Gaussian(Path):
  """x_t = alpha x0 + sigma noise with alpha^2 + sigma^2 = 1 and one of `timesteps` levels (arXiv:2006.11239).

  Timestep i of other implementations, from 0, is t = (i + 1) / timesteps; t = 0 is clean. Between two, the levels are
  interpolated. schedule: "linear", "scaled_linear" (both from betas[0] to betas[1]) or "cosine". prediction: "noise",
  "x0" or "v", whose squared error is the loss, weighted by min(SNR, min_snr) in x0 where min_snr > 0
  (arXiv:2303.09556). zero_terminal_snr: t = 1 is noise alone (arXiv:2305.08891), where min_snr leaves no weight.
  spacing: of the sampling times: "trailing" from t = 1, "leading" up from the first timestep, or "linspace" with both.
  variance: the network says where each step's variance lies between the least and the most it can be; its loss is the
  variational bound beside (section 3.1 of arXiv:2102.09672, where noise is predicted: x0 near t = 0 is too coarse for
  it). anomaly: see `Path`.
  """

  schedule: str = "linear"
  prediction: str = "noise"
  timesteps: int = 1000
  betas: tuple[float, float] = (1e-4, 0.02)
  zero_terminal_snr: bool = False
  min_snr: float = 0.0
  spacing: str = "trailing"
  variance: bool = False
  anomaly: float = 0.0

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f"unknown schedule {self.schedule!r}: choose from {', '.join(SCHEDULES)}")
    if self.prediction not in ("noise", "x0", "v"):
      raise ValueError(f"unknown prediction {self.prediction!r}: choose noise, x0 or v")
    if self.spacing not in SPACINGS:
      raise ValueError(f"unknown spacing {self.spacing!r}: choose from {', '.join(SPACINGS)}")
    if self.zero_terminal_snr and self.prediction == "noise":
      raise ValueError("zero_terminal_snr with prediction noise: at t = 1 noise says nothing of x0, choose v or x0")
    rising = len(self.betas) == 2 and 0 < self.betas[0] <= self.betas[1] < 1
    if self.timesteps < 2 or not (rising and self.min_snr >= 0 and self.anomaly >= 0):
      raise ValueError(f"{self}: timesteps at least 2, 0 < betas[0] <= betas[1] < 1, min_snr and anomaly at least 0")

  @property
  def table(self) -> tuple[np.ndarray, np.ndarray]:
    return table(self.schedule, tuple(self.betas), self.timesteps, self.zero_terminal_snr)

  def levels(self, t: Any) -> tuple[Any, Any]:
    knots = np.linspace(0, 1, self.timesteps + 1)
    interp = np.interp if isinstance(t, np.ndarray) else jnp.interp
    return tuple(interp(t, knots, column) for column in self.table)

  def inverse(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    alpha, sigma = self.table
    return np.interp(np.arctan(ratio), np.arctan2(sigma, alpha), np.linspace(0, 1, self.timesteps + 1))

  def times(self, key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    return jax.random.randint(key, (count,), 1, self.timesteps + 1) / self.timesteps

  def grid(self, steps: int) -> Float[np.ndarray, " n"]:
    """ValueError for more steps than there are timesteps."""
    if steps > self.timesteps:
      raise ValueError(f"sampler.steps is {steps}, the diffusion has {self.timesteps} timesteps: take at most as many")
    match "trailing" if steps == 1 else self.spacing:  # one step is from t = 1, or it would change nothing
      case "trailing":  # Table 2 of arXiv:2305.08891
        numbers = np.round(self.timesteps - np.arange(steps) * self.timesteps / steps)
      case "leading":
        numbers = np.arange(steps)[::-1] * (self.timesteps // steps) + 1
      case "linspace":
        numbers = np.round(np.linspace(0, self.timesteps - 1, steps))[::-1] + 1
    return np.append(numbers / self.timesteps, 0.0)

  def weight(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
    if not self.min_snr:
      return jnp.ones_like(t)
    alpha, sigma = self.levels(t)
    least = jnp.minimum(alpha**2, self.min_snr * sigma**2)  # of SNR, times sigma^2
    return least / {"x0": sigma**2, "noise": alpha**2, "v": 1.0}[self.prediction]

  def bound(self, raw: Video, extra: Video, x0: Video, xt: Video, t: Float[Array, " b"]) -> Video:
    """The divergence, in bits, of the true step back from the network's, which gives the variance its gradient alone.

    Equation 16 of arXiv:2102.09672. At the first timestep, whose true variance is 0, that of the second stands in.
    """
    column = lambda x: x[:, None, None, None, None]
    alpha, sigma = map(column, self.levels(t))
    found, _ = predictions.split(self.prediction, jax.lax.stop_gradient(raw), xt, alpha, sigma)
    later = jnp.maximum(t, 2 / self.timesteps)
    low, high = map(jnp.log, variances(*self.levels(later), *self.levels(later - 1 / self.timesteps)))
    alpha_before, sigma_before = map(column, self.levels(t - 1 / self.timesteps))
    step = alpha_before * (1 - (alpha * sigma_before / (alpha_before * sigma)) ** 2)  # how x0 moves the mean
    low, high = column(low), column(high)
    log_variance = low + 0.5 * (extra + 1) * (high - low)
    shift = jnp.square(step * (x0 - found))
    return 0.5 / math.log(2) * (log_variance - low - 1 + jnp.exp(low - log_variance) + shift * jnp.exp(-log_variance))


def variances(alpha: Any, sigma: Any, alpha_before: Any, sigma_before: Any) -> tuple[Any, Any]:
  """The least and the most variance of a step back from (alpha, sigma): with x0 known, and of the step forward.

  Equations 7 and 4 of arXiv:2006.11239 between any two times.
  """
  forward = sigma**2 - (alpha / alpha_before * sigma_before) ** 2
  return forward * (sigma_before / sigma) ** 2, forward


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class EDM(Path):
  """x = x0 + s noise with EDM's preconditioning, training levels and sampling grid (arXiv:2206.00364, table 1).

  Its scaled input, c_in x, is a variance-preserving x_t of x0 / data_std where tan(pi t / 2) = s / data_std, and its
  raw output, so scaled that the loss has unit weight, is v there but for its sign (section 3 of arXiv:2410.11081): so
  it is that. mean, std: of log s in training. least, most, rho: of the sampling grid.
  """

  mean: float = -1.2
  std: float = 1.2
  data_std: float = 0.5
  least: float = 0.002
  most: float = 80.0
  rho: float = 7.0
  anomaly: float = 0.0

  prediction = "v"

  def __post_init__(self):
    if not (self.data_std > 0 and 0 < self.least < self.most and self.rho > 0 <= min(self.std, self.anomaly)):
      raise ValueError(f"{self}: data_std, rho and least above 0, least below most, std and anomaly at least 0")

  @property
  def scale(self) -> float:
    return self.data_std

  def levels(self, t: Any) -> tuple[Any, Any]:
    xp = np if isinstance(t, np.ndarray) else jnp
    return xp.cos(math.pi / 2 * t), xp.sin(math.pi / 2 * t)

  def inverse(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.arctan(ratio) * 2 / math.pi

  def times(self, key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    level = jnp.exp(self.mean + self.std * jax.random.normal(key, (count,)))
    return jnp.arctan(level / self.data_std) * 2 / math.pi

  def grid(self, steps: int) -> Float[np.ndarray, " n"]:
    """Equation 5."""
    ends = np.array([self.most, self.least]) ** (1 / self.rho)
    levels = np.linspace(*ends, steps) ** self.rho
    return np.append(self.inverse(levels / self.data_std), 0.0)
