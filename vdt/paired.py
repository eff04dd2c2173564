"""Comparing two arms run by run: what pairs share, their difference does not show."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 9_999
FEW = 5
"""Of fewer pairs a bootstrap knows too few different means to have tails."""


class Effect(NamedTuple):
  """mean: of the differences. low, high: 95 % interval. detectable: what so many pairs find in about 4 of 5 studies.

  gain: the variance of the effect if the runs were not paired, over its variance as they are; nan where both are zero.
  """

  mean: float
  low: float
  high: float
  detectable: float
  gain: float
  pairs: int

  @property
  def differs(self) -> bool:
    return self.low > 0 or self.high < 0


def compare(base: Float[np.ndarray, " n"], arm: Float[np.ndarray, " n"]) -> Effect:
  """The effect of `arm` over `base`, of n runs each, paired by their place.

  The interval is the symmetric bootstrap-t of the differences (Hall, Annals of Statistics 16:3, 1988), no narrower than
  Student's t, and Student's t where there are fewer than 5 pairs. One pair has no interval (nan). The least detectable
  effect is at a power of 80 %. ValueError if there are none, or not as many.
  """
  if base.shape != arm.shape or base.ndim != 1 or not len(base):
    raise ValueError(f"runs of shape {base.shape} and {arm.shape} are not pairs")
  differences, count = arm - base, len(base)
  mean = float(differences.mean())
  if count == 1:
    return Effect(mean, np.nan, np.nan, np.nan, np.nan, 1)
  error = float(differences.std(ddof=1)) / np.sqrt(count)
  error *= error > 1e-9 * np.abs(differences).max()  # the rest is rounding
  width = stats.t.ppf(0.975, count - 1)
  if count >= FEW and error:
    width = max(width, bootstrap_t(differences))
  power = stats.t.ppf(0.8, count - 1)
  half, least = float(width * error), float((width + power) * error)
  return Effect(mean, mean - half, mean + half, least, float(gain(base, arm)), count)


def bootstrap_t(differences: Float[np.ndarray, " n"]) -> float:
  """The 95 % quantile of the size of Student's t over resamples, but for those of one value alone."""
  index = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
  drawn = differences[index]
  error = drawn.std(1, ddof=1) / np.sqrt(len(differences))
  some = error > 1e-9 * np.abs(differences).max()
  return float(np.quantile(np.abs(drawn.mean(1) - differences.mean())[some] / error[some], 0.95))


def gain(base: Float[np.ndarray, "*s n"], arm: Float[np.ndarray, "*s n"]) -> Float[np.ndarray, "*s"]:
  """The variance of the difference of unpaired runs over that of paired ones, along the last axis."""
  apart = base.var(-1, ddof=1) + arm.var(-1, ddof=1)
  together = (arm - base).var(-1, ddof=1)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.asarray(apart / together)
