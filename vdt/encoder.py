"""A trained run's network as features for `FVD`: what it sees in clips, in the middle of its depth."""

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
    with Checkpointer(workdir, create=False) as checkpoints:
      self.step = checkpoints.there(None)
      self.params = jax.tree.map(np.asarray, checkpoints.arrays(self.step, ("ema",))["ema"])
    stored = workdirs.read(workdir)["config"]
    self.shape = (stored["data"]["frames"], *stored["data"]["size"])
    self.model, self.path = made(models, stored["model"]), made(diffusion, stored["diffusion"])
    self.name = f"a run's network at step {self.step}, repeat {self.middle}, time {self.TIME}"

  @property
  def middle(self) -> str:
    return f"repeat {max(self.model.depth // len(self.model.entries()) // 2 - 1, 0)}"

  def hash(self) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()

  def function(self) -> Callable[[jax.Array], jax.Array]:
    """ValueError, when it is called, for clips of another shape than the run's."""
    network = self.model.build(self.shape[0], self.shape[1:], {})

    def features(x: jax.Array) -> jax.Array:
      if x.shape[1:4] != self.shape:
        raise ValueError(f"{self.workdir} was trained on clips of {self.shape}, these are of {x.shape[1:4]}")
      times = jnp.full(x.shape[:2], self.TIME)
      alpha, sigma = (level[:, :, None, None, None] for level in self.path.levels(times))
      noisy = alpha * x + sigma * jax.random.normal(jax.random.key(0), x.shape[1:])[None]
      none = jnp.zeros(len(x), jnp.int32)
      cond = {"given": jnp.zeros((*x.shape[:4], 1)), "label": none, "null": none == 0}
      tokens = network.stages(self.params, noisy, times, cond)[self.middle].astype(jnp.float32)
      return jnp.concatenate([tokens.mean((1, 2)), tokens.std((1, 2))], -1)

    return features


def made(module: Any, stored: dict[str, Any]) -> Any:
  """A dataclass again from what config.json holds of it. ValueError for one that `module` does not have."""
  fields = {name: frozen(value) for name, value in stored.items() if name != "_"}
  kind = getattr(module, stored["_"], None)
  if kind is None:
    raise ValueError(f"{stored['_']} is none of {module.__name__}'s: its run's features need its experiment")
  return kind(**fields)


def frozen(value: Any) -> Any:
  return tuple(map(frozen, value)) if isinstance(value, list) else value
