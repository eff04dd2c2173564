"""Attention over a named axis of the tokens (b f n d): `space`, `time`, `causal` (time, past only) or `joint`."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vdt.models.layers import Dense
from vdt.models.positions import grid, rope_angles, rotate

AXES = {
  "space": "b f n k e -> (b f) k n e",
  "time": "b f n k e -> (b n) k f e",
  "causal": "b f n k e -> (b n) k f e",
  "joint": "b f n k e -> b k (f n) e",
}


def coordinates(axis: str, cells: tuple[int, int, int]) -> Float[np.ndarray, "s axes"]:
  """The coordinates of the tokens that attend to each other, for a video of (f, h, w) patches."""
  return grid(*{"space": cells[1:], "joint": cells}.get(axis, cells[:1]))


def attend(
  query: Float[Array, "b k s e"],
  key: Float[Array, "b k r e"],
  value: Float[Array, "b k r e"],
  causal: bool = False,
) -> Float[Array, "b k s e"]:
  """softmax(query key / sqrt(e)) value, with logits and softmax in float32. Safe under `jax.jvp`."""
  logits = jnp.einsum("bkse,bkre->bksr", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
  if causal:
    s, r = logits.shape[-2:]
    logits = jnp.where(jnp.tril(jnp.ones((s, r), bool), r - s)[None, None], logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum("bksr,bkre->bkse", weights, value)


class Attention(nnx.Module):
  """Multi-head self-attention over one named axis, with RMS-normalised queries and keys (arXiv:2302.05442)."""

  def __init__(
    self, axis: str, width: int, heads: int, *, qk_norm: bool, rotary: bool, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    self.axis, self.heads, self.rotary = axis, heads, rotary
    self.query = Dense(width, width, dtype=dtype, rngs=rngs)
    self.key = Dense(width, width, dtype=dtype, rngs=rngs)
    self.value = Dense(width, width, dtype=dtype, rngs=rngs)
    self.out = Dense(width, width, dtype=dtype, rngs=rngs)
    norm = lambda: nnx.RMSNorm(width // heads, dtype=dtype, rngs=rngs) if qk_norm else None
    self.query_norm, self.key_norm = norm(), norm()

  def __call__(self, x: Float[Array, "b f n d"], cells: tuple[int, int, int]) -> Float[Array, "b f n d"]:
    split = lambda y: rearrange(y, "b f n (k e) -> b f n k e", k=self.heads)
    query, key, value = (split(dense(x)) for dense in (self.query, self.key, self.value))
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    pattern = AXES[self.axis]
    query, key, value = (rearrange(y, pattern) for y in (query, key, value))
    if self.rotary:
      angles = rope_angles(coordinates(self.axis, cells), query.shape[-1])
      query, key = rotate(query, angles), rotate(key, angles)
    y = attend(query, key, value, causal=self.axis == "causal")
    merged, apart = pattern.split(" -> ")
    y = rearrange(y, f"{apart} -> {merged}", b=x.shape[0], f=x.shape[1], n=x.shape[2])
    return self.out(rearrange(y, "b f n k e -> b f n (k e)"))
