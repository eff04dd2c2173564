"""A causal video autoencoder: 1 + p k frames to 1 + k frames of latents, the first frame by itself.

The layout of MAGVIT-v2 (arXiv:2310.05737) and Wan (arXiv:2503.20314): no layer sees a later frame, and norms are of one
position alone, so a video may be worked off in parts, along time and in tiles, and comes out as if it had been whole.
Here all of time is folded at the entry: the first frame, repeated, fills a cell of p frames, each further p frames fill
one, and what comes out for the first cell is its last frame. Between entry and end there is a residual stream that
nothing but linear maps and blocks touch; blocks start as zero, so the network starts as a linear autoencoder.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vdt.models import layout
from vdt.models.layers import Dense, zeros

Video = Float[Array, "b f h w c"]
Out = Float[Array, "b g i j o"]
TAPS = 3
"""Frames, rows and columns that a convolution sees: of frames those up to its own."""
REMAT: dict[str, Callable] = {"none": lambda body: body, "full": jax.checkpoint}


class Past:
  """The last frames that each layer has seen, in the order in which layers run: what parts of a video leave behind.

  old: None before the first frame, which layers then see zeros before.
  """

  def __init__(self, old: Sequence[Array] | None = None):
    self.old, self.new = None if old is None else iter(old), []

  @property
  def first(self) -> bool:
    return self.old is None

  def extend(self, x: Video, count: int) -> Out:
    """`x` with the `count` frames before it."""
    before = jnp.zeros((len(x), count, *x.shape[2:]), x.dtype) if self.old is None else next(self.old)
    whole = jnp.concatenate([before, x], axis=1)
    self.new.append(whole[:, -count:])
    return whole


class AutoencoderNetwork(NamedTuple):
  """params = init(key); the rest take params first.

  apply(params, x, keys=None): what the network makes of videos in [-1, 1], and the mean and log variance of their
  latents; keys (b,) draw the latents, without them they are the mean. encode(params, x, past=None): the mean alone, and
  what the next part of the video takes as `past`. decode(params, z, past=None): the same, back.
  """

  init: Callable
  apply: Callable
  encode: Callable
  decode: Callable

  @property
  def learn(self) -> Callable:
    """`apply`, for a loss that is differentiated."""
    return self.apply


@dataclasses.dataclass
class VideoAutoencoder:
  """Convolutions over a pyramid of heights and widths, and causal ones over time.

  cell: the (frames, height, width) that are folded into one position at the entry. widths: of each level; every level
  after the first has half the height and width. blocks: of each level, the encoder's, and the decoder's as well.
  latents: numbers of a latent. remat: "none", or "full", which computes blocks again in the backward pass. dtype: of
  the computation; parameters are float32 always.
  """

  cell: tuple[int, int, int] = (4, 4, 4)
  widths: tuple[int, ...] = (128, 256)
  blocks: tuple[int, ...] = (2, 2)
  latents: int = 16
  channels: int = 3
  remat: str = "none"
  dtype: str = "bfloat16"
  patch: ClassVar[tuple[int, int, int]] = (1, 1, 1)
  classes: ClassVar[int] = 0
  text: ClassVar[int] = 0
  conditions: ClassVar[tuple[str, ...]] = ()

  @property
  def factor(self) -> tuple[int, int, int]:
    """Frames, rows and columns of pixels for one of latents; the first frame has one for itself."""
    frames, height, width = self.cell
    side = 2 ** (len(self.widths) - 1)
    return frames, height * side, width * side

  @property
  def reach(self) -> int:
    """Latents on each side, along height and width, that the encoder or the decoder looks at."""
    return sum(
      -(-count * (TAPS // 2) // 2 ** (len(self.blocks) - 1 - level)) for level, count in enumerate(self.blocks)
    )

  def shape(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(f, h, w, c) of a video's latents. ValueError where the video does not divide."""
    (p, q, r), (height, width) = self.factor, size
    if frames < 1 or (frames - 1) % p or height % q or width % r:
      raise ValueError(
        f"a video of (frames, height, width) {(frames, *size)}: this autoencoder takes 1 + {p} k frames, heights that "
        f"are multiples of {q} and widths of {r}"
      )
    return 1 + (frames - 1) // p, height // q, width // r, self.latents

  def flops(self, frames: int, size: tuple[int, int]) -> float:
    """Floating-point operations of one video's way there and back: two a multiply-add, matrix products alone."""
    return sum(self.flops_by_part(frames, size).values())

  def flops_by_part(self, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """`flops` of the convolutions over space, of those over time, and of all linear maps."""
    f, h, w, z = self.shape(frames, size)
    parts = {"space": 0.0, "time": 0.0, "linear": 0.0}
    last = len(self.widths) - 1
    for level, (width, blocks) in enumerate(zip(self.widths, self.blocks)):
      positions = f * h * w * 4 ** (last - level)
      parts["space"] += 2 * 2.0 * positions * blocks * TAPS**2 * width**2
      parts["time"] += 2 * 2.0 * positions * blocks * TAPS * width**2
      inputs = 4 * self.widths[level - 1] if level else self.channels * self.cell[0] * self.cell[1] * self.cell[2]
      parts["linear"] += 2 * 2.0 * positions * inputs * width
    parts["linear"] += 2.0 * f * h * w * 3 * z * self.widths[-1]
    return parts

  def build(self, frames: int, size: tuple[int, int], mesh_shape: dict[str, int]) -> AutoencoderNetwork:
    """The network for videos of this shape on a mesh of these axis sizes. ValueError says which field to change."""
    numbers = (*self.cell, *self.widths, self.latents, self.channels)
    checks = {
      f"model.cell {self.cell} holds frames, height and width": len(self.cell) != 3,
      f"model.widths {self.widths} and model.blocks {self.blocks} hold one number for each level": (
        len(self.widths) != len(self.blocks) or not self.widths
      ),
      "model.cell, widths, latents and channels are at least 1, blocks at least 0": (
        min(numbers) < 1 or min(self.blocks, default=0) < 0
      ),
      f"model.remat {self.remat!r} is none of {', '.join(REMAT)}": self.remat not in REMAT,
      f"model.dtype {self.dtype!r} is neither bfloat16 nor float32": self.dtype not in ("bfloat16", "float32"),
      f"mesh.sequence is {mesh_shape.get('sequence', 1)}: an autoencoder's frames are not laid over it, set 1": (
        mesh_shape.get("sequence", 1) > 1
      ),
    }
    if wrong := [message for message, bad in checks.items() if bad]:
      raise ValueError("; ".join(wrong))
    self.shape(frames, size)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Network(self, nnx.Rngs(0))))

    def init(key: jax.Array) -> dict:
      return nnx.to_pure_dict(nnx.state(Network(self, nnx.Rngs(key)), nnx.Param))

    def apply(params: dict, x: Array, keys: Array | None = None) -> tuple[Array, Array, Array]:
      return nnx.merge(graphdef, params)(x, keys)

    def encode(params: dict, x: Array, past: list[Array] | None = None) -> tuple[Array, list[Array]]:
      seen = Past(past)
      return nnx.merge(graphdef, params).encoder(x, seen)[..., : self.latents], seen.new

    def decode(params: dict, z: Array, past: list[Array] | None = None) -> tuple[Array, list[Array]]:
      seen = Past(past)
      return nnx.merge(graphdef, params).decoder(z, seen), seen.new

    return AutoencoderNetwork(init, apply, encode, decode)


