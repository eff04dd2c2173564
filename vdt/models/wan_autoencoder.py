"""diffusers' AutoencoderKLWan, as Wan 2.1 (arXiv:2503.20314) has it: causal, the first frame by itself.

See `image_autoencoders`. A convolution over frames, rows and columns is a sum of convolutions of images.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array

from vdt.models.autoencoder import Past
from vdt.models.image_autoencoders import (
  Arrays,
  Config,
  Images,
  Out,
  OutImages,
  Part,
  Published,
  Video,
  attend,
  conv,
  convolve,
  doubled,
  each,
  needed,
)


def causal(arrays: Arrays, name: str, x: Video, outputs: int, past: Past, size: int = 3) -> Out:
  """A convolution of `size` frames, rows and columns, that sees no later frame."""
  kernel = arrays(f"{name}.weight", outputs, x.shape[-1], size, size, size)
  seen = past.extend(x, size - 1) if size > 1 else x
  padding = [(size // 2, size // 2)] * 2
  parts = (
    each(lambda y, tap=tap: convolve(y, kernel[:, :, tap], 1, padding), frames(seen, tap, x)) for tap in range(size)
  )
  return sum(parts) + arrays(f"{name}.bias", outputs)[None, None, None, None]


def frames(seen: Video, tap: int, x: Array, stride: int = 1) -> Out:
  """What one tap of a convolution over time sees of as many frames as `x` has."""
  return seen[:, tap : tap + stride * x.shape[1] : stride]


def over_time(arrays: Arrays, name: str, seen: Video, like: Array, outputs: int, stride: int = 1) -> Out:
  """A convolution of three frames."""
  kernel = arrays(f"{name}.weight", outputs, seen.shape[-1], 3, 1, 1)[..., 0, 0]
  dot = lambda tap: jnp.einsum(
    "bfhwi,oi->bfhwo", frames(seen, tap, like, stride), kernel[:, :, tap], precision="highest"
  )
  return sum(map(dot, range(3))) + arrays(f"{name}.bias", outputs)[None, None, None, None]


def wan_norm(arrays: Arrays, name: str, x: Array, dimensions: int = 3) -> Array:
  """Every position's channels, to a length of the root of their number."""
  gamma = arrays(f"{name}.gamma", x.shape[-1], *[1] * dimensions).reshape(*[1] * (x.ndim - 1), -1)
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(length, 1e-12) * x.shape[-1] ** 0.5 * gamma


def wan_resnet(arrays: Arrays, name: str, x: Video, outputs: int, past: Past) -> Out:
  short = causal(arrays, f"{name}.conv_shortcut", x, outputs, past, size=1) if x.shape[-1] != outputs else x
  hidden = causal(arrays, f"{name}.conv1", jax.nn.silu(wan_norm(arrays, f"{name}.norm1", x)), outputs, past)
  return short + causal(arrays, f"{name}.conv2", jax.nn.silu(wan_norm(arrays, f"{name}.norm2", hidden)), outputs, past)


def wan_middle(arrays: Arrays, name: str, x: Video, past: Past) -> Out:
  width, at = x.shape[-1], f"{name}.attentions.0"
  x = wan_resnet(arrays, f"{name}.resnets.0", x, width, past)

  def attention(image: Images) -> OutImages:
    hidden = wan_norm(arrays, f"{at}.norm", image, 2)
    q, k, v = jnp.split(conv(arrays, f"{at}.to_qkv", hidden, 3 * width, size=1), 3, -1)
    return image + conv(arrays, f"{at}.proj", attend(hidden, q, k, v), width, size=1)

  return wan_resnet(arrays, f"{name}.resnets.1", each(attention, x), width, past)


def wan_down(arrays: Arrays, name: str, x: Video, time: bool, past: Past) -> Out:
  """Half the height and width; with `time`, every second frame after the first, from it and the two before it."""
  width = x.shape[-1]
  x = each(lambda y: conv(arrays, f"{name}.resample.1", y, width, stride=2, pad=(0, 1)), x)
  if not time:
    return x
  first, seen = past.first, past.extend(x, 1)
  seen = x if first else seen
  made = over_time(arrays, f"{name}.time_conv", seen, seen[:, 1::2], width, 2)
  return jnp.concatenate([x[:, :1], made], 1) if first else made


