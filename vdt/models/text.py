"""Encoders of text, from the numbers of its tokens to a vector for each: T5's (1.0, 1.1, mT5, umT5), and BERT's.

What they are given is (b l) numbers, and which of them are there: at least one of each text. Numbers that are not there
change nothing of what comes out for the others; what comes out for themselves means nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vdt.models import layout
from vdt.models.layers import Dense

normal = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
HIDDEN = P(layout.BATCH, None, "tensor")


class TextNetwork(NamedTuple):
  """`params = init(key)`; `tokens = apply(params, ids, seen)`; params is a plain nested dict of float32 arrays."""

  init: Callable
  apply: Callable


@dataclasses.dataclass
class T5Config:
  """An encoder of T5 (arXiv:1910.10683); by default as large as 1.1's small one.

  vocabulary: tokens there are. head_size: numbers of a head, whatever the width is. mlp: width inside of an MLP.
  buckets, distance: see `buckets`. gated: whether the MLP is T5 1.1's and mT5's, a tanh-approximated GELU times a
  second map (arXiv:2002.05202); else T5 1.0's, with ReLU. bias_each: whether each layer has positions of its own, as
  umT5's do; else all share the first's. dtype: of the computation; parameters are float32 always.
  """

  vocabulary: int = 32_128
  width: int = 512
  depth: int = 8
  heads: int = 6
  head_size: int = 64
  mlp: int = 1024
  buckets: int = 32
  distance: int = 128
  gated: bool = True
  bias_each: bool = False
  epsilon: float = 1e-6
  dtype: str = "bfloat16"

  def check(self) -> None:
    """ValueError that names a field, and says what it has to be."""
    sizes(self, "vocabulary", "width", "depth", "heads", "head_size", "mlp")
    if self.buckets < 4 or self.distance <= self.buckets // 4:
      raise ValueError(
        f"text.buckets is {self.buckets}, text.distance {self.distance}: at least 4, and more than a quarter of them"
      )

  def build(self) -> TextNetwork:
    """ValueError as `check`."""
    return built(T5Encoder, self)


@dataclasses.dataclass
class BertConfig:
  """An encoder of BERT (arXiv:1810.04805); by default all-MiniLM-L6-v2's. length: tokens that a text may have at most.

  kinds: of segments, of which a text is the first. vocabulary, mlp and dtype as T5's.
  """

  vocabulary: int = 30_522
  width: int = 384
  depth: int = 6
  heads: int = 12
  mlp: int = 1536
  length: int = 512
  kinds: int = 2
  epsilon: float = 1e-12
  dtype: str = "bfloat16"

  def check(self) -> None:
    """ValueError that names a field, and says what it has to be."""
    sizes(self, "vocabulary", "width", "depth", "heads", "mlp", "length", "kinds")
    if self.width % self.heads:
      raise ValueError(f"text.width {self.width} is not a multiple of text.heads {self.heads}")

  def build(self) -> TextNetwork:
    """ValueError as `check`."""
    return built(BertEncoder, self)


def sizes(config: T5Config | BertConfig, *names: str) -> None:
  least = min(names, key=lambda name: getattr(config, name))
  if getattr(config, least) < 1:
    raise ValueError(f"text.{least} is {getattr(config, least)}: at least 1")
  if config.dtype not in ("bfloat16", "float32"):
    raise ValueError(f"text.dtype {config.dtype!r} is neither bfloat16 nor float32")


def built(encoder: type, config: Any) -> TextNetwork:
  graphdef = nnx.graphdef(nnx.eval_shape(lambda: encoder(config, nnx.Rngs(0))))

  def init(key: jax.Array) -> dict:
    return nnx.to_pure_dict(nnx.state(encoder(config, nnx.Rngs(key)), nnx.Param))

  def apply(params: dict, ids: jax.Array, seen: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params)(ids, seen)

  return TextNetwork(init, apply)


def buckets(length: int, count: int, distance: int) -> Int[np.ndarray, "l l"]:
  """The bucket of each pair (query, key), by how far the key is (arXiv:1910.10683, section 2.1).

  Half of the buckets are for keys that come later. Of each half, the first half holds one distance each, the others
  ever more of them, up to `distance`; what is farther is in the last. Rounded in float32, as T5 was trained.
  """
  apart = np.arange(length)[None] - np.arange(length)[:, None]
  far, side = np.abs(apart), count // 2
  single = side // 2
  ratio = np.log(np.maximum(far, single).astype(np.float32) / np.float32(single)) / np.float32(
    np.log(distance / single)
  )
  wide = single + (ratio * np.float32(side - single)).astype(int)
  return side * (apart > 0) + np.where(far < single, far, np.minimum(wide, side - 1))


class Positions(nnx.Module):
  """What is added to the logits of each head, for how far a key is from a query."""

  def __init__(self, config: T5Config, rngs: nnx.Rngs):
    self.count, self.distance = config.buckets, config.distance
    self.table = nnx.Param(jax.random.normal(rngs.params(), (config.buckets, config.heads)) * config.width**-0.5)

  def __call__(self, length: int) -> Float[Array, "k l l"]:
    return rearrange(self.table[...][buckets(length, self.count, self.distance)], "q r k -> k q r")


class SelfAttention(nnx.Module):
  """Attention of each token to all that are there.

  scaled: whether logits are divided by the root of a head's size; T5 makes the first queries smaller instead.
  """

  def __init__(self, width: int, heads: int, size: int, *, scaled: bool, bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.heads, self.scale = heads, size**-0.5 if scaled else 1.0
    options = dict(bias=bias, dtype=dtype, rngs=rngs)
    small = normal if scaled else nnx.initializers.variance_scaling(1.0 / size, "fan_in", "normal")
    self.query = Dense(width, heads * size, kernel_init=small, **options)
    self.key = Dense(width, heads * size, kernel_init=normal, **options)
    self.value = Dense(width, heads * size, kernel_init=normal, **options)
    self.out = Dense(heads * size, width, kernel_init=normal, **options)

  def __call__(
    self, x: Float[Array, "b l d"], seen: Bool[Array, "b l"], bias: Float[Array, "k l l"] | None
  ) -> Float[Array, "b l d"]:
    """bias: of the logits, which are float32, as their softmax."""
    maps = self.query, self.key, self.value
    query, key, value = (
      rearrange(layout.constrain(dense(x), HIDDEN), "b l (k e) -> b l k e", k=self.heads) for dense in maps
    )
    logits = jnp.einsum("bqke,brke->bkqr", query, key, preferred_element_type=jnp.float32) * self.scale
    if bias is not None:
      logits += bias[None]
    weights = jax.nn.softmax(logits, axis=-1, where=seen[:, None, None]).astype(value.dtype)
    y = rearrange(jnp.einsum("bkqr,brke->bqke", weights, value), "b l k e -> b l (k e)")
    return layout.whole(self.out(layout.constrain(y, HIDDEN)))


class T5Layer(nnx.Module):
  """Attention and an MLP, each of the normalised tokens and added to them."""

  def __init__(self, config: T5Config, rngs: nnx.Rngs):
    options = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
    width, dense = config.width, dict(bias=False, kernel_init=normal, **options)
    self.attention_norm = nnx.RMSNorm(width, epsilon=config.epsilon, **options)
    self.attention = SelfAttention(width, config.heads, config.head_size, scaled=False, bias=False, **options)
    self.positions = Positions(config, rngs) if config.bias_each else None
    self.mlp_norm = nnx.RMSNorm(width, epsilon=config.epsilon, **options)
    self.up = Dense(width, config.mlp, **dense)
    self.gate_up = Dense(width, config.mlp, **dense) if config.gated else None
    self.down = Dense(config.mlp, width, **dense)

  def __call__(
    self, x: Float[Array, "b l d"], seen: Bool[Array, "b l"], bias: Float[Array, "k l l"] | None
  ) -> Float[Array, "b l d"]:
    """bias: where this layer has no positions of its own."""
    bias = self.positions(x.shape[1]) if self.positions is not None else bias
    x += self.attention(self.attention_norm(x), seen, bias)
    normed = self.mlp_norm(x)
    hidden = layout.constrain(self.up(normed), HIDDEN)
    if self.gate_up is None:
      hidden = nnx.relu(hidden)
    else:
      hidden *= nnx.gelu(layout.constrain(self.gate_up(normed), HIDDEN), approximate=True)
    return x + layout.whole(self.down(hidden))


class T5Encoder(nnx.Module):
  """T5's encoder, for its weights or to be trained along with what reads the text.

  At first its arrays are as T5's: tokens normal of deviation 1, so that a step of the optimizer turns them little, maps
  that keep variances, queries smaller by the root of a head's size in the place of scaled logits.
  """

  def __init__(self, config: T5Config, rngs: nnx.Rngs):
    """ValueError as `T5Config.check`."""
    config.check()
    dtype, width, unit = jnp.dtype(config.dtype), config.width, nnx.initializers.normal(1.0)
    self.embed = nnx.Embed(config.vocabulary, width, dtype=dtype, embedding_init=unit, rngs=rngs)
    self.positions = None if config.bias_each else Positions(config, rngs)
    self.layers = stacked(T5Layer, config, rngs)
    self.norm = nnx.RMSNorm(width, epsilon=config.epsilon, dtype=dtype, rngs=rngs)

  def __call__(self, ids: Int[Array, "b l"], seen: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
    bias = None if self.positions is None else self.positions(ids.shape[1])
    return self.norm(repeat(self.layers, layout.whole(self.embed(ids)), seen, bias))


class BertLayer(nnx.Module):
  """Attention and an MLP with an exact GELU, each added to the tokens and then normalised."""

  def __init__(self, config: BertConfig, rngs: nnx.Rngs):
    options = dict(dtype=jnp.dtype(config.dtype), rngs=rngs)
    norm = lambda: nnx.LayerNorm(config.width, epsilon=config.epsilon, use_fast_variance=False, **options)
    size = config.width // config.heads
    self.attention = SelfAttention(config.width, config.heads, size, scaled=True, bias=True, **options)
    self.attention_norm, self.mlp_norm = norm(), norm()
    self.up = Dense(config.width, config.mlp, kernel_init=normal, **options)
    self.down = Dense(config.mlp, config.width, kernel_init=normal, **options)

  def __call__(self, x: Float[Array, "b l d"], seen: Bool[Array, "b l"], bias: None) -> Float[Array, "b l d"]:
    x = self.attention_norm(x + self.attention(x, seen, bias))
    hidden = nnx.gelu(layout.constrain(self.up(x), HIDDEN), approximate=False)
    return self.mlp_norm(x + layout.whole(self.down(hidden)))


class BertEncoder(nnx.Module):
  """BERT's encoder, of texts that are the first segment, up to its last layer's tokens."""

  def __init__(self, config: BertConfig, rngs: nnx.Rngs):
    """ValueError as `BertConfig.check`."""
    config.check()
    dtype, width, small = jnp.dtype(config.dtype), config.width, nnx.initializers.normal(0.02)
    self.embed = nnx.Embed(config.vocabulary, width, dtype=dtype, embedding_init=small, rngs=rngs)
    self.positions = nnx.Param(small(rngs.params(), (config.length, width)))
    self.kinds = nnx.Param(small(rngs.params(), (config.kinds, width)))
    self.norm = nnx.LayerNorm(width, epsilon=config.epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)
    self.layers = stacked(BertLayer, config, rngs)

  def __call__(self, ids: Int[Array, "b l"], seen: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
    """ValueError for more tokens than there are positions."""
    length, most = ids.shape[1], len(self.positions[...])
    if length > most:
      raise ValueError(f"texts of {length} tokens: this encoder has positions for {most}")
    x = self.embed(ids)
    x += (self.positions[...][:length] + self.kinds[...][:1]).astype(x.dtype)[None]
    return repeat(self.layers, layout.whole(self.norm(x)), seen, None)


def stacked(layer: type, config: Any, rngs: nnx.Rngs) -> nnx.Module:
  """All layers as one, each of whose arrays has an axis more in front."""
  return nnx.vmap(lambda key: layer(config, nnx.Rngs(key)))(jax.random.split(rngs.params(), config.depth))


def repeat(layers: nnx.Module, x: Float[Array, "b l d"], *rest: Any) -> Float[Array, "b l d"]:
  """One layer after the other, as one scan: depth costs no compile time."""
  graphdef, params = nnx.split(layers)
  return jax.lax.scan(lambda x, layer: (nnx.merge(graphdef, layer)(x, *rest), None), x, params)[0]
