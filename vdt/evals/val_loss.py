"""Validation loss by noise level and task, on fixed clips, noise and masks."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdt.diffusion import TASKS, given
from vdt.evals import Run, Table, first, real_videos

CHUNK = 32
"""Clips in one evaluation of the network."""


@dataclasses.dataclass
class ValLoss:
  """Rows: tasks. Columns: diffusion times, the middles of `bins` equal parts of [0, 1], and their mean.

  Each of `count` clips of `split` meets every time once with noise that is its own, so two models are compared on the
  same numbers. ValueError for an unknown task.
  """

  count: int = 64
  bins: int = 8
  tasks: tuple[str, ...] = ("generation",)
  split: str = "test"
  every: int = 0

  def __post_init__(self):
    if unknown := {*self.tasks} - {*TASKS}:
      raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    data = run.data(self.split)
    x0 = jnp.asarray(real_videos(data, self.count))
    label = jnp.asarray(first(data, self.count)["label"])
    k_noise, k_mask = jax.random.split(jax.random.key(0))
    noise = jax.random.normal(k_noise, x0.shape)
    null = jnp.zeros(self.count, bool)
    times = (np.arange(self.bins) + 0.5) / self.bins
    table = {}
    for task in self.tasks:
      mask = given.plan(task, k_mask, x0.shape[:4], run.patch_frames)
      whole = (x0, noise, {"given": mask, "label": label, "null": null})
      parts = [jax.tree.map(lambda x, i=i: x[i : i + CHUNK], whole) for i in range(0, self.count, CHUNK)]
      row = {}
      for t in times:
        each = [losses(run.apply, run.diffusion, run.params, t, *part) for part in parts]
        row[f"t={t:.3g}"] = float(np.concatenate(each).mean())
      table[task] = {**row, "mean": float(np.mean(list(row.values())))}
    return table


@partial(jax.jit, static_argnums=(0, 1))
def losses(apply: Any, diffusion: Any, params: Any, t: jax.Array, x0: jax.Array, noise: jax.Array, cond: dict):
  """Each video's loss at the time `t`, compiled once for each network and diffusion."""
  return diffusion.losses(partial(apply, params), x0, noise, jnp.full(len(x0), t, jnp.float32), cond)
