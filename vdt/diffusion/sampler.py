"""From noise to video: the sampling ODE solved by a `lax.scan`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdt.diffusion.given import frame_times
from vdt.diffusion.guidance import guided


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class Sampler:
  """method: "euler" (`steps` network evaluations) or "heun" (2 steps - 1; Algorithm 1 of arXiv:2206.00364).

  guidance_scale: 1 = off. guidance_interval: the diffusion times between which guidance acts.
  """

  method: str = "euler"
  steps: int = 16
  guidance_scale: float = 1.0
  guidance_interval: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    if self.method not in ("euler", "heun"):
      raise ValueError(f"unknown sampler method {self.method!r}: choose euler or heun")
    if self.steps < 1:
      raise ValueError(f"sampler.steps is {self.steps}: take at least 1")

  def sample(
    self,
    diffusion: Any,
    denoise: Callable,
    noise: Float[Array, "b f h w c"],
    x_given: Float[Array, "b f h w c"],
    cond: dict,
  ) -> Float[Array, "b f h w c"]:
    """Videos made of `noise`, exactly `x_given` where `cond["given"]` is 1; `diffusion` has `grid` and `velocity`."""
    hidden = 1.0 - cond["given"]
    network = guided(denoise, self.guidance_scale, self.guidance_interval)

    def drift(x: jax.Array, time: jax.Array) -> jax.Array:
      t = frame_times(jnp.full(x.shape[0], time), cond["given"])
      return hidden * diffusion.velocity(network(x, time, t, cond).astype(jnp.float32), x, t)

    def euler(x: jax.Array, times: tuple) -> tuple[jax.Array, None]:
      return x + (times[1] - times[0]) * drift(x, times[0]), None

    def heun(x: jax.Array, times: tuple) -> tuple[jax.Array, None]:
      before = drift(x, times[0])
      after = drift(x + (times[1] - times[0]) * before, times[1])
      return x + (times[1] - times[0]) * 0.5 * (before + after), None

    x = jnp.where(hidden > 0, noise, x_given)
    grid = diffusion.grid(self.steps)
    if self.method == "euler":
      return jax.lax.scan(euler, x, (grid[:-1], grid[1:]))[0]
    x, _ = jax.lax.scan(heun, x, (grid[:-2], grid[1:-1]))
    return euler(x, (grid[-2], grid[-1]))[0]
