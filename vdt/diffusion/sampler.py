"""From noise to video: the sampling ODE, or SDE, solved by a `lax.scan` over the table of `vdt.diffusion.solvers`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdt.diffusion import inpainting, predictions
from vdt.diffusion.given import frame_times
from vdt.diffusion.guidance import guided
from vdt.diffusion.solvers import METHODS, coefficients


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
  given: what becomes of what was given. "given": the network sees it clean, and was trained so. Else the network is
  told of nothing, as it may have been trained: "replacement" draws it at each step's level of noise, anew for each
  step; "reconstruction" also moves the estimate of x0 so that it fits, by `given_weight`, w_r of Equation 7 of
  arXiv:2204.03458, for a gradient through each network evaluation, about three times its cost. Both come nearer with
  "ddpm" or churn than along the ODE.
  """

  method: str = "euler"
  steps: int = 16
  churn: float = 0.0
  guidance_scale: float = 1.0
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  eta: float = 0.0
  guidance: tuple[tuple[str, float], ...] = ()
  given: str = "given"
  given_weight: float = 1.0

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
    if isinstance(self.guidance, str) or not all(isinstance(p, (tuple, list)) and len(p) == 2 for p in self.guidance):
      raise ValueError(f'sampler.guidance is {self.guidance!r}: names with scales, say (("text", 3.0),)')
    if not all(map(math.isfinite, [self.guidance_scale, *(scale for _, scale in self.guidance)])):
      raise ValueError(
        f"sampler.guidance_scale is {self.guidance_scale}, guidance {self.guidance}: numbers, 1 for none"
      )
    if len({name for name, _ in self.guidance}) < len(self.guidance):
      raise ValueError(f"sampler.guidance {self.guidance} names a condition twice")
    if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
      raise ValueError(f"sampler.guidance_interval is {self.guidance_interval}: two times in [0, 1], the earlier first")
    if self.given not in inpainting.WAYS:
      raise ValueError(f"unknown sampler.given {self.given!r}: choose from {', '.join(inpainting.WAYS)}")
    if not (self.given_weight >= 0 and math.isfinite(self.given_weight)):
      raise ValueError(f"sampler.given_weight is {self.given_weight}: take 0 for none, or more")
    if self.given_weight != 1 and self.given != "reconstruction":
      raise ValueError(f"sampler.given_weight with given {self.given}: it is that of reconstruction alone")

  def check(self, diffusion: Any) -> None:
    """ValueError where the diffusion cannot be sampled in so many steps, or not told of what was given."""
    diffusion.grid(self.steps)
    if diffusion.anomaly and self.given != "given":
      raise ValueError(
        f"sampler.given {self.given} with diffusion.anomaly: differences from what was given are not to be made by a "
        f"network that is told of nothing given"
      )

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
    self,
    diffusion: Any,
    denoise: Callable,
    keys: Key[Array, " b"],
    x_given: Float[Array, "b f h w c"],
    cond: dict,
    paste: bool = True,
  ) -> Float[Array, "b f h w c"]:
    """One video for each key, exactly `x_given` where `cond["given"]` is 1; without `paste`, what the last step makes
    of that as well, from the network's estimate.

    `diffusion` is a `vdt.diffusion.path.Path`. A video is a function of its own key alone.
    """
    self.check(diffusion)
    given, told = cond["given"], self.given == "given"
    cond = cond if told else {**cond, "given": jnp.zeros_like(given)}
    hidden = 1.0 - cond["given"]  # what the solver moves
    start, absolute = diffusion.relative(x_given, given)
    network = guided(denoise, self.guidance_scale, self.guidance_interval, self.guidance)

    def noise(number: jax.Array | int) -> jax.Array:
      draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), x_given.shape[1:])
      return jax.vmap(draw)(keys)

    def estimate(x: jax.Array, time: jax.Array, alpha: jax.Array, sigma: jax.Array) -> tuple:
      """x0, the noise, and what the network says of the variance."""

      def from_network(x: jax.Array) -> tuple:
        t = frame_times(jnp.full(x.shape[0], time), cond["given"])
        raw, extra = diffusion.parts(network(x, time, t, cond).astype(jnp.float32), x.shape[-1])
        x0, eps = predictions.split(diffusion.prediction, raw, x, alpha, sigma)
        return x0, (eps, extra)

      if told:
        x0, (eps, extra) = from_network(x)
        return x0, eps, extra
      weight = self.given_weight if self.given == "reconstruction" else 0.0
      x0, (_, extra) = inpainting.reconstructed(from_network, x, start, given, alpha, weight)
      return *predictions.split("x0", x0, x, alpha, sigma), extra

    def kept(new: jax.Array, x: jax.Array, last: bool) -> jax.Array:
      return new if last and not paste else jnp.where(hidden > 0, new, x)

    def renoised(x: jax.Array, row: dict) -> jax.Array:
      """What a step begins with. Its numbers lie past the steps': other noise than they draw."""
      if self.churn:
        churned = row["churn_x"] * x + row["churn_noise"] * noise(row["number"] + self.steps)
        x = jnp.where(hidden > 0, churned, x)
      if told:
        return x
      return inpainting.replaced(x, noise(row["number"] + 2 * self.steps), start, given, row["alpha"], row["sigma"])

    def heun(x: jax.Array, row: dict, last: bool = False) -> tuple[jax.Array, None]:
      """In y = x / (alpha + sigma), a straight path over u = sigma / (alpha + sigma); at time 0 no second slope."""
      x = renoised(x, row)
      x0, eps, _ = estimate(x, row["time"], row["alpha"], row["sigma"])
      slope = eps - x0
      move = lambda slope: kept(row["x"] * x + row["slope"] * slope, x, last)
      if not last:
        x0, eps, _ = estimate(move(slope), row["after"], row["alpha_after"], row["sigma_after"])
        slope = 0.5 * (slope + eps - x0)
      return move(slope), None

    def linear(carry: tuple, row: dict, last: bool = False) -> tuple[tuple, None]:
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
      new = kept(new, x, last)
      return (new, x, (x0, *past)[: len(past)]), None

    rows = coefficients(self, diffusion)
    x = jnp.where(hidden > 0, noise(0), start)
    but_last, last = ({name: column[part] for name, column in rows.items()} for part in (slice(-1), -1))
    if self.method == "heun":
      x, _ = jax.lax.scan(heun, x, but_last)
      x, _ = heun(x, last, last=True)
    else:
      memory = {"dpm++": 1, "unipc": 2}.get(self.method, 0)
      carry = (x, x, (jnp.zeros_like(x),) * memory)
      if paste:
        (x, _, _), _ = jax.lax.scan(linear, carry, rows)
      else:
        (x, _, _), _ = linear(jax.lax.scan(linear, carry, but_last)[0], last, last=True)
    return jnp.where(given > 0, x_given, absolute(x)) if paste else absolute(x)
