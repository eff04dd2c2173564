"""Attention whose logits stay in a TPU's fast memory: a Pallas kernel over blocks that hold whole sequences.

A block is some frames x some patches of the tokens (b f n d), among them all that attend to each other: the patches of
one frame for space, all frames of some patches for time, everything for joint. Short sequences share a block, and a
mask keeps them apart: to multiply what is thrown away costs the matrix unit less than to move it apart costs memory.
Between one read of queries, keys and values and one write of the output, queries and keys are normalised (RMS) and
turned by their rotary angles; the backward pass does it all again from what was read. It has a custom_vjp: under
`jax.jvp` take `attention.attend`.
"""

import math
import operator
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vdt.models.positions import grid, rope_angles

ROWS = 256  # of a block that short sequences share, and of queries that are worked on at once
MOST = 1024  # rows of a block
FAST = 14 * 2**20  # bytes of fast memory, of the 16 MiB that a kernel has
ARRAYS = 14  # that a block of the backward pass has there: read and written, and as many read ahead or written behind
WORKING = 8, 5  # and what it works on, in float32: arrays of a head's rows, and of logits
SUBLANES = 16  # rows of a tile, of bfloat16
EPSILON = 1e-6  # of the RMS normalisation, as nnx.RMSNorm


class Spec(NamedTuple):
  """What a kernel is compiled for: a block's frames, patches and heads, the size of a head; then who sees whom.

  together: a token attends to the same "frame" or the same "patch" of its block, or to "all" of it. cells: patches of
  the whole video along (f, h, w), padded frames included. valid: frames that are not padding. norm, rotary: whether
  queries and keys are normalised and turned. lies: how the tokens lie on a mesh, if there is one.
  """

  frames: int
  patches: int
  heads: int
  size: int
  together: str
  causal: bool
  cells: tuple[int, int, int]
  valid: int
  norm: bool = True
  rotary: bool = True
  lies: P | None = None
  interpret: bool = False

  @property
  def rows(self) -> int:
    return self.frames * self.patches


