"""What was given, for a network that was not trained to be given anything (section 3.1 of arXiv:2204.03458).

Such a network is told of nothing given: to it all frames are as noisy, and what was given shows in x_t alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Video = Float[Array, "b f h w c"]
Mask = Float[Array, "b f h w 1"]
Level = Float[Array, ""]

WAYS = ("given", "replacement", "reconstruction")


def replaced(xt: Video, noise: Video, x_given: Video, given: Mask, alpha: Level, sigma: Level) -> Video:
  """x_t with what was given drawn anew from q(x_t | x_given), whatever the step before made of it."""
  return jnp.where(given > 0, alpha * x_given + sigma * noise, xt)


def reconstructed(
  estimate: Callable, xt: Video, x_given: Video, given: Mask, alpha: Level, weight: float
) -> tuple[Video, Any]:
  """x0 and the rest of `estimate(xt)`, x0 moved to where what was given would be estimated better, which it then is.

  Equation 7 of arXiv:2204.03458, x0 - (weight alpha / 2) d/dxt |x_given - x0|^2 over what was given. It holds on any
  path, and in any unit of x: a gradient with respect to x_t shrinks as alpha grows.
  """
  if not weight:
    x0, rest = estimate(xt)
  else:
    x0, pull, rest = jax.vjp(estimate, xt, has_aux=True)
    x0 += weight * alpha * pull(given * (x_given - x0))[0]
  return jnp.where(given > 0, x_given, x0), rest
