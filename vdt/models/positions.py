"""Where a token stands: rotary angles for attention, or sin-cos tables added to the tokens."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

THETA = 100.0  # the axial RoPE of arXiv:2403.13298, whose axes are as short as ours


def grid(*sizes: int) -> Float[np.ndarray, "n axes"]:
  """The coordinates of every cell of a grid, the last axis fastest."""
  return np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes)).astype(np.float32)


def rope_angles(coordinates: Float[np.ndarray, "s axes"], head_size: int) -> Float[np.ndarray, "s e2"]:
  """Rotation angles (arXiv:2104.09864): the e/2 frequencies are dealt out evenly to the axes."""
  shares = np.array_split(np.arange(head_size // 2), coordinates.shape[1])
  frequencies = [THETA ** (-np.arange(len(share)) / max(len(share), 1)) for share in shares]
  angles = [np.outer(axis, frequency) for axis, frequency in zip(coordinates.T, frequencies)]
  return np.concatenate(angles, -1).astype(np.float32)


def rotate(x: Float[Array, "*b s e"], angles: Float[np.ndarray, "s e2"]) -> Float[Array, "*b s e"]:
  """x with each pair (x_i, x_{i + e/2}) turned by its position's angle."""
  angles = angles.reshape(*(1,) * (x.ndim - 2), *angles.shape)
  cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def sincos(coordinates: Float[np.ndarray, "s axes"], width: int) -> Float[np.ndarray, "s width"]:
  """A fixed table, sin then cos for each axis, the *last* axis first (the layout of DiT, arXiv:2212.09748)."""
  size = width // coordinates.shape[1]
  frequencies = 10_000.0 ** (-np.arange(size // 2) / (size / 2))
  angles = [np.outer(axis, frequencies) for axis in coordinates.T[::-1]]
  table = np.concatenate([np.concatenate([np.sin(a), np.cos(a)], -1) for a in angles], -1)
  return np.pad(table, ((0, 0), (0, width - table.shape[1]))).astype(np.float32)


def sincos_tables(
  cells: tuple[int, int, int], width: int
) -> tuple[Float[np.ndarray, "n width"], Float[np.ndarray, "f width"]]:
  """The tables of the places in a frame and of the frames, for a video of (f, h, w) patches."""
  return sincos(grid(*cells[1:]), width), sincos(grid(cells[0]), width)