def choose(
  axis: str,
  tokens: tuple[int, int],
  heads: int,
  size: int,
  itemsize: int,
  cells: tuple[int, int, int],
  valid: int,
  **rest: Any,
) -> Spec | None:
  """The kernel for attention over `axis`, or None where blocks do not fit.

  tokens: (frames, patches) that one device holds, padded frames included; heads: that it holds; size: of a head;
  itemsize: bytes of a number; the rest: see `Spec`.
  """
  frames, n = tokens
  largest = lambda count, most: next(k for k in range(max(most, 1), 0, -1) if count % k == 0)
  match axis:
    case "space":
      together, block = "frame", (largest(frames, ROWS // n), n)
    case "joint":
      together, block = "all", (frames, n)
    case _:
      tile = math.gcd(n, SUBLANES)
      together, block = "patch", (frames, tile * largest(n // tile, ROWS // tile // frames))
  rows = math.prod(block)
  if size % 64 or block[1] % SUBLANES or not 128 <= rows <= MOST:
    return None
  each, logits = ARRAYS * rows * size * itemsize, min(rows, ROWS) * rows
  room = FAST - 4 * (WORKING[0] * rows * size + WORKING[1] * logits)
  fits = lambda count: heads % count == 0 and count * size % 128 == 0 and count * each <= room
  group = next((count for count in range(heads, 0, -1) if fits(count)), None)
  return None if group is None else Spec(*block, group, size, together, axis == "causal", cells, valid, **rest)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused_attention(
  spec: Spec,
  query: Float[Array, "b f n d"],
  key: Float[Array, "b f n d"],
  value: Float[Array, "b f n d"],
  query_scale: Float[Array, " e"],
  key_scale: Float[Array, " e"],
) -> Float[Array, "b f n d"]:
  """What `attention.attend` makes of queries and keys, normalised by their scales and turned; d holds the heads."""
  return _forward(spec, query, key, value, query_scale, key_scale)[0]


def _forward(spec: Spec, *args: Array) -> tuple[Array, tuple]:
  (out,) = _call(spec, "fused_attention_fwd", _forward_kernel, args[:3], args[3:], outputs=1, products=2)
  return out, args


def _backward(spec: Spec, args: tuple, grad: Array) -> tuple:
  *tokens, query_scale, key_scale = args
  tokens = (*tokens, grad.astype(tokens[0].dtype))
  *grads, sums = _call(spec, "fused_attention_bwd", _backward_kernel, tokens, args[3:], outputs=3, products=5)
  of_query, of_key = sums.sum(0)[:2]
  return *grads, of_query.astype(query_scale.dtype), of_key.astype(key_scale.dtype)


fused_attention.defvjp(_forward, _backward)


def _call(
  spec: Spec, name: str, kernel: Any, tokens: tuple, scales: tuple, outputs: int, products: int
) -> tuple[Array, ...]:
  """The kernel on each device's part of `tokens`: `outputs` arrays like them and, backward, parts of the scales' sums.

  products: matrix products of queries and keys, or of their size, that it takes; of what a mask throws away, too.
  """
  backward, tables = outputs > 1, _tables(spec)

  def local(*args: Array) -> tuple[Array, ...]:
    *tokens, query_scale, key_scale = args
    b, f, n, d = tokens[0].shape
    steps = (b, f // spec.frames, n // spec.patches, d // (spec.heads * spec.size))
    block = pl.BlockSpec((1, spec.frames, spec.patches, spec.heads * spec.size), lambda *at: at)
    constant = lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)
    shared = (jnp.stack([query_scale, key_scale]).astype(jnp.float32), *tables)
    like = jax.ShapeDtypeStruct(tokens[0].shape, tokens[0].dtype)
    shapes, specs = [like] * outputs, [block] * outputs
    if backward:  # one row of partial sums for each block
      number = lambda *at: (((at[0] * steps[1] + at[1]) * steps[2] + at[2]) * steps[3] + at[3], 0, 0)
      shapes.append(jax.ShapeDtypeStruct((math.prod(steps), 8, spec.size), jnp.float32))
      specs.append(pl.BlockSpec((1, 8, spec.size), number))
    logits = tokens[0].size // spec.size * spec.rows
    cost = pl.CostEstimate(
      flops=products * 2 * logits * spec.size,
      transcendentals=logits,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*tokens, *shapes)),
    )
    made = pl.pallas_call(
      partial(kernel, spec),
      grid=steps,
      in_specs=[*[block] * len(tokens), *map(constant, shared)],
      out_specs=specs,
      out_shape=shapes,
      name=name,
      interpret=spec.interpret,
      compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 4),
      cost_estimate=cost,
    )(*tokens, *shared)
    return tuple(made)

  if spec.lies is not None:
    axes = tuple(axis for part in spec.lies for axis in (part if isinstance(part, tuple) else (part,)) if axis)
    inside, out = (spec.lies,) * len(tokens) + (P(),) * 2, (spec.lies,) * outputs + (P(axes),) * backward
    mesh = jax.sharding.get_abstract_mesh()
    local = jax.shard_map(local, mesh=mesh, in_specs=inside, out_specs=out, check_vma=False)
  return local(*tokens, *scales)


def _tables(spec: Spec) -> tuple[np.ndarray, ...]:
  """cos and sin of the rotary angles of a block's tokens, (rows, e) each, laid out for `_turn`."""
  if not spec.rotary:
    return ()
  f, h, w = spec.cells
  match spec.together:
    case "frame":
      coordinates = np.tile(grid(h, w), (spec.frames, 1))
    case "patch":
      coordinates = np.repeat(grid(f), spec.patches, axis=0)
    case _:
      coordinates = grid(f, h, w)
  angles = rope_angles(coordinates, spec.size)
  cos, sin = np.cos(angles), np.sin(angles)
  return np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)


def _turn(x: Array, cos: Array, sin: Array) -> Array:
  """`positions.rotate`: cos x + sin (x with its halves exchanged)."""
  half = x.shape[-1] // 2
  return x * cos + jnp.concatenate([x[:, half:], x[:, :half]], axis=-1) * sin


class _Prepared(NamedTuple):
  """Rows of queries or keys: as read, over their root mean square, which is 1 / inverse, and ready for the product."""

  raw: Array
  inverse: Array
  ready: Array


def _prepare(spec: Spec, x: Array, scale: Array, tables: tuple) -> _Prepared:
  raw = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(raw * raw, axis=-1, keepdims=True) + EPSILON) if spec.norm else jnp.ones((1, 1))
  ready = raw * inverse * scale if spec.norm else raw
  if spec.rotary:
    ready = _turn(ready, *tables)
  return _Prepared(raw, inverse, ready.astype(x.dtype))


