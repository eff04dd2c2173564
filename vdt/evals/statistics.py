"""Distances between two sets of features, and how far they and shares can be trusted at so many."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tqdm
from jaxtyping import Float
from threadpoolctl import threadpool_limits

Features = Float[np.ndarray, "_ *frames d"]
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
  features = rows(features)
  return Gaussian(features.mean(0), np.cov(features, rowvar=False).reshape(2 * features.shape[1:]), len(features))


def root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
  """The square root of a symmetric matrix without negative eigenvalues but for rounding."""
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet(one: Gaussian, other: Gaussian, half: Float[np.ndarray, "d d"] | None = None) -> float:
  """The squared Fréchet distance of two normal distributions (Dowson & Landau 1982): FVD, of I3D's logits.

  The trace of (A B)^1/2 is that of (A^1/2 B A^1/2)^1/2, which is symmetric, so no imaginary part has to be dropped.
  half: A^1/2, where it is known.
  """
  half = root(one.covariance) if half is None else half
  values = np.linalg.eigvalsh(half @ other.covariance @ half)
  cross = np.sqrt(np.maximum(values, 0)).sum()
  apart = np.square(one.mean - other.mean).sum()
  return float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross)


def rows(features: Features) -> Float[np.ndarray, "n d"]:
  """Features of videos, or of all of their frames, in float64."""
  return features.reshape(-1, features.shape[-1]).astype(np.float64)


Distance = Callable[[Features], Callable[[Features], float]]
"""Of some real features: the distance of others from them. What depends on the real ones alone is computed once."""


def frechet_distance(real: Features) -> Callable[[Features], float]:
  """`frechet` of the distributions of two sets of features.

  Of n and m rows X and Y, centred and no more than they are wide, the trace of the root is the nuclear norm of X Y^T,
  over ((n - 1) (m - 1))^1/2, which is faster.
  """
  one = rows(real)
  few = 2 <= len(one) <= one.shape[1]
  normal, x, n = gaussian(one), one - one.mean(0), len(one) - 1
  half = None if few else root(normal.covariance)

  def distance(made: Features) -> float:
    other = rows(made)
    if half is not None or not 2 <= len(other) <= other.shape[1]:
      return frechet(normal, gaussian(other), half)
    y, m = other - other.mean(0), len(other) - 1
    cross = np.linalg.norm(x @ y.T, "nuc") / np.sqrt(n * m)
    apart = np.square(normal.mean - other.mean(0)).sum()
    return float(apart + np.square(x).sum() / n + np.square(y).sum() / m - 2 * cross)

  return distance


def kernel_distance(real: Features) -> Callable[[Features], float]:
  """The unbiased squared maximum mean discrepancy under (x y / d + 1)^3 (arXiv:1801.01401): KVD, of I3D's logits.

  It may be below zero where the two are alike. Frames of one clip are not independent: only pairs of different clips
  count. ValueError for fewer than two clips of either.
  """
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3

  def same(features: Features) -> float:
    n = len(features)
    if n < 2:
      raise ValueError(f"a kernel distance of {n} clip: take at least 2 of each")
    each = features.reshape(n, -1, features.shape[-1]).astype(np.float64)
    own = sum(kernel(clip, clip).sum() for clip in each)
    flat = rows(features)
    return (kernel(flat, flat).sum() - own) / (n * (n - 1) * each.shape[1] ** 2)

  one, within = rows(real), same(real)
  return lambda made: float(within + same(made) - 2 * kernel(one, rows(made)).mean())


@threadpool_limits.wrap(limits=1)
def bootstrap(
  distance: Distance, real: Features, made: dict[str, Features], resamples: int = RESAMPLES
) -> dict[str, Float[np.ndarray, " resamples"]]:
  """The distances of `made` from `real`, drawn anew: clips, with all of their frames, of both sets.

  All of `made` are drawn alike, so a difference of two of its draws is a paired one, where they are of the same clips.
  A resample repeats clips, which moves a Fréchet distance up: what is given is put around the distance itself. Of few
  clips the spread is too wide, so what it calls sure is. It computes on one thread: for matrices of a few hundred rows
  several are no faster, 10 to 100 times slower where they share cores, and round differently.
  """
  rng, found, whole = np.random.default_rng(0), {name: np.empty(resamples) for name in made}, distance(real)
  sizes = {len(features) for features in made.values()}
  for number in tqdm.trange(resamples, desc="intervals", leave=False, mininterval=1, disable=None):
    drawn = distance(real[rng.integers(0, len(real), len(real))])
    chosen = {size: rng.integers(0, size, size) for size in sorted(sizes)}
    for name, features in made.items():
      found[name][number] = drawn(features[chosen[len(features)]])
  return {name: draws - draws.mean() + whole(made[name]) for name, draws in found.items()}


def interval(draws: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
  """The middle 95 % of the draws of a `bootstrap`, or of a difference of two."""
  low, high = np.quantile(draws, [0.025, 0.975])
  return float(low), float(high)


def wilson(right: int, count: int) -> tuple[float, float]:
  """The 95 % interval of a share."""
  z, share = 1.96, right / count
  middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
  half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
  return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def compared(name: str, distance: Distance, real: Features, made: dict[str, Features]) -> dict[str, dict[str, float]]:
  """Rows of a table whose columns are those of `made`, of which "real floor" is one: as many further real clips.

  The distance and its interval; and its excess over the floor's, with the paired interval: a low end above 0 is sure to
  be worse than real clips are.
  """
  draws, table, whole = bootstrap(distance, real, made), {}, distance(real)
  floor = whole(made["real floor"])
  for column, features in made.items():
    low, high = interval(draws[column])
    rows = {name: whole(features), f"{name} low": low, f"{name} high": high}
    if column != "real floor":
      low, high = interval(draws[column] - draws["real floor"])
      rows |= {f"{name} excess": rows[name] - floor, f"{name} excess low": low, f"{name} excess high": high}
    for row, value in rows.items():
      table.setdefault(row, {})[column] = float(value)
  return table


@threadpool_limits.wrap(limits=1)
def extrapolated(real: Features, made: Features, sizes: int = 8, repeats: int = 4) -> float:
  """The Fréchet distance that infinitely many clips would have: its line over 1 / n, at 0 (arXiv:1911.07023).

  n goes from half of the fewer clips to all of them. Of fewer clips than features have numbers it is still far too
  large: how far, the real floor's says, which should be 0. ValueError for fewer than 16.
  """
  most = min(len(real), len(made))
  if most < 16:
    raise ValueError(f"an extrapolation from {most} clips: take at least 16")
  rng, points = np.random.default_rng(0), []
  for size in np.linspace(most // 2, most, sizes).astype(int):
    draw = lambda x, size=size: x[rng.permutation(len(x))[:size]]
    points += [(1 / size, frechet_distance(draw(real))(draw(made))) for _ in range(repeats)]
  return float(np.polyfit(*np.array(points).T, 1)[1])
