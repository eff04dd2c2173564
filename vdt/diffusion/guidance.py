"""Classifier-free guidance (arXiv:2207.12598), and the dropped condition it needs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def null_cond(cond: dict) -> dict:
  """The condition with everything dropped but what was given."""
  return {**cond, "null": jnp.ones(cond["given"].shape[0], bool)}


def drop(key: Key[Array, ""], count: int, rate: float) -> Bool[Array, " b"]:
  """Which of `count` examples train without their condition."""
  return jax.random.bernoulli(key, rate, (count,))


def guided(denoise: Callable, scale: float, interval: tuple[float, float]) -> Callable:
  """`guided(x, time, t, cond)`: uncond + scale (cond - uncond) where `time` lies in `interval`; 1 = off.

  What a network says of a variance, in channels beyond those of x, stays cond's. A limited interval is
  arXiv:2404.07724's. `time` is the sampler's scalar clock; `t` holds each frame's time.
  """
  if scale == 1.0:
    return lambda x, time, t, cond: denoise(x, t, cond)
  low, high = interval

  def both(x: Float[Array, "b f h w c"], t: Float[Array, "b f"], cond: dict) -> Float[Array, "b f h w o"]:
    uncond, raw = denoise(x, t, null_cond(cond)), denoise(x, t, cond)
    guided = uncond + scale * (raw - uncond)
    return jnp.concatenate([guided[..., : x.shape[-1]], raw[..., x.shape[-1] :]], -1)

  def call(x: Array, time: Array, t: Array, cond: dict) -> Array:
    inside = (low <= time) & (time <= high)
    return jax.lax.cond(inside, both, lambda x, t, cond: denoise(x, t, cond), x, t, cond)

  return call
