"""Attention over a named axis of the tokens (b f n d): `space`, `time`, `causal` (time, past only) or `joint`; or from
them to a text, or to the sound of their time."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from vdt.models import layout
from vdt.models.fused_attention import MOST, Spec, choose, fused_attention
from vdt.models.layers import Dense
from vdt.models.positions import grid, rope_angles, rotate

AXES = {  # axes that may lie over a mesh are not merged: the compiler would gather them
  "space": "b f n k e -> b f k n e",
  "time": "b f n k e -> b n k f e",
  "causal": "b f n k e -> b n k f e",
  "joint": "b f n k e -> b k (f n) e",
}


def coordinates(axis: str, cells: tuple[int, int, int]) -> Float[np.ndarray, "s axes"]:
  """The coordinates of the tokens that attend to each other, for a video of (f, h, w) patches."""
  return grid(*{"space": cells[1:], "joint": cells}.get(axis, cells[:1]))


def attend(
  query: Float[Array, "*b s e"],
  key: Float[Array, "*b r e"],
  value: Float[Array, "*b r e"],
  causal: bool = False,
  valid: Bool[np.ndarray, " r"] | None = None,
) -> Float[Array, "*b s e"]:
  """softmax(query key / sqrt(e)) value, with logits and softmax in float32. Safe under `jax.jvp`.

  causal: a query sees no later key. valid: keys that may be seen, at least the first; default: all.
  """
  logits = jnp.einsum("...se,...re->...sr", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  s, r = logits.shape[-2:]
  seen = np.ones((s, r), bool) if valid is None else np.broadcast_to(valid, (s, r))
  if causal:
    seen = np.tril(seen, r - s)
  if not seen.all():
    logits = jnp.where(jnp.broadcast_to(seen, logits.shape), logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("...sr,...re->...se", weights, value)


def attend_long(
  query: Float[Array, "*b k s e"],
  key: Float[Array, "*b k s e"],
  value: Float[Array, "*b k s e"],
  causal: bool = False,
  valid: Bool[np.ndarray, " s"] | None = None,
  lies: P | None = None,
  interpret: bool = False,
) -> Float[Array, "*b k s e"]:
  """`attend` for sequences that no block holds: JAX's splash kernel, with a custom_vjp.

  Lengths and heads are filled up to multiples of 128, which no token sees. causal, valid: as `attend` has them, but
  that what comes out for tokens that are not valid means nothing. lies: how the arguments lie on a mesh, if there is
  one.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  length, size = query.shape[-2:]
  whole = -(-length // 128) * 128
  there = np.pad(np.ones(length, bool) if valid is None else valid, (0, whole - length))

  def local(*args: Array) -> Array:
    filled = [(0, 0)] * (args[0].ndim - 2) + [(0, whole - length), (0, -size % 128)]
    query, key, value = (jnp.pad(x, filled) for x in args)
    block = next(block for block in (512, 256, 128) if whole % block == 0)
    mask = (masks.CausalMask if causal else masks.FullMask)((whole, whole))
    made = splash.make_splash_mha_single_device(
      masks.MultiHeadMask([mask] * query.shape[-3]), block_sizes=splash.BlockSizes(*[block] * 8), interpret=interpret
    )
    segments = None if there.all() else splash.SegmentIds(jnp.zeros(whole, jnp.int32), jnp.asarray(~there, jnp.int32))
    kernel = lambda query, key, value: made(query, key, value, segments)
    for _ in query.shape[:-3]:
      kernel = jax.vmap(kernel)
    with jax.named_scope(f"{'causal_' if causal else ''}block_{block}"):  # `vdt plan` reads it
      return kernel(query * size**-0.5, key, value)[..., :length, :size]

  if lies is not None:
    mesh = jax.sharding.get_abstract_mesh()
    local = jax.shard_map(local, mesh=mesh, in_specs=(lies,) * 3, out_specs=lies, check_vma=False)
  return local(query, key, value)


class Heads(nnx.Module):
  """What any attention has: dense maps to queries, keys and values and back, and norms of queries and keys, or None.

  The norms are RMS over a head (arXiv:2302.05442).
  """

  def __init__(self, width: int, heads: int, *, qk_norm: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.heads = heads
    self.query = Dense(width, width, dtype=dtype, rngs=rngs)
    self.key = Dense(width, width, dtype=dtype, rngs=rngs)
    self.value = Dense(width, width, dtype=dtype, rngs=rngs)
    self.out = Dense(width, width, dtype=dtype, rngs=rngs)
    norm = lambda: nnx.RMSNorm(width // heads, dtype=dtype, rngs=rngs) if qk_norm else None
    self.query_norm, self.key_norm = norm(), norm()


class CrossAttention(Heads):
  """Attention from all tokens to those of a condition: to all of a text's, or to what is heard about their frame."""

  def __call__(
    self,
    x: Float[Array, "b f n d"],
    told: Float[Array, "b l d"] | Float[Array, "b f l d"],
    seen: Bool[Array, "#b #f l"],
    split: int,
  ) -> Float[Array, "b f n d"]:
    """seen: which of `told` are there, at least one. split: see `layout`."""
    frames = "f" if told.ndim == 4 else ""
    query = rearrange(layout.hidden(self.query(x), split), "b f n (k e) -> b f n k e", k=self.heads)
    key, value = (rearrange(dense(told), "... l (k e) -> ... l k e", k=self.heads) for dense in (self.key, self.value))
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    logits = jnp.einsum(f"bfnke,b{frames}lke->bkfnl", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1, where=seen[:, None, :, None])
    y = jnp.einsum(f"bkfnl,b{frames}lke->bfnke", weights.astype(value.dtype), value)
    return layout.tokens(self.out(layout.hidden(rearrange(y, "b f n k e -> b f n (k e)"), split)), split)


class Attention(Heads):
  """Self-attention over one named axis; rotary: queries and keys are turned by where they stand."""

  def __init__(self, axis: str, width: int, heads: int, *, rotary: bool, **options):
    super().__init__(width, heads, **options)
    self.axis, self.rotary = axis, rotary

  def __call__(
    self, x: Float[Array, "b f n d"], cells: tuple[int, int, int], kernels: bool, split: int
  ) -> Float[Array, "b f n d"]:
    """cells: patches along (f, h, w), of which `x` may hold more frames, of padding. split: see `layout`.

    kernels: on a TPU the logits stay out of its memory, in blocks of whole sequences (`fused_attention.choose`) or in
    parts of long ones (`attend_long`); without them it is safe under `jax.jvp`.
    """
    joint, kernels = self.axis == "joint", kernels and layout.on_tpu()
    query, key, value = (layout.hidden(dense(x), split) for dense in (self.query, self.key, self.value))
    if joint:
      query, key, value = (layout.by_heads(y, split) for y in (query, key, value))
    if spec := self.kernel(x, cells, split) if kernels else None:
      ones = jnp.ones(spec.size)
      scales = [ones if norm is None else norm.scale[...] for norm in (self.query_norm, self.key_norm)]
      y = fused_attention(spec, query, key, value, *scales)
    else:
      y = self.plain(query, key, value, cells, kernels, split)
    y = layout.by_tokens(y, split) if joint else layout.hidden(y, split)
    return layout.tokens(self.out(y), split)

  def kernel(self, x: Array, cells: tuple[int, int, int], split: int) -> Spec | None:
    """The kernel for tokens `x`, if there is one for their shape."""
    _, f, n, d = x.shape
    lies, (frames, patches, heads) = layout.inside(split, self.axis == "joint")
    rest = dict(norm=self.query_norm is not None, rotary=self.rotary, lies=lies)
    tokens, video = (f // frames, n // patches), (f, *cells[1:])
    return choose(self.axis, tokens, self.heads // heads, d // self.heads, x.dtype.itemsize, video, cells[0], **rest)

  def plain(
    self, query: Array, key: Array, value: Array, cells: tuple[int, int, int], kernels: bool, split: int
  ) -> Array:
    """Attention of queries, keys and values (b f n d) by heads: `attend`, or, of long sequences, `attend_long`."""
    _, f, n, _ = query.shape
    pattern, joint = AXES[self.axis], self.axis == "joint"
    query, key, value = (rearrange(y, "b f n (k e) -> b f n k e", k=self.heads) for y in (query, key, value))
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    query, key, value = (rearrange(y, pattern) for y in (query, key, value))
    if self.rotary:
      angles = rope_angles(coordinates(self.axis, (f, *cells[1:])), query.shape[-1])
      query, key = rotate(query, angles), rotate(key, angles)
    padded = f > cells[0] and self.axis != "space"
    seen = {
      "causal": self.axis == "causal",
      "valid": np.repeat(np.arange(f) < cells[0], n if joint else 1) if padded else None,
    }
    if kernels and query.shape[-2] > MOST:
      lies, _ = layout.inside(split, joint)
      if lies is not None:
        b, frames, patches, heads = lies
        lies = {"space": P(b, frames, heads), "joint": P(b, heads)}.get(self.axis, P(b, patches, heads))
      y = attend_long(query, key, value, **seen, lies=lies)
    else:
      y = attend(query, key, value, **seen)
    merged, by_axis = pattern.split(" -> ")
    return rearrange(rearrange(y, f"{by_axis} -> {merged}", f=f, n=n), "b f n k e -> b f n (k e)")
