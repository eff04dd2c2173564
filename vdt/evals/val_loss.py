"""Validation loss by noise level and task, on fixed clips, noise and masks."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from vdt.diffusion import TASKS, given
from vdt.evals import Run, Table, first, real_videos


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
  sampled: ClassVar[bool] = False

  def __post_init__(self):
    if unknown := {*self.tasks} - {*TASKS}:
      raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    data = (run.inputs or run.data)(self.split)
    x0, told = real_videos(data, self.count), run.told(first(data, self.count))
    k_noise, k_mask = jax.random.split(jax.random.key(0))
    noise = np.asarray(jax.random.normal(k_noise, x0.shape))
    times = (np.arange(self.bins) + 0.5) / self.bins
    table = {}
    for task in self.tasks:
      mask = np.asarray(given.plan(task, k_mask, x0.shape[:4], run.patch_frames))
      cond = {**told, "given": mask}
      losses = {t: run.losses(x0, noise, np.full(self.count, t, np.float32), cond) for t in times}
      row = {f"t={t:.3g}": float(each.mean()) for t, each in losses.items()}
      table[task] = {**row, "mean": float(np.mean(list(row.values())))}
    return table
