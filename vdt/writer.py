"""What a run says of itself: metrics to the terminal, JSONL and TensorBoard; speed against this device's peak."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Container, Iterator
from typing import Any

import tqdm
from etils import epath
from tensorboardX import SummaryWriter

from vdt import distributed, ledger
from vdt.files import append, rewrite
from vdt.host import device_peak

TIMINGS = ("step_time", "data_wait", "save_wait", "flops_per_second", "utilisation", "goodput", "chip_hours")
"""The only columns of a metrics row that may differ between a run and the same run, resumed."""


class Writer:
  """Rows of metrics under `workdir`: metrics.jsonl, TensorBoard's events, the ledger, and a progress bar.

  A run resumed at `step` drops the rows after it. flops: of one training step, over all `devices`.
  """

  def __init__(self, workdir: str, step: int, steps: int, flops: float, devices: int = 1):
    self.path, self.writes = epath.Path(workdir) / "metrics.jsonl", distributed.first()
    if self.writes:
      rows = [row for row in read_rows(workdir) if row["step"] <= step]
      rewrite(self.path, "".join(json.dumps(row) + "\n" for row in rows))
      folder = str(epath.Path(workdir) / "tensorboard")
      self.events = SummaryWriter(folder, purge_step=step + 1, max_queue=10_000)
    distributed.barrier("metrics are cut")
    self.flops, self.peak = flops, device_peak() * devices
    shown = dict(unit="step", dynamic_ncols=True, mininterval=1.0, file=sys.stderr, disable=not self.writes)
    self.bar = tqdm.tqdm(total=steps, initial=step, **shown)
    self.ledger, self.compiled = ledger.Ledger(workdir, step, devices, flops, self.peak), False
    self.last = (step, time.perf_counter())
    self.spent = dict.fromkeys(ledger.BESIDE, 0.0)

  def done(self, step: int, metrics: dict[str, Any] | None) -> None:
    """A step is done, and its metrics are to be a row, or not (None)."""
    if metrics is not None:
      self.row(step, metrics)
    elif not self.compiled:
      self.mark(step)  # what came before it was the start
    self.compiled = True

  def row(self, step: int, metrics: dict[str, Any]) -> None:
    """Writes the metrics of `step`, adding the mean timings since the last row, and the run's own so far."""
    spent, seconds, count = self.mark(step)
    step_time = max(seconds - spent["save"] - spent["eval"], 1e-9) / count
    rate = self.flops / step_time
    whole = self.ledger.summary()
    values = (step_time, spent["data"] / count, spent["save"] / count, rate, rate / self.peak)
    timings = dict(zip(TIMINGS, (*values, whole["goodput"], whole["chip_hours"])))
    self.write({"step": step, **metrics, **timings})
    self.bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {rate / 1e9:.3g} GFLOP/s, {100 * rate / self.peak:.0f} %")

  def mark(self, step: int) -> tuple[dict[str, float], float, int]:
    """A line in the ledger; returns what was spent since the last one, the seconds since, and the steps."""
    now, spent = time.perf_counter(), self.spent
    seconds, count = now - self.last[1], max(step - self.last[0], 1)
    self.ledger.mark(step, spent)
    self.last, self.spent = (step, now), dict.fromkeys(ledger.BESIDE, 0.0)
    return spent, seconds, count

  def write(self, row: dict[str, Any]) -> None:
    """Appends one row, flushed; its numbers also go to TensorBoard. The first process alone writes."""
    if not self.writes:
      return
    append(self.path, json.dumps(row) + "\n")
    if not self.alive():
      raise OSError(f"{self.path.parent}/tensorboard cannot be written: is the disk full?")
    for name, value in row.items():
      if name != "step" and isinstance(value, (int, float)):
        self.events.add_scalar(name, value, row["step"])

  @contextlib.contextmanager
  def spending(self, what: str) -> Iterator[None]:
    """Counts what is done inside as spent on `what` (`ledger.BESIDE`), and not on steps."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.spent[what] += time.perf_counter() - start

  def say(self, text: str) -> None:
    if self.writes:
      self.bar.write(text, file=sys.stderr)

  def __enter__(self) -> "Writer":
    return self

  def alive(self) -> bool:
    """Whether the thread that writes TensorBoard's events still does: what is given to a dead one waits for ever."""
    return self.events.file_writer.event_writer._worker.is_alive()

  def __exit__(self, kind: type | None, *_) -> None:
    self.bar.close()
    if kind is None:
      self.mark(self.last[0])
    if self.writes and self.alive():
      self.events.close()


def best_step(workdir: str, column: str, steps: Container[int]) -> int | None:
  """Of these steps, the first of the least value of a column of the metrics, or of the greatest of "-column"; None
  without any."""
  if not column:
    return None
  sign, name = (-1, column[1:]) if column.startswith("-") else (1, column)
  rows = [row for row in read_rows(workdir) if row["step"] in steps and math.isfinite(row.get(name, math.nan))]
  found = {row["step"]: sign * row[name] for row in rows}
  return min(found, key=found.get, default=None)


def read_rows(workdir: str) -> list[dict[str, Any]]:
  """The rows of a run's metrics; a line torn by a crash is left out."""
  path = epath.Path(workdir) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return rows