class Spatial(nnx.Module):
  """A convolution of each frame by itself, with a kernel of (rows, columns, inputs) by outputs."""

  def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.dtype = dtype
    scale = (TAPS**2 * width) ** -0.5
    self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (TAPS**2 * width, width)))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: Video) -> Out:
    kernel = rearrange(self.kernel[...].astype(self.dtype), "(i j c) o -> i j c o", i=TAPS, j=TAPS)
    frames = rearrange(x, "b f h w c -> (b f) h w c")
    order = ("NHWC", "HWIO", "NHWC")
    made = jax.lax.conv_general_dilated(frames, kernel, (1, 1), "SAME", dimension_numbers=order)
    made += self.bias[...].astype(self.dtype)[None, None, None]
    return rearrange(made, "(b f) h w c -> b f h w c", b=len(x))


class Temporal(nnx.Module):
  """A causal convolution over time, as one product; zero at first."""

  def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.dense = Dense(TAPS * width, width, dtype=dtype, kernel_init=zeros, rngs=rngs)

  def __call__(self, x: Video, past: Past) -> Out:
    seen = past.extend(x, TAPS - 1)
    return self.dense(jnp.concatenate([seen[:, tap : tap + x.shape[1]] for tap in range(TAPS)], -1))


class Block(nnx.Module):
  """x + time(silu(norm(space(silu(norm(x)))))), both norms of a position's channels."""

  def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.before = nnx.RMSNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    self.spatial = Spatial(width, dtype=dtype, rngs=rngs)
    self.between = nnx.RMSNorm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    self.temporal = Temporal(width, dtype=dtype, rngs=rngs)

  def __call__(self, x: Video, past: Past) -> Out:
    hidden = self.spatial(nnx.silu(self.before(x)))
    return layout.constrain(x + self.temporal(nnx.silu(self.between(hidden)), past), P(layout.BATCH))


