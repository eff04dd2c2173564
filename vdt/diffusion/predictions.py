"""What a network may put out, and the way from one to another, on any path x_t = alpha x0 + sigma noise.

"x0" is the clean video, "noise" is epsilon (arXiv:2006.11239), "v" is alpha noise - sigma x0 (arXiv:2202.00512), and
"velocity" is noise - x0 (arXiv:2209.03003). Given x_t, each says the same as any other; no other file converts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PREDICTIONS = ("x0", "noise", "v", "velocity")
LEAST = 1e-6  # of what is divided by: sigma is 0 where all is given, alpha at the end of some paths

Video = Float[Array, "b f h w c"]
Level = Float[Array, "*#b"] | float


def split(kind: str, raw: Video, xt: Video, alpha: Level, sigma: Level) -> tuple[Video, Video]:
  """(x0, noise) from the network's raw output; alpha and sigma are scalars or broadcast against the videos."""
  match kind:
    case "x0":
      return raw, (xt - alpha * raw) / jnp.maximum(sigma, LEAST)
    case "noise":
      return (xt - sigma * raw) / jnp.maximum(alpha, LEAST), raw
    case "v":
      square = alpha**2 + sigma**2
      return (alpha * xt - sigma * raw) / square, (sigma * xt + alpha * raw) / square
    case "velocity":
      total = alpha + sigma
      return (xt - sigma * raw) / total, (xt + alpha * raw) / total
  raise ValueError(f"unknown prediction {kind!r}: choose from {', '.join(PREDICTIONS)}")


def join(kind: str, x0: Video, noise: Video, alpha: Level, sigma: Level) -> Video:
  """What the network is to put out where the clean video is x0 and the noise in x_t is `noise`."""
  match kind:
    case "x0":
      return x0
    case "noise":
      return noise
    case "v":
      return alpha * noise - sigma * x0
    case "velocity":
      return noise - x0
  raise ValueError(f"unknown prediction {kind!r}: choose from {', '.join(PREDICTIONS)}")


def convert(have: str, want: str, raw: Video, xt: Video, alpha: Level, sigma: Level) -> jax.Array:
  """The raw output of a network that predicts `have` as one that predicts `want` would have put it."""
  return raw if have == want else join(want, *split(have, raw, xt, alpha, sigma), alpha, sigma)
