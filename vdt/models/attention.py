"""Attention over a named axis of the tokens (b f n d): `space`, `time`, `causal` (time, past only) or `joint`."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from vdt.models import layout
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

  def __call__(self, x: Float[Array, "b f n d"], cells: tuple[int, int, int], split: int) -> Float[Array, "b f n d"]:
    """cells: patches along (f, h, w), of which `x` may hold more frames, of padding. split: see `layout`."""
    b, f, n, _ = x.shape
    joint = self.axis == "joint"
    apart = lambda y: layout.heads(rearrange(y, "b f n (k e) -> b f n k e", k=self.heads), split)
    query, key, value = (apart(dense(x)) for dense in (self.query, self.key, self.value))
    if self.query_norm is not None:
      query, key = self.query_norm(query), self.key_norm(key)
    if joint:
      query, key, value = (layout.by_heads(y, split) for y in (query, key, value))
    pattern = AXES[self.axis]
    query, key, value = (rearrange(y, pattern) for y in (query, key, value))
    if self.rotary:
      angles = rope_angles(coordinates(self.axis, (f, *cells[1:])), query.shape[-1])
      query, key = rotate(query, angles), rotate(key, angles)
    padded = f > cells[0] and self.axis != "space"
    valid = np.repeat(np.arange(f) < cells[0], n if joint else 1) if padded else None
    y = attend(query, key, value, causal=self.axis == "causal", valid=valid)
    merged, by_axis = pattern.split(" -> ")
    y = rearrange(y, f"{by_axis} -> {merged}", b=b, f=f, n=n)
    y = layout.by_tokens(y, split) if joint else layout.heads(y, split)
    return layout.tokens(self.out(rearrange(y, "b f n k e -> b f n (k e)")), split)
