"""What the user supplied: masks named by task, and the noise plan that follows from them.

Every task is the same model with another `given` mask (arXiv:2305.13311 gives the taxonomy): a frame that was given
has diffusion time 0, a hole in a frame keeps its neighbours clean, and the loss is taken over the rest.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Shape = tuple[int, int, int]
Mask = Float[Array, "f h w"]


def _frames(chosen: jax.Array, shape: Shape) -> Mask:
  return jnp.broadcast_to(chosen[:, None, None].astype(jnp.float32), shape)


def _count(key: jax.Array, low: int, high: int, count: int | None) -> jax.Array:
  """Uniform in [low, high], or `count`; never more than `high`, so that something is left to generate."""
  drawn = jax.random.randint(key, (), low, max(high, low) + 1) if count is None else jnp.int32(count)
  return jnp.minimum(drawn, high)


def generation(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """Nothing is given."""
  return jnp.zeros(shape)


def prediction(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """The first `count` frames are given."""
  return _frames(jnp.arange(shape[0]) < _count(key, 1, shape[0] - 1, count), shape)


def first_frame(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """The first frame is given: image to video."""
  return prediction(key, shape, 1)


def backward(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """The last `count` frames are given."""
  return jnp.flip(prediction(key, shape, count), 0)


def interpolation(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """Frames at both ends are given, `count` of them in all (the odd one in front)."""
  k = _count(key, 2, shape[0] - 1, count)
  index = jnp.arange(shape[0])
  return _frames((index < (k + 1) // 2) | (index >= shape[0] - k // 2), shape)


def single_frame(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """One frame, anywhere, is given."""
  index = jax.random.randint(key, (), 0, shape[0])
  return _frames((jnp.arange(shape[0]) == index) & (shape[0] > 1), shape)


def random_frames(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """`count` frames, anywhere, are given."""
  k_count, k_order = jax.random.split(key)
  rank = jax.random.permutation(k_order, shape[0])
  return _frames(rank < _count(k_count, 1, shape[0] - 1, count), shape)


def keyframes(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """`count` frames are given, evenly spread, the first among them."""
  k = _count(key, 2, shape[0] // 2, count)
  index = jnp.arange(shape[0])
  apart = -(-shape[0] // jnp.maximum(k, 1))
  return _frames((index % apart == 0) & (index // apart < k), shape)


def completion(key: Key[Array, ""], shape: Shape, count: int | None = None) -> Mask:
  """All but one rectangle, the same in every frame, is given; its sides are 1/4 to 3/4 of the picture's."""
  keys = jax.random.split(key, 4)

  def inside(size: int, k_length: jax.Array, k_start: jax.Array) -> jax.Array:
    length = jax.random.randint(k_length, (), max(size // 4, 1), max(3 * size // 4, 1) + 1)
    start = jax.random.randint(k_start, (), 0, size - length + 1)
    index = jnp.arange(size)
    return (index >= start) & (index < start + length)

  hole = inside(shape[1], keys[0], keys[1])[:, None] & inside(shape[2], keys[2], keys[3])[None]
  return jnp.broadcast_to(1.0 - hole, shape)


TASKS: dict[str, Callable[..., Mask]] = {
  task.__name__: task
  for task in (
    *(generation, prediction, backward, interpolation, single_frame, random_frames, keyframes, completion),
    first_frame,
  )
}

COUNTED = ("prediction", "backward", "interpolation", "random_frames", "keyframes")
"""Tasks that take how many frames they give."""


def plan(
  task: str, key: Key[Array, ""], video: tuple[int, ...], patch_frames: int = 1, count: int | None = None
) -> Float[Array, "b f h w 1"]:
  """The mask of one named task for `video` = (b, f, h, w), constant over each temporal patch.

  `count` is in frames; one that is not a multiple of `patch_frames` is rounded down, for a temporal patch is given
  only when all its frames are. ValueError for an unknown task, or a count that leaves nothing to generate, or too few
  for a patch.
  """
  if task not in TASKS:
    raise ValueError(f"unknown task {task!r}: choose from {', '.join(TASKS)}")
  b, f, h, w = video
  if count is not None and not 0 <= count < f:
    raise ValueError(f"{count} given frames of {f}: give at least 0 and at most {f - 1}, so that one is left to make")
  if count and count < patch_frames and task in COUNTED:
    raise ValueError(f"{count} given frames: none is given before all {patch_frames} of its patch are, give more")
  cells = None if count is None else count // patch_frames
  draw = lambda key: TASKS[task](key, (f // patch_frames, h, w), cells)
  return jnp.repeat(jax.vmap(draw)(jax.random.split(key, b)), patch_frames, axis=1)[..., None]


def keys(seed: int) -> tuple[Key[Array, ""], Key[Array, ""]]:
  """Of what is sampled with a seed: the plan's, and the noise's."""
  k_mask, k_noise = jax.random.split(jax.random.key(seed))
  return k_mask, k_noise


def planned(
  task: str, seed: int, video: tuple[int, ...], patch_frames: int = 1, count: int | None = None
) -> Float[np.ndarray, "b f h w 1"]:
  """`plan` as all that is sampled with a seed has it."""
  return np.asarray(plan(task, keys(seed)[0], video, patch_frames, count))


@dataclasses.dataclass
class Tasks:
  """How often each task is drawn in training, as weights; they need not sum to one."""

  generation: float = 1.0
  prediction: float = 0.0
  backward: float = 0.0
  interpolation: float = 0.0
  single_frame: float = 0.0
  random_frames: float = 0.0
  keyframes: float = 0.0
  completion: float = 0.0
  first_frame: float = 0.0

  def __post_init__(self):
    weights = dataclasses.astuple(self)
    if min(weights) < 0 or max(weights) <= 0:
      raise ValueError(f"{self}: weights are at least 0, and one is more")

  def draw(
    self, key: Key[Array, ""], video: tuple[int, ...], patch_frames: int = 1
  ) -> tuple[Float[Array, "b f h w 1"], Int[Array, " b"]]:
    """One task an example for `video` = (b, f, h, w): the masks, and each example's index into `TASKS`."""
    weights = {name: weight for name in TASKS if (weight := getattr(self, name)) > 0}  # no other is compiled
    b, f, h, w = video
    k_task, k_mask = jax.random.split(key)
    index = jax.random.categorical(k_task, jnp.log(jnp.array(list(weights.values()))), shape=(b,))
    branches = [lambda key, task=TASKS[name]: task(key, (f // patch_frames, h, w)) for name in weights]
    masks = jax.vmap(lambda i, key: jax.lax.switch(i, branches, key))(index, jax.random.split(k_mask, b))
    number = jnp.array([list(TASKS).index(name) for name in weights])
    return jnp.repeat(masks, patch_frames, axis=1)[..., None], number[index]


def whole_cells(given: Float[Array, "b f h w 1"], patch_frames: int) -> Float[Array, "b f h w 1"]:
  """A user's own mask, kept only where every frame of the temporal patch is given."""
  b, f, h, w, _ = given.shape
  cells = given.reshape(b, f // patch_frames, patch_frames, h, w, 1).min(axis=2)
  return jnp.repeat(cells, patch_frames, axis=1)


def mean_given(
  x: Float[Array, "b f h w c"], given: Float[Array, "b f h w 1"]
) -> tuple[Float[Array, "b 1 h w c"], Float[Array, "b 1 h w 1"]]:
  """For each pixel its mean over the frames that give it, 0 where none does, and whether (1 or 0) one does."""
  count = given.sum(axis=1, keepdims=True)
  return (x * given).sum(axis=1, keepdims=True) / jnp.maximum(count, 1.0), jnp.minimum(count, 1.0)


def frame_times(t: Float[Array, " b"], given: Float[Array, "b f h w 1"]) -> Float[Array, "b f"]:
  """The diffusion time of each frame: 0 where the whole frame is given, else its video's."""
  whole = given.min(axis=(2, 3, 4))
  return t[:, None] * (1.0 - whole)
