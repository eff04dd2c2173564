"""Image autoencoders that others trained, by the names their arrays have there: taef2, and diffusers' AutoencoderKL.

Functions of arrays, without Flax: each layer asks for its own by name and shape, so that what a network needs can be
listed without running it (`needed`). Convolutions' kernels stay as torch has them, (outputs, inputs, ...).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

Images, OutImages = Float[Array, "n h w c"], Float[Array, "n i j o"]
Video = Float[Array, "b f h w c"]
Out = Float[Array, "b g i j o"]
Config = Mapping[str, Any]
Part = Callable[[Any, Array, list[Array] | None], tuple[Array, list[Array]]]


class Published(NamedTuple):
  """A published autoencoder, of which only the weights are missing.

  encode, decode: `y, past = part(weights, x, past=None)`, of videos in [-1, 1] and their latents as the original has
  them, part after part along time. needed: name to shape of the weights. factor: (frames, rows, columns) of pixels for
  one of latents. channels: of latents.
  """

  encode: Part
  decode: Part
  needed: dict[str, tuple[int, ...]]
  factor: tuple[int, int, int]
  channels: int


class Arrays:
  """`arrays(name, *shape)` is the array of that name. Without any it makes up zeros, and notes what was asked for."""

  def __init__(self, arrays: Mapping[str, Array] | None = None):
    self.arrays, self.asked = arrays, {}

  def __call__(self, name: str, *shape: int) -> Array:
    self.asked[name] = shape
    return jnp.zeros(shape) if self.arrays is None else self.arrays[name]


def needed(network: Callable[[Arrays, Array], Any], *shape: int) -> dict[str, tuple[int, ...]]:
  """Name to shape of all that a network asks for, given an input of this shape. Nothing is computed."""
  arrays = Arrays()
  jax.eval_shape(lambda x: (network(arrays, x), None)[1], jax.ShapeDtypeStruct(shape, jnp.float32))
  return arrays.asked


def conv(
  arrays: Arrays, name: str, x: Images, outputs: int, size: int = 3, stride: int = 1, bias: bool = True, pad: Any = None
) -> OutImages:
  """A convolution of images; pad: (before, after) of height and width alike, by default what keeps the size."""
  kernel = arrays(f"{name}.weight", outputs, x.shape[-1], size, size)
  padding = [pad or (size // 2, size // 2)] * 2
  x = convolve(x, kernel, stride, padding)
  return x + arrays(f"{name}.bias", outputs)[None, None, None] if bias else x


def convolve(x: Images, kernel: Array, stride: int, padding: list[tuple[int, int]]) -> OutImages:
  order = ("NHWC", "OIHW", "NHWC")
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=order, precision="highest"
  )


def linear(arrays: Arrays, name: str, x: Array, outputs: int) -> Array:
  kernel, bias = arrays(f"{name}.weight", outputs, x.shape[-1]), arrays(f"{name}.bias", outputs)
  made = jnp.einsum("...i,oi->...o", x, kernel, precision="highest")
  return made + bias.reshape(*[1] * (made.ndim - 1), -1)


def group_norm(arrays: Arrays, name: str, x: Images, groups: int, epsilon: float) -> OutImages:
  """Over height, width and the channels of a group."""
  parts = rearrange(x, "n h w (g c) -> n h w g c", g=groups)
  mean = parts.mean((1, 2, 4), keepdims=True)
  variance = jnp.square(parts - mean).mean((1, 2, 4), keepdims=True)
  parts = (parts - mean) * jax.lax.rsqrt(variance + epsilon)
  weight, bias = arrays(f"{name}.weight", x.shape[-1]), arrays(f"{name}.bias", x.shape[-1])
  return parts.reshape(x.shape) * weight[None, None, None] + bias[None, None, None]


def attend(x: Images, q: Images, k: Images, v: Images) -> OutImages:
  """One head over all positions of an image."""
  q, k, v = (rearrange(each, "n h w c -> n (h w) c") for each in (q, k, v))
  logits = jnp.einsum("nqc,nkc->nqk", q, k, precision="highest") * x.shape[-1] ** -0.5
  made = jnp.einsum("nqk,nkc->nqc", jax.nn.softmax(logits, -1), v, precision="highest")
  return made.reshape(x.shape)


def doubled(x: Images) -> OutImages:
  """Each pixel four times."""
  return x.repeat(2, axis=1).repeat(2, axis=2)


def each(function: Callable[[Images], OutImages], x: Video) -> Out:
  """`function` of every frame."""
  made = function(rearrange(x, "b f h w c -> (b f) h w c"))
  return rearrange(made, "(b f) h w c -> b f h w c", b=len(x))


def by_frame(function: Callable[[Arrays, Images], OutImages]) -> Part:
  """A network of images as a part that leaves nothing behind."""

  def part(weights: Any, x: Array, past: list[Array] | None = None) -> tuple[Array, list[Array]]:
    return each(partial(function, Arrays(weights)), x), []

  return part


TAEF2_LATENTS = 32


def taef2_block(arrays: Arrays, name: str, x: Images, pool: bool) -> OutImages:
  width = x.shape[-1]
  if pool:
    hidden = conv(arrays, f"{name}.pool.0", x, 4 * width, size=1, bias=False)
    hidden = jax.nn.relu(group_norm(arrays, f"{name}.pool.1", hidden, 4, 1e-5))
    x = x + conv(arrays, f"{name}.pool.3", hidden, width, size=1, bias=False)
  hidden = x
  for index in (0, 2, 4):
    hidden = conv(arrays, f"{name}.conv.{index}", hidden if index == 0 else jax.nn.relu(hidden), width)
  return jax.nn.relu(hidden + x)


def taef2_encode(arrays: Arrays, x: Images) -> OutImages:
  x = taef2_block(arrays, "encoder.1", conv(arrays, "encoder.0", 0.5 * x + 0.5, 64), False)
  for start in (2, 6, 10):
    x = conv(arrays, f"encoder.{start}", x, 64, stride=2, bias=False, pad=(1, 1))
    for number in range(start + 1, start + 4):
      x = taef2_block(arrays, f"encoder.{number}", x, start == 10)
  return conv(arrays, "encoder.14", x, TAEF2_LATENTS)


def taef2_decode(arrays: Arrays, z: Images) -> OutImages:
  x = jax.nn.relu(conv(arrays, "decoder.1", jnp.tanh(z / 3) * 3, 64))
  for start in (3, 8, 13):
    for number in range(start, start + 3):
      x = taef2_block(arrays, f"decoder.{number}", x, start == 3)
    x = conv(arrays, f"decoder.{start + 4}", doubled(x), 64, bias=False)
  return 2.0 * conv(arrays, "decoder.19", taef2_block(arrays, "decoder.18", x, False), 3) - 1.0


def taef2() -> Published:
  """The tiny image autoencoder of FLUX.2's latents (MIT, madebyollin/taesd): 8 times smaller, 32 channels."""
  wanted = needed(taef2_encode, 1, 8, 8, 3) | needed(taef2_decode, 1, 1, 1, TAEF2_LATENTS)
  return Published(by_frame(taef2_encode), by_frame(taef2_decode), wanted, (1, 8, 8), TAEF2_LATENTS)


