"""The solvers of the sampling ODE, and SDE, as tables.

A step of any of them is a sum of the video and of the last estimates of x0, whose coefficients follow from the levels
of noise alone. They are computed before, in float64, and the sampler's scan runs over their table.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt.diffusion.gaussian import variances

METHODS = ("euler", "heun", "ddim", "ddpm", "dpm++", "unipc")
Table = dict[str, np.ndarray]


def coefficients(sampler: Any, diffusion: Any) -> dict[str, jax.Array]:
  """For each step its times and levels, and what the video and the estimates of x0 are multiplied by.

  Computed in float64, handed on in float32.
  """
  times = np.asarray(diffusion.grid(sampler.steps), np.float64)
  time, after = times[:-1], times[1:]
  rows: Table = {"number": np.arange(1, len(times)), "after": after}
  alpha, sigma = diffusion.levels(time)
  if sampler.churn:
    with np.errstate(divide="ignore"):
      time = diffusion.inverse((1 + sampler.churn) * sigma / alpha)
    before, (alpha, sigma) = (alpha, sigma), diffusion.levels(time)
    keep = np.divide(alpha, before[0], out=np.ones_like(alpha), where=before[0] > 0)
    rows |= {"churn_x": keep, "churn_noise": np.sqrt(np.maximum(sigma**2 - (keep * before[1]) ** 2, 0))}
  alpha_after, sigma_after = diffusion.levels(after)
  rows |= dict(time=time, alpha=alpha, sigma=sigma, alpha_after=alpha_after, sigma_after=sigma_after)
  if sampler.method == "heun":
    total, total_after = alpha + sigma, alpha_after + sigma_after
    rows |= {"x": total_after / total, "slope": total_after * (sigma_after / total_after - sigma / total)}
  else:
    rows |= solver(sampler, alpha, sigma, alpha_after, sigma_after)
  narrow = lambda column: column.astype(np.int32 if column.dtype.kind == "i" else np.float32)
  return {name: jnp.asarray(column if column.dtype == bool else narrow(column)) for name, column in rows.items()}


def solver(
  sampler: Any, alpha: np.ndarray, sigma: np.ndarray, alpha_after: np.ndarray, sigma_after: np.ndarray
) -> Table:
  """The coefficients of one-step and multi-step solvers; the last step, to no noise, is of first order."""
  least, most = variances(alpha, sigma, alpha_after, sigma_after)
  eta = {"ddpm": 1.0}.get(sampler.method, sampler.eta)
  noise = eta * np.sqrt(least)
  keep = np.sqrt(sigma_after**2 - noise**2) / sigma
  rows = {"x": keep, "x0": alpha_after - alpha * keep, "noise": noise}
  if sampler.method == "ddpm":
    rows["wider"] = np.log(np.divide(most, least, out=np.ones_like(least), where=least > 0))
  if sampler.method not in ("dpm++", "unipc"):
    return rows
  with np.errstate(divide="ignore"):
    half = np.log(np.append(alpha, alpha_after[-1])) - np.log(np.append(sigma, sigma_after[-1]))  # half the log SNR
  h, gain, count = np.diff(half), rows["x0"].copy(), len(alpha)
  second = np.arange(count) >= 1  # steps of second order: they have a step before, and do not end at no noise
  second &= np.isfinite(h)
  second[1:] &= np.isfinite(h[:-1])
  with np.errstate(invalid="ignore"):
    ratio = np.where(second, np.append(0.0, h[:-1]) / h, 1.0)  # of the step before to this one
  # Equation 13 of arXiv:2211.01095: x0 is extrapolated by half a step.
  back = np.where(second, -gain / (2 * ratio), 0.0)
  rows |= {"x0": gain - back, "x1": back}
  if sampler.method == "unipc":
    # Algorithm 5 of arXiv:2302.04867: once x0 is known at the end of a step, that step is taken again with it.
    one, two = np.zeros(count), np.full(count, 0.5)
    for k in np.flatnonzero(second):
      one[k], two[k] = corrector(-h[k], -ratio[k])
    fix = {"fix_x": rows["x"], "fix_0": gain * two, "fix_1": gain * (1 - one - two), "fix_2": gain * one}
    rows |= {name: np.append(0.0, column[:-1]) for name, column in fix.items()}  # of the step before
    rows["fixes"] = np.arange(count) > 0
  return rows


def corrector(h: float, ratio: float) -> tuple[float, float]:
  """UniPC-2's weights of the differences of x0, two steps back and one on, from x0 at the step's beginning.

  h: minus the step in half log SNR; ratio: where the point before lies, in steps, negative. Equation 8 with B2.
  """
  first = np.expm1(h) / h - 1
  second = first / h - 0.5
  wanted = np.array([first, 2 * second]) / np.expm1(h)
  rho = np.linalg.solve(np.array([[1.0, 1.0], [ratio, 1.0]]), wanted)
  return float(rho[0] / ratio), float(rho[1])
