"""Rectified flow: a straight line from data to noise."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdt.diffusion.path import Path

SMALLEST = 0.05
"""Time below which the loss of a predicted x0 no longer grows as 1 / t^2 (section 4 of arXiv:2511.13720)."""


def resolution_shift(tokens: int, base_tokens: int) -> float:
  """The shift that keeps the noise as destructive on `tokens` as it was on `base_tokens`: their ratio's root.

  Equation 23 of arXiv:2403.03206, with the tokens of a video (length times area) in place of an image's.
  """
  return math.sqrt(tokens / base_tokens)


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class RectifiedFlow(Path):
  """x_t = (1 - t) x0 + t noise (arXiv:2209.03003); the loss is the squared error of the velocity, noise - x0.

  prediction: what the network's raw output is, "velocity", or "x0", from which the velocity follows. Clean pixels of a
  large patch lie near few dimensions and noise in all of them, so a narrow network learns x0 sooner (arXiv:2511.13720).
  mean, std: training times are logit-normal, t = sigmoid(mean + std n) (section 3.1 of arXiv:2403.03206).
  shift: moves times of training and sampling towards noise where > 1; see `resolution_shift`. anomaly: see `Path`.
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

  @property
  def measure(self) -> str:
    return "velocity"

  def shifted(self, t: Any) -> Any:
    return t / (t + (1.0 - t) / self.shift)  # exact at both ends

  def levels(self, t: Any) -> tuple[Any, Any]:
    """Equation 1 of arXiv:2209.03003."""
    return 1.0 - t, t

  def inverse(self, ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    with np.errstate(invalid="ignore"):
      return np.where(np.isinf(ratio), 1.0, ratio / (1.0 + ratio))

  def times(self, key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    return self.shifted(jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (count,))))

  def grid(self, steps: int) -> Float[np.ndarray, " n"]:
    return self.shifted(np.linspace(1.0, 0.0, steps + 1))

  def weight(self, t: Float[Array, " b"]) -> Float[Array, " b"]:
    return jnp.minimum(t / SMALLEST, 1.0) ** 2 if self.prediction == "x0" else jnp.ones_like(t)
