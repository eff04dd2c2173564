"""A trained run's network as features for `FVD`: what it sees in clips, in the middle of its depth."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt import diffusion, models, workdirs
from vdt.checkpoint import Checkpointer
from vdt.evals.features import Network


class Encoder(Network):
  """features="vdt.encoder:Encoder@WORKDIR": no labels, and no weights of others, are needed to tell videos apart.

  A diffusion network is trained without labels, so what it looks at is not chosen by the content of frames alone, as
  with a classifier's (arXiv:2404.12391). Clips, with noise of a time `TIME`, the same for all, go through the first
  half of its repeats; the mean and the spread over tokens are the features. Clips must have the run's shape.
  """

  measures = ("Fréchet, own", "kernel, own")
  TIME = 0.2

  def __init__(self, workdir: str):
    self.workdir = workdir
    if not workdirs.exists(workdir):
      raise ValueError(f"no run in {workdir}, seen from where the command is run: set the path after @ of features")

  @functools.cached_property
  def stored(self) -> dict[str, Any]:
    return workdirs.read(self.workdir)["config"]

  @functools.cached_property
  def params(self) -> Any:
    with Checkpointer(self.workdir, create=False) as checkpoints:
      return jax.tree.map(np.asarray, checkpoints.arrays(None, ("ema",))["ema"])

  @functools.cached_property
  def name(self) -> str:
    return f"network of a run, {self.middle}, time {self.TIME}"

  @property
  def model(self) -> Any:
    return made(models, self.stored["model"])

  @property
  def middle(self) -> str:
    return f"repeat {max(self.model.depth // len(self.model.entries()) // 2 - 1, 0)}"

  @property
  def shape(self) -> tuple[int, ...]:
    return (self.stored["data"]["frames"], *self.stored["data"]["size"])

  def check(self, data: Any) -> None:
    if (data.frames, *data.size) != self.shape:
      there = (data.frames, *data.size)
      raise ValueError(
        f"{self.workdir} was trained on clips of (frames, height, width) {self.shape}, these are {there}"
      )

  def hash(self) -> str:
    return self.digest

  @functools.cached_property
  def digest(self) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()

  def function(self) -> Callable[[jax.Array], jax.Array]:
    network, path = self.model.build(self.shape[0], self.shape[1:], {}), made(diffusion, self.stored["diffusion"])
    params, cells = self.params, self.model.cells(self.shape[0], self.shape[1:])

    def features(x: jax.Array) -> jax.Array:
      given, none = jnp.zeros((*x.shape[:4], 1)), jnp.zeros(len(x), jnp.int32)
      clean, _ = path.relative(x, given)
      noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), x.shape[1:])[None], x.shape)
      noisy = path.corrupt(clean, noise, jnp.full(len(x), self.TIME))
      cond = {"given": given, "label": none, "null": dict.fromkeys(self.model.conditions, none == 0)}
      tokens = network.stages(params, noisy, jnp.full(x.shape[:2], self.TIME), cond)[self.middle]
      tokens = tokens[:, : cells[0]].astype(jnp.float32)  # without what fills up a mesh
      return jnp.concatenate([tokens.mean((1, 2)), tokens.std((1, 2))], -1)

    return features


def made(module: Any, stored: dict[str, Any]) -> Any:
  """A dataclass again from what config.json holds of it. ValueError for one that `module` does not have."""
  inside = lambda value: made(module, value) if isinstance(value, dict) and "_" in value else frozen(value)
  fields = {name: inside(value) for name, value in stored.items() if name != "_"}
  kind = getattr(module, stored["_"], None)
  if kind is None:
    raise ValueError(f"{stored['_']} is none of {module.__name__}'s: its run's features need its experiment")
  return kind(**fields)


def frozen(value: Any) -> Any:
  return tuple(map(frozen, value)) if isinstance(value, list) else value