def _unprepare(spec: Spec, prepared: _Prepared, grad: Array, scale: Array, tables: tuple) -> tuple[Array, Array]:
  """Gradients of what was read and of the scale, from the gradient of what was ready."""
  if spec.rotary:
    cos, sin = tables
    grad = _turn(grad, cos, -sin)
  if not spec.norm:
    return grad, jnp.zeros((1, spec.size))
  normal = prepared.raw * prepared.inverse
  scaled = grad * scale
  back = prepared.inverse * (scaled - normal * jnp.mean(scaled * normal, axis=-1, keepdims=True))
  return back, jnp.sum(grad * normal, axis=0, keepdims=True)


def _product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
  """Of two matrices over an axis of each, added up in float32."""
  return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def _weights(spec: Spec, query: Array, key: Array, start: int) -> Array:
  """Softmax of the logits of the queries from row `start` on, in float32; zero where a mask says so."""
  logits = _product(query, key, (1, 1)) * spec.size**-0.5
  place = lambda axis, first: jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) + first
  mine, other = place(0, start), place(1, 0)
  frame, patch = (lambda at: at // spec.patches), (lambda at: at % spec.patches)
  rules = []
  if spec.together == "frame" and spec.frames > 1:
    rules.append(frame(mine) == frame(other))
  if spec.together == "patch" and spec.patches > 1:
    rules.append(patch(mine) == patch(other))
  if spec.causal:
    rules.append(frame(other) <= frame(mine))
  if spec.valid < spec.cells[0] and spec.together != "frame":
    rules.append(frame(other) < spec.valid)
  if rules:
    logits = jnp.where(reduce(operator.and_, rules), logits, -1e30)
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _at(spec: Spec, head: int) -> tuple[Any, ...]:
  """Where a head is in a block."""
  return (0, slice(None), slice(None), slice(head * spec.size, (head + 1) * spec.size))


def _read(spec: Spec, ref: Any, head: int) -> Array:
  """A head's rows of a block."""
  return ref[_at(spec, head)].reshape(spec.rows, spec.size)


def _write(spec: Spec, ref: Any, head: int, values: Array) -> None:
  ref[_at(spec, head)] = values.astype(ref.dtype).reshape(spec.frames, spec.patches, spec.size)


def _forward_kernel(spec: Spec, query: Any, key: Any, value: Any, scales: Any, *rest: Any) -> None:
  *tables, out = rest
  tables = tuple(table[...] for table in tables)
  for head in range(spec.heads):
    q = _prepare(spec, _read(spec, query, head), scales[0:1, :], tables).ready
    k = _prepare(spec, _read(spec, key, head), scales[1:2, :], tables).ready
    v = _read(spec, value, head)
    parts = []
    for start in range(0, spec.rows, ROWS):
      weights = _weights(spec, q[start : start + ROWS], k, start)
      parts.append(_product(weights.astype(v.dtype), v, (1, 0)))
    _write(spec, out, head, jnp.concatenate(parts))


def _backward_kernel(spec: Spec, query: Any, key: Any, value: Any, grad: Any, scales: Any, *rest: Any) -> None:
  *tables, of_query, of_key, of_value, of_scales = rest
  tables = tuple(table[...] for table in tables)
  sums = [jnp.zeros((1, spec.size), jnp.float32)] * 2
  for head in range(spec.heads):
    q = _prepare(spec, _read(spec, query, head), scales[0:1, :], tables)
    k = _prepare(spec, _read(spec, key, head), scales[1:2, :], tables)
    v, g = _read(spec, value, head), _read(spec, grad, head)
    dq, dk, dv = [], 0.0, 0.0
    for start in range(0, spec.rows, ROWS):
      rows = slice(start, start + ROWS)
      weights = _weights(spec, q.ready[rows], k.ready, start)
      dv += _product(weights.astype(v.dtype), g[rows], (0, 0))
      back = _product(g[rows], v, (1, 1))
      logits = weights * (back - jnp.sum(back * weights, axis=-1, keepdims=True)) * spec.size**-0.5
      logits = logits.astype(v.dtype)
      dq.append(_product(logits, k.ready, (1, 0)))
      dk += _product(logits, q.ready[rows], (0, 0))
    dq, sum_query = _unprepare(spec, q, jnp.concatenate(dq), scales[0:1, :], tables)
    dk, sum_key = _unprepare(spec, k, dk, scales[1:2, :], tables)
    sums = [sums[0] + sum_query, sums[1] + sum_key]
    for ref, values in ((of_query, dq), (of_key, dk), (of_value, dv)):
      _write(spec, ref, head, values)
  of_scales[0, 0:1, :], of_scales[0, 1:2, :] = sums
  of_scales[0, 2:8, :] = jnp.zeros((6, spec.size), jnp.float32)
