"""Classifier-free guidance (arXiv:2207.12598), and the dropped conditions it needs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def null_cond(cond: dict, keep: Sequence[str] = ()) -> dict:
  """The condition with everything dropped but what was given, and what is named in `keep`.

  Where it has "negative", what is there stands in the place of what is dropped.
  """
  rest = {name: value for name, value in cond.items() if name != "negative"}
  if not rest.get("null"):
    return rest
  null, negative = {}, cond.get("negative", {})
  for name, was in rest["null"].items():
    if name in keep:
      null[name] = was
    else:
      null[name] = jnp.full(was.shape, name not in negative)
      rest |= negative.get(name, {})
  return {**rest, "null": null}


def drop(key: Key[Array, ""], count: int, rate: float, names: Sequence[str]) -> dict[str, Bool[Array, " b"]]:
  """Which of `count` examples train without which conditions: without all of them at `rate`, and, of several, without
  each at `rate` as well, so that each can be guided by itself."""
  whole = jax.random.bernoulli(key, rate, (count,))
  if len(names) < 2:
    return dict.fromkeys(names, whole)
  each = jax.random.bernoulli(jax.random.fold_in(key, 1), rate, (len(names), count))
  return {name: whole | alone for name, alone in zip(names, each)}


def guided(
  denoise: Callable, scale: float, interval: tuple[float, float], scales: Sequence[tuple[str, float]] = ()
) -> Callable:
  """`guided(x, time, t, cond)`: uncond + scale (cond - uncond) where `time` lies in `interval`; 1 = off.

  scales: of conditions with a scale of their own, one after the other: each is added to those before it, and what that
  changes is multiplied by its scale (Equation 3 of arXiv:2211.09800); `scale` is then that of all the rest, which are
  added last, where a condition is left. A step takes one evaluation more than there are of these, and one more where a
  condition is left. What a network says of a variance, in channels beyond those of x, stays cond's. A limited interval
  is arXiv:2404.07724's. `time` is the sampler's scalar clock; `t` holds each frame's time.
  """
  low, high = interval

  def stages(there: list[str]) -> list[tuple[list[str], float]]:
    """Which conditions are told, growing, and what the change from those before is multiplied by."""
    own = [(name, each) for name, each in scales if name in there]
    found = [([name for name, _ in own[: number + 1]], each) for number, (_, each) in enumerate(own)]
    return found if 0 < len(there) == len(own) else [*found, (there, scale)]

  def several(x: Float[Array, "b f h w c"], t: Float[Array, "b f"], cond: dict) -> Float[Array, "b f h w o"]:
    before = total = denoise(x, t, null_cond(cond))
    for told, own in stages([*cond.get("null", {})]):
      raw = denoise(x, t, null_cond(cond, told))
      total, before = total + own * (raw - before), raw
    return jnp.concatenate([total[..., : x.shape[-1]], before[..., x.shape[-1] :]], -1)

  def plain(x: Array, t: Array, cond: dict) -> Array:
    return denoise(x, t, null_cond(cond, [*cond.get("null", {})]))

  if scale == 1.0 and all(own == 1.0 for _, own in scales):
    return lambda x, time, t, cond: plain(x, t, cond)
  return lambda x, time, t, cond: jax.lax.cond((low <= time) & (time <= high), several, plain, x, t, cond)