def kl_resnet(arrays: Arrays, name: str, x: Images, outputs: int, groups: int) -> OutImages:
  hidden = jax.nn.silu(group_norm(arrays, f"{name}.norm1", x, groups, 1e-6))
  hidden = conv(arrays, f"{name}.conv1", hidden, outputs)
  hidden = jax.nn.silu(group_norm(arrays, f"{name}.norm2", hidden, groups, 1e-6))
  hidden = conv(arrays, f"{name}.conv2", hidden, outputs)
  return hidden + (conv(arrays, f"{name}.conv_shortcut", x, outputs, size=1) if x.shape[-1] != outputs else x)


def kl_middle(arrays: Arrays, name: str, x: Images, config: Config) -> OutImages:
  width, groups = x.shape[-1], config["norm_num_groups"]
  x = kl_resnet(arrays, f"{name}.resnets.0", x, width, groups)
  if config.get("mid_block_add_attention", True):
    at = f"{name}.attentions.0"
    hidden = group_norm(arrays, f"{at}.group_norm", x, groups, 1e-6)
    q, k, v = (linear(arrays, f"{at}.{part}", hidden, width) for part in ("to_q", "to_k", "to_v"))
    x = x + linear(arrays, f"{at}.to_out.0", attend(hidden, q, k, v), width)
  return kl_resnet(arrays, f"{name}.resnets.1", x, width, groups)


def kl_encode(config: Config, arrays: Arrays, x: Images) -> OutImages:
  """The mean of the latents."""
  widths, groups, latents = config["block_out_channels"], config["norm_num_groups"], config["latent_channels"]
  x = conv(arrays, "encoder.conv_in", x, widths[0])
  for level, width in enumerate(widths):
    for number in range(config["layers_per_block"]):
      x = kl_resnet(arrays, f"encoder.down_blocks.{level}.resnets.{number}", x, width, groups)
    if level < len(widths) - 1:
      x = conv(arrays, f"encoder.down_blocks.{level}.downsamplers.0.conv", x, width, stride=2, pad=(0, 1))
  x = kl_middle(arrays, "encoder.mid_block", x, config)
  x = jax.nn.silu(group_norm(arrays, "encoder.conv_norm_out", x, groups, 1e-6))
  x = conv(arrays, "encoder.conv_out", x, 2 * latents)
  x = conv(arrays, "quant_conv", x, 2 * latents, size=1) if config.get("use_quant_conv", True) else x
  return x[..., :latents]


def kl_decode(config: Config, arrays: Arrays, z: Images) -> OutImages:
  widths, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
  x = conv(arrays, "post_quant_conv", z, z.shape[-1], size=1) if config.get("use_post_quant_conv", True) else z
  x = kl_middle(arrays, "decoder.mid_block", conv(arrays, "decoder.conv_in", x, widths[0]), config)
  for level, width in enumerate(widths):
    for number in range(config["layers_per_block"] + 1):
      x = kl_resnet(arrays, f"decoder.up_blocks.{level}.resnets.{number}", x, width, groups)
    if level < len(widths) - 1:
      x = conv(arrays, f"decoder.up_blocks.{level}.upsamplers.0.conv", doubled(x), width)
  x = jax.nn.silu(group_norm(arrays, "decoder.conv_norm_out", x, groups, 1e-6))
  return conv(arrays, "decoder.conv_out", x, config["out_channels"])


def kl(config: Config) -> Published:
  """diffusers' AutoencoderKL, Stable Diffusion's; config: its config.json, of blocks without attention."""
  side, channels = 2 ** (len(config["block_out_channels"]) - 1), config["latent_channels"]
  there, back = partial(kl_encode, config), partial(kl_decode, config)
  wanted = needed(there, 1, side, side, 3) | needed(back, 1, 1, 1, channels)
  return Published(by_frame(there), by_frame(back), wanted, (1, side, side), channels)
