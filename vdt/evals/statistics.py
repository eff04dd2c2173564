"""Distances between two sets of features, and how far they can be trusted at so many."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "_ d"]
RESAMPLES = 200


class Gaussian(NamedTuple):
  """A normal distribution: mean (d,), covariance (d, d), of so many clips."""

  mean: Float[np.ndarray, " d"]
  covariance: Float[np.ndarray, "d d"]
  count: int


def gaussian(features: Features) -> Gaussian:
  """The normal distribution of features, in float64. ValueError for fewer than two."""
  if len(features) < 2:
    raise ValueError(f"a covariance of {len(features)} clips: take at least 2")
  features = features.astype(np.float64)
  return Gaussian(features.mean(0), np.cov(features, rowvar=False).reshape(2 * features.shape[1:]), len(features))


def root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
  """The square root of a symmetric matrix without negative eigenvalues but for rounding."""
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet(one: Gaussian, other: Gaussian) -> float:
  """The squared Fréchet distance of two normal distributions (Dowson & Landau 1982): FVD, of I3D's logits.

  The trace of (A B)^1/2 is that of (A^1/2 B A^1/2)^1/2, which is symmetric, so no imaginary part has to be dropped.
  """
  half = root(one.covariance)
  values = np.linalg.eigvalsh(half @ other.covariance @ half)
  cross = np.sqrt(np.maximum(values, 0)).sum()
  apart = np.square(one.mean - other.mean).sum()
  return float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross)


def frechet_distance(one: Features, other: Features) -> float:
  """`frechet` of the distributions of two sets of features."""
  return frechet(gaussian(one), gaussian(other))


def kernel_distance(one: Features, other: Features) -> float:
  """The unbiased squared maximum mean discrepancy under (x y / d + 1)^3 (arXiv:1801.01401): KVD, of I3D's logits.

  It may be below zero where the two are alike. ValueError for fewer than two of either.
  """
  n, m = len(one), len(other)
  if min(n, m) < 2:
    raise ValueError(f"a kernel distance of {n} and {m} clips: take at least 2 of each")
  one, other = one.astype(np.float64), other.astype(np.float64)
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
  same = lambda x, count: (kernel(x, x).sum() - np.trace(kernel(x, x))) / (count * (count - 1))
  return float(same(one, n) + same(other, m) - 2 * kernel(one, other).mean())


def interval(
  distance: Callable[[Features, Features], float], real: Features, made: Features, resamples: int = RESAMPLES
) -> tuple[float, float]:
  """The 95 % interval of a distance from a bootstrap over the clips of both sets.

  A resample repeats clips, which moves a Fréchet distance up: the quantiles are of the differences from the resamples'
  mean, put around the distance itself.
  """
  rng = np.random.default_rng(0)
  draw = lambda x: x[rng.integers(0, len(x), len(x))]
  values = np.array([distance(draw(real), draw(made)) for _ in range(resamples)])
  low, high = np.quantile(values - values.mean(), [0.025, 0.975])
  whole = distance(real, made)
  return whole + float(low), whole + float(high)


def extrapolated(real: Features, made: Features, sizes: int = 8, repeats: int = 4) -> float:
  """The Fréchet distance that infinitely many clips would have: its line over 1 / n, at 0 (arXiv:1911.07023).

  n goes from half of the fewer clips to all of them. ValueError for fewer than 16.
  """
  most = min(len(real), len(made))
  if most < 16:
    raise ValueError(f"an extrapolation from {most} clips: take at least 16")
  rng, points = np.random.default_rng(0), []
  for size in np.linspace(most // 2, most, sizes).astype(int):
    draw = lambda x, size=size: x[rng.permutation(len(x))[:size]]
    points += [(1 / size, frechet_distance(draw(real), draw(made))) for _ in range(repeats)]
  return float(np.polyfit(*np.array(points).T, 1)[1])
