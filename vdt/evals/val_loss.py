"""Validation loss by noise level and task, on fixed clips, noise and masks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vdt.diffusion import given
from vdt.evals import Run, Table, first, real_videos


@dataclasses.dataclass
class ValLoss:
  """Rows: tasks. Columns: diffusion times, the middles of `bins` equal parts of [0, 1], and their mean.

  Each of `count` clips of `split` meets every time once with noise that is its own, so two models are compared on the
  same numbers.
  """

  count: int = 64
  bins: int = 8
  tasks: tuple[str, ...] = ("generation",)
  split: str = "test"
  every: int = 0

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
    losses = jax.jit(partial(run.diffusion.losses, run.denoise))
    table = {}
    for task in self.tasks:
      mask = given.plan(task, k_mask, x0.shape[:4], run.patch_frames)
      cond = {"given": mask, "label": label, "null": null}
      times = (np.arange(self.bins) + 0.5) / self.bins
      row = {f"t={t:.3g}": float(losses(x0, noise, jnp.full(self.count, t), cond).mean()) for t in times}
      table[task] = {**row, "mean": float(np.mean(list(row.values())))}
    return table