def wan_up(arrays: Arrays, name: str, x: Video, time: bool, past: Past) -> Out:
  """Twice the height and width; with `time`, two frames of each but the first, which those after it do not see."""
  width = x.shape[-1]
  if time:
    head, rest = (x[:, :1], x[:, 1:]) if past.first else (x[:, :0], x)
    made = over_time(arrays, f"{name}.time_conv", past.extend(rest, 2), rest, 2 * width)
    x = jnp.concatenate([head, rearrange(made, "b f h w (p c) -> b (f p) h w c", p=2)], 1)
  return each(lambda y: conv(arrays, f"{name}.resample.1", doubled(y), width // 2), x)


def wan_encode(config: Config, arrays: Arrays, x: Video, past: Past) -> Out:
  """The mean of the latents."""
  base, latents, halved = config["base_dim"], config["z_dim"], config["temperal_downsample"]
  x, number = causal(arrays, "encoder.conv_in", x, base, past), 0
  for level, factor in enumerate(config["dim_mult"]):
    for _ in range(config["num_res_blocks"]):
      x = wan_resnet(arrays, f"encoder.down_blocks.{number}", x, base * factor, past)
      number += 1
    if level < len(config["dim_mult"]) - 1:
      x = wan_down(arrays, f"encoder.down_blocks.{number}", x, halved[level], past)
      number += 1
  x = wan_middle(arrays, "encoder.mid_block", x, past)
  x = jax.nn.silu(wan_norm(arrays, "encoder.norm_out", x))
  x = causal(arrays, "encoder.conv_out", x, 2 * latents, past)
  return causal(arrays, "quant_conv", x, 2 * latents, past, size=1)[..., :latents]


def wan_decode(config: Config, arrays: Arrays, z: Video, past: Past) -> Out:
  base, factors = config.get("decoder_base_dim") or config["base_dim"], config["dim_mult"][::-1]
  doubles = config["temperal_downsample"][::-1]
  x = causal(arrays, "post_quant_conv", z, z.shape[-1], past, size=1)
  x = wan_middle(arrays, "decoder.mid_block", causal(arrays, "decoder.conv_in", x, base * factors[0], past), past)
  for level, factor in enumerate(factors):
    for number in range(config["num_res_blocks"] + 1):
      x = wan_resnet(arrays, f"decoder.up_blocks.{level}.resnets.{number}", x, base * factor, past)
    if level < len(factors) - 1:
      x = wan_up(arrays, f"decoder.up_blocks.{level}.upsamplers.0", x, doubles[level], past)
  x = jax.nn.silu(wan_norm(arrays, "decoder.norm_out", x))
  return causal(arrays, "decoder.conv_out", x, config["out_channels"], past)


def by_time(config: Config, function: Callable[[Config, Arrays, Video, Past], Video]) -> Part:
  """A causal network as a part that leaves behind what its convolutions saw last."""

  def part(weights: Any, x: Array, past: list[Array] | None = None) -> tuple[Array, list[Array]]:
    seen = Past(past)
    return function(config, Arrays(weights), x, seen), seen.new

  return part


def wan(config: Config) -> Published:
  """config: the original's config.json, without attention beside the middle's, patches or residual resampling."""
  side, frames, channels = 2 ** (len(config["dim_mult"]) - 1), 2 ** sum(config["temperal_downsample"]), config["z_dim"]
  wanted = needed(lambda arrays, x: wan_encode(config, arrays, x, Past()), 1, 1 + frames, side, side, 3)
  wanted |= needed(lambda arrays, z: wan_decode(config, arrays, z, Past()), 1, 2, 1, 1, channels)
  return Published(by_time(config, wan_encode), by_time(config, wan_decode), wanted, (frames, side, side), channels)
