"""What becomes of finished steps: their metrics are written, and those that were not finite, or leapt, are named."""

import collections
import statistics
from typing import Any

import numpy as np

from vdt.config import Config
from vdt.writer import Writer, read_rows

PATIENCE, SPIKES = 20, 5  # steps in a row, not finite or leaping, before a run is given up
WATCHED, HISTORY, LEAST = ("loss", "grad_norm"), 20, 5  # what may leap, over the median of how many logged steps


class Spike(Exception):
  """A step leapt, and the run is to go back to its newest save and on without the steps since."""

  def __init__(self, step: int):
    super().__init__(f"step {step} leapt")
    self.step = step


class Judge:
  """Of the steps of a run that stands at `step`. What it finds is a function of the rows there are, resumed or not."""

  def __init__(self, config: Config, log: Writer, workdir: str, step: int):
    self.config, self.log, self.bad = config, log, 0
    rows = [row for row in read_rows(workdir) if row["step"] <= step]
    self.spikes = {row["step"] for row in rows if "spike" in row}
    rows = [row for row in rows if "loss" in row and row["step"] not in self.spikes]
    self.recent = {name: collections.deque((row[name] for row in rows), HISTORY) for name in WATCHED}

  def settle(self, pending: tuple[int, dict] | None) -> int:
    """Writes the metrics of a finished step; returns the signal that some process had got by then (0: none).

    A step that was not finite is written with its clips. One whose loss or gradient norm is more than `config.spike`
    times its median over the last 20 logged steps that did not leap, of which there must be 5, is so as well, and
    raises Spike if `config.roll_back` says so. FloatingPointError after 20 of the first kind in a row, or 5 of the
    second that were gone back from.
    """
    if pending is None:
      return 0
    step, metrics = pending[0], {name: np.asarray(value).item() for name, value in pending[1].items()}
    finite, stopped = metrics.pop("finite"), metrics.pop("stop")
    self.bad = 0 if finite else self.bad + 1
    if not finite:
      self.name(step, metrics, "skipped")
      if self.bad == PATIENCE:
        raise FloatingPointError(f"{PATIENCE} steps in a row up to {step} were not finite: lower optimizer.lr")
    leapt = finite and self.leapt(metrics)
    if leapt:
      self.spikes.add(step)
      self.name(step, metrics, "spike")
    due = finite and (step % self.config.log_every == 0 or step == self.config.steps)
    self.log.done(step, metrics if due else None)
    if due and not leapt:
      for name in WATCHED:
        self.recent[name].append(metrics[name])
    if leapt and self.config.roll_back:
      if self.spikes >= set(range(step - SPIKES + 1, step + 1)):
        raise FloatingPointError(
          f"{SPIKES} steps in a row up to {step} leapt, this one by {self.ratio(metrics):.2f} times the median: raise "
          f"spike ({self.config.spike}), or lower optimizer.lr"
        )
      raise Spike(step)
    return stopped

  def leapt(self, metrics: dict[str, Any]) -> bool:
    """Whether a step's loss or gradient norm is far above what it was of late."""
    return self.config.spike > 0 and self.ratio(metrics) > self.config.spike

  def ratio(self, metrics: dict[str, Any]) -> float:
    """How many times its median the loss or the gradient norm is, whichever is more; 0 before there are any."""
    known = {name: recent for name, recent in self.recent.items() if len(recent) >= LEAST}
    usual = {name: statistics.median(recent) for name, recent in known.items()}
    return max((metrics[name] / each for name, each in usual.items() if each > 0), default=0.0)

  def name(self, step: int, metrics: dict[str, Any], what: str) -> None:
    """Writes the clips of a step under `what`, and says so."""
    ids = self.config.data.batch(step - 1)["id"].tolist()
    values = f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"
    if what == "spike":
      values += f", {self.ratio(metrics):.2f} times the median"
    self.log.say(f"step {step} {what}: {values}, from {', '.join(ids)}")
    self.log.write({"step": step, what: ids})
