"""From noise to video: the sampling ODE, or SDE, solved by a `lax.scan`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdt.diffusion.given import frame_times
from vdt.diffusion.guidance import guided


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class Sampler:
  """method: "euler" (`steps` network evaluations) or "heun" (2 steps - 1; Algorithm 1 of arXiv:2206.00364).

  churn: fresh noise before each step, as in Algorithm 2 of the same, whose gamma it is (at most 0.41 there); 0 =
  deterministic. Later steps can then mend what earlier ones got wrong. guidance_scale: 1 = off. guidance_interval: the
  diffusion times between which guidance acts.
  """

  method: str = "euler"
  steps: int = 16
  churn: float = 0.0
  guidance_scale: float = 1.0
  guidance_interval: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    if self.method not in ("euler", "heun"):
      raise ValueError(f"unknown sampler method {self.method!r}: choose euler or heun")
    if self.steps < 1:
      raise ValueError(f"sampler.steps is {self.steps}: take at least 1")
    if self.churn < 0:
      raise ValueError(f"sampler.churn is {self.churn}: take 0 for none, or more")
    if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
      raise ValueError(f"sampler.guidance_interval is {self.guidance_interval}: two times in [0, 1], the earlier first")

  def sample(
    self, diffusion: Any, denoise: Callable, keys: Key[Array, " b"], x_given: Float[Array, "b f h w c"], cond: dict
  ) -> Float[Array, "b f h w c"]:
    """One video for each key, exactly `x_given` where `cond["given"]` is 1.

    `diffusion` has `grid`, `relative`, `velocity` and `renoise`. A video is a function of its own key alone.
    """
    hidden = 1.0 - cond["given"]
    start, absolute = diffusion.relative(x_given, cond["given"])
    network = guided(denoise, self.guidance_scale, self.guidance_interval)

    def noise(number: jax.Array | int) -> jax.Array:
      draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), x_given.shape[1:])
      return jax.vmap(draw)(keys)

    def drift(x: jax.Array, time: jax.Array) -> jax.Array:
      t = frame_times(jnp.full(x.shape[0], time), cond["given"])
      raw = network(x, time, t, cond).astype(jnp.float32)
      return hidden * diffusion.velocity(raw, x, t)

    def step(x: jax.Array, numbered: tuple, heun: bool = self.method == "heun") -> tuple[jax.Array, None]:
      number, time, after = numbered
      if self.churn:
        fresh, time = diffusion.renoise(x, time, self.churn, noise(number))
        x = jnp.where(hidden > 0, fresh, x)
      slope = drift(x, time)
      if heun:
        slope = 0.5 * (slope + drift(x + (after - time) * slope, after))
      return x + (after - time) * slope, None

    grid, numbers = diffusion.grid(self.steps), jnp.arange(1, self.steps + 1)
    x = jnp.where(hidden > 0, noise(0), start)
    x, _ = jax.lax.scan(step, x, (numbers[:-1], grid[:-2], grid[1:-1]))
    x, _ = step(x, (numbers[-1], grid[-2], grid[-1]), heun=False)  # at time 0 there is no second slope
    return jnp.where(hidden > 0, absolute(x), x_given)
