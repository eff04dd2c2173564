"""What a run says of itself: metrics to the terminal, JSONL and TensorBoard; speed against this device's peak."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import tqdm
from etils import epath
from tensorboardX import SummaryWriter

from vdt import distributed
from vdt.host import device_peak
from vdt.workdirs import rewrite

TIMINGS = ("step_time", "data_wait", "flops_per_second", "utilisation")
"""The only columns of a metrics row that may differ between a run and the same run, resumed."""


class Writer:
  """Rows of metrics under `workdir`: metrics.jsonl, TensorBoard's events, and a progress bar.

  A run resumed at `step` drops the rows after it. flops: of one training step, over all `devices`.
  """

  def __init__(self, workdir: str, step: int, steps: int, flops: float, devices: int = 1):
    self.path, self.writes = epath.Path(workdir) / "metrics.jsonl", distributed.first()
    if self.writes:
      rows = [row for row in read_rows(workdir) if row["step"] <= step]
      rewrite(self.path, "".join(json.dumps(row) + "\n" for row in rows))
      self.events = SummaryWriter(str(epath.Path(workdir) / "tensorboard"), purge_step=step + 1)
    distributed.barrier("metrics are cut")
    self.flops, self.peak = flops, device_peak() * devices
    shown = dict(unit="step", dynamic_ncols=True, mininterval=1.0, file=sys.stderr, disable=not self.writes)
    self.bar = tqdm.tqdm(total=steps, initial=step, **shown)
    self.last = (step, time.perf_counter())
    self.waited = 0.0

  def row(self, step: int, metrics: dict[str, Any]) -> None:
    """Writes the metrics of `step`, adding the mean timings since the last row."""
    now = time.perf_counter()
    count = max(step - self.last[0], 1)
    seconds = (now - self.last[1]) / count
    rate = self.flops / seconds
    timings = dict(zip(TIMINGS, (seconds, self.waited / count, rate, rate / self.peak)))
    self.last, self.waited = (step, now), 0.0
    self.write({"step": step, **metrics, **timings})
    self.bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {rate / 1e9:.3g} GFLOP/s, {100 * rate / self.peak:.0f} %")

  def write(self, row: dict[str, Any]) -> None:
    """Appends one row, flushed; its numbers also go to TensorBoard. The first process alone writes."""
    if not self.writes:
      return
    with self.path.open("a") as file:
      file.write(json.dumps(row) + "\n")
    for name, value in row.items():
      if name != "step" and isinstance(value, (int, float)):
        self.events.add_scalar(name, value, row["step"])

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Keeps what is done inside (an eval, a report) out of the timings."""
    start = time.perf_counter()
    yield
    self.last = (self.last[0], self.last[1] + time.perf_counter() - start)

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts what is done inside as waiting for data."""
    start = time.perf_counter()
    yield
    self.waited += time.perf_counter() - start

  def say(self, text: str) -> None:
    if self.writes:
      self.bar.write(text, file=sys.stderr)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_) -> None:
    self.bar.close()
    if self.writes:
      self.events.close()


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
