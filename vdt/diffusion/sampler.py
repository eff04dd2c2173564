"""From noise to video: the sampling ODE, or SDE, solved by a `lax.scan`.

A step of any of these solvers is a sum of the video and of the last estimates of x0, whose coefficients follow from the
levels of noise alone. They are computed before, in float64 (`coefficients`), and the scan runs over their table.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vdt.diffusion import predictions
from vdt.diffusion.gaussian import variances
from vdt.diffusion.given import frame_times
from vdt.diffusion.guidance import guided

METHODS = ("euler", "heun", "ddim", "ddpm", "dpm++", "unipc")
Table = dict[str, np.ndarray]


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class Sampler:
  """method: how the ODE is solved, each with `steps` network evaluations but for "heun".

  "euler", in the coordinates in which the path is a straight line, which is DDIM (arXiv:2010.02502) for any path and
  has that name as well; "heun", the same to second order with 2 steps - 1 evaluations (Algorithm 1 of
  arXiv:2206.00364); "dpm++", DPM-Solver++(2M) (arXiv:2211.01095); "unipc", UniPC-2 with B2 (arXiv:2302.04867).
  "ddpm" draws each step back from its distribution (arXiv:2006.11239), with the network's variance if it has one.
  eta: of "ddim", how much of that noise it takes (Equation 16 of arXiv:2010.02502); 0 = deterministic.
  churn: fresh noise before each step, as in Algorithm 2 of arXiv:2206.00364, whose gamma it is (at most 0.41 there);
  0 = deterministic. Later steps can then mend what earlier ones got wrong. guidance_scale: 1 = off. guidance_interval:
  the diffusion times between which guidance acts. guidance: conditions with scales of their own, see `guided`, say
  (("text", 5.0), ("label", 2.0)).
  """

  method: str = "euler"
  steps: int = 16
  churn: float = 0.0
  guidance_scale: float = 1.0
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  eta: float = 0.0
  guidance: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(f"unknown sampler method {self.method!r}: choose from {', '.join(METHODS)}")
    if self.steps < 1:
      raise ValueError(f"sampler.steps is {self.steps}: take at least 1")
    if not (self.churn >= 0 and math.isfinite(self.churn)):
      raise ValueError(f"sampler.churn is {self.churn}: take 0 for none, or more")
    if not 0 <= self.eta <= 1 or (self.eta and self.method != "ddim"):
      raise ValueError(f"sampler.eta is {self.eta}: 0 to 1, and above 0 with method ddim alone")
    if self.churn and self.method not in ("euler", "heun", "ddim"):
      raise ValueError(
        f"sampler.churn with method {self.method}: its steps go by those before, or draw noise themselves"
      )
    if not all(map(math.isfinite, [self.guidance_scale, *(scale for _, scale in self.guidance)])):
      raise ValueError(
        f"sampler.guidance_scale is {self.guidance_scale}, guidance {self.guidance}: numbers, 1 for none"
      )
    if len({name for name, _ in self.guidance}) < len(self.guidance):
      raise ValueError(f"sampler.guidance {self.guidance} names a condition twice")
    if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
      raise ValueError(f"sampler.guidance_interval is {self.guidance_interval}: two times in [0, 1], the earlier first")

  def check(self, diffusion: Any) -> None:
    """ValueError where the diffusion cannot be sampled in so many steps."""
    diffusion.grid(self.steps)

  def title(self, task: str) -> str:
    """What a row of samples is called."""
    return f"samples: {task}"

  def card(self) -> dict[str, Any]:
    """What samples depend on, line to value."""
    rest = dataclasses.asdict(self)
    return {
      "sampler": f"{rest.pop('method')}, {rest.pop('steps')} steps",
      "guidance scale": rest.pop("guidance_scale"),
      "sampler, the rest": {name: list(each) if isinstance(each, tuple) else each for name, each in rest.items()},
    }

  def sample(
    self, diffusion: Any, denoise: Callable, keys: Key[Array, " b"], x_given: Float[Array, "b f h w c"], cond: dict
  ) -> Float[Array, "b f h w c"]:
    """One video for each key, exactly `x_given` where `cond["given"]` is 1.

    `diffusion` is a `vdt.diffusion.path.Path`. A video is a function of its own key alone.
    """
    hidden = 1.0 - cond["given"]
    start, absolute = diffusion.relative(x_given, cond["given"])
    network = guided(denoise, self.guidance_scale, self.guidance_interval, self.guidance)

    def noise(number: jax.Array | int) -> jax.Array:
      draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), x_given.shape[1:])
      return jax.vmap(draw)(keys)

    def estimate(x: jax.Array, time: jax.Array, alpha: jax.Array, sigma: jax.Array) -> tuple:
      """x0, the noise, and what the network says of the variance."""
      t = frame_times(jnp.full(x.shape[0], time), cond["given"])
      raw, extra = diffusion.parts(network(x, time, t, cond).astype(jnp.float32), x.shape[-1])
      return *predictions.split(diffusion.prediction, raw, x, alpha, sigma), extra

    def renoised(x: jax.Array, row: dict) -> jax.Array:
      if not self.churn:
        return x  # numbers past the steps': other noise than the steps themselves draw
      return jnp.where(hidden > 0, row["churn_x"] * x + row["churn_noise"] * noise(row["number"] + self.steps), x)

    def heun(x: jax.Array, row: dict, last: bool = False) -> tuple[jax.Array, None]:
      """In y = x / (alpha + sigma), a straight path over u = sigma / (alpha + sigma); at time 0 no second slope."""
      x = renoised(x, row)
      x0, eps, _ = estimate(x, row["time"], row["alpha"], row["sigma"])
      slope = eps - x0
      move = lambda slope: jnp.where(hidden > 0, row["x"] * x + row["slope"] * slope, x)
      if not last:
        x0, eps, _ = estimate(move(slope), row["after"], row["alpha_after"], row["sigma_after"])
        slope = 0.5 * (slope + eps - x0)
      return move(slope), None

    def linear(carry: tuple, row: dict) -> tuple[tuple, None]:
      x, old, past = carry  # old: the video a step before; past: the estimates of x0 one and two steps before
      x = renoised(x, row)
      x0, _, extra = estimate(x, row["time"], row["alpha"], row["sigma"])
      if self.method == "unipc":
        better = row["fix_x"] * old + row["fix_0"] * x0 + row["fix_1"] * past[0] + row["fix_2"] * past[1]
        x = jnp.where((hidden > 0) & row["fixes"], better, x)
      new = row["x"] * x + row["x0"] * x0
      if past:
        new += row["x1"] * past[0]
      if self.method == "ddpm" or self.eta:
        spread = row["noise"]
        if extra is not None and self.method == "ddpm":  # Equation 15 of arXiv:2102.09672
          spread = row["noise"] * jnp.exp(0.25 * (extra + 1) * row["wider"])
        new += spread * noise(row["number"])
      new = jnp.where(hidden > 0, new, x)
      return (new, x, (x0, *past)[: len(past)]), None

    rows = coefficients(self, diffusion)
    x = jnp.where(hidden > 0, noise(0), start)
    if self.method == "heun":
      x, _ = jax.lax.scan(heun, x, {name: column[:-1] for name, column in rows.items()})
      x, _ = heun(x, {name: column[-1] for name, column in rows.items()}, last=True)
    else:
      past = jnp.zeros_like(x)
      memory = {"dpm++": 1, "unipc": 2}.get(self.method, 0)
      (x, _, _), _ = jax.lax.scan(linear, (x, x, (past,) * memory), rows)
    return jnp.where(hidden > 0, absolute(x), x_given)


def coefficients(sampler: Sampler, diffusion: Any) -> dict[str, jax.Array]:
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
  sampler: Sampler, alpha: np.ndarray, sigma: np.ndarray, alpha_after: np.ndarray, sigma_after: np.ndarray
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