class Level(nnx.Module):
  """Blocks of one height and width."""

  def __init__(self, count: int, width: int, remat: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.blocks = nnx.List([Block(width, dtype=dtype, rngs=rngs) for _ in range(count)])
    self.remat = remat

  def __call__(self, x: Video, past: Past) -> Out:
    for block in self.blocks:
      graphdef, params = nnx.split(block)

      def body(params: Any, x: Array, old: list[Array] | None, graphdef=graphdef) -> tuple[Array, list[Array]]:
        seen = Past(old)
        return nnx.merge(graphdef, params)(x, seen), seen.new

      old = None if past.first else [next(past.old)]
      x, new = REMAT[self.remat](body)(params, x, old)
      past.new += new
    return x


class Encoder(nnx.Module):
  """Video to the mean and log variance of its latents, side by side."""

  def __init__(self, config: VideoAutoencoder, rngs: nnx.Rngs):
    self.config, dtype = config, jnp.dtype(config.dtype)
    options = dict(dtype=dtype, rngs=rngs)
    p, q, r = config.cell
    inputs = (p * q * r * config.channels, *(4 * width for width in config.widths[:-1]))
    self.down = nnx.List([Dense(count, width, **options) for count, width in zip(inputs, config.widths)])
    self.levels = nnx.List([Level(n, width, config.remat, **options) for n, width in zip(config.blocks, config.widths)])
    self.out = Dense(config.widths[-1], 2 * config.latents, **options)

  def __call__(self, x: Video, past: Past) -> Out:
    p, q, r = self.config.cell
    if past.first:
      x = jnp.concatenate([repeat(x[:, :1], "b 1 h w c -> b p h w c", p=p - 1), x], 1)
    x = rearrange(x.astype(self.config.dtype), "b (f p) (h q) (w r) c -> b f h w (p q r c)", p=p, q=q, r=r)
    for number, (down, level) in enumerate(zip(self.down, self.levels)):
      x = rearrange(x, "b f (h q) (w r) c -> b f h w (q r c)", q=2, r=2) if number else x
      x = level(down(x), past)
    return self.out(x).astype(jnp.float32)


class Decoder(nnx.Module):
  """Latents to video; see `Encoder`, whose layers it has in the other order."""

  def __init__(self, config: VideoAutoencoder, rngs: nnx.Rngs):
    self.config, dtype = config, jnp.dtype(config.dtype)
    options = dict(dtype=dtype, rngs=rngs)
    p, q, r = config.cell
    widths, outputs = config.widths[::-1], (*(4 * w for w in config.widths[-2::-1]), p * q * r * config.channels)
    self.embed = Dense(config.latents, widths[0], **options)
    self.levels = nnx.List([Level(n, width, config.remat, **options) for n, width in zip(config.blocks[::-1], widths)])
    self.up = nnx.List([Dense(width, count, **options) for width, count in zip(widths, outputs)])

  def __call__(self, z: Video, past: Past) -> Out:
    x = self.embed(z.astype(self.config.dtype))
    for number, (level, up) in enumerate(zip(self.levels, self.up)):
      x = rearrange(x, "b f h w (q r c) -> b f (h q) (w r) c", q=2, r=2) if number else x
      x = up(level(x, past))
    p, q, r = self.config.cell
    x = rearrange(x, "b f h w (p q r c) -> b (f p) (h q) (w r) c", p=p, q=q, r=r)
    return x[:, p - 1 if past.first else 0 :].astype(jnp.float32)


class Network(nnx.Module):
  def __init__(self, config: VideoAutoencoder, rngs: nnx.Rngs):
    self.encoder, self.decoder = Encoder(config, rngs), Decoder(config, rngs)

  def __call__(self, x: Video, keys: Array | None) -> tuple[Out, Array, Array]:
    mean, logvar = jnp.split(self.encoder(x, Past()), 2, axis=-1)
    logvar = jnp.clip(logvar, -30.0, 20.0)
    z = mean
    if keys is not None:
      noise = jax.vmap(lambda key: jax.random.normal(jax.random.wrap_key_data(key), mean.shape[1:]))(keys)
      z = mean + jnp.exp(0.5 * logvar) * noise
    return self.decoder(z, Past()), mean, logvar
