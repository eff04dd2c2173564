"""What a run's time went to, over all its attempts: a file that is only appended to, so that a kill loses no more of it
than the steps since its last line."""

import json
import time
from typing import Any

from etils import epath

from vdt import distributed, files
from vdt.host import STARTED

NAME = "ledger.jsonl"
BESIDE = ("data", "save", "eval")
"""What the loop waits for beside its steps: the next batch, a checkpoint, an eval."""


class Ledger:
  """The lines of one attempt, which starts at `step` on `chips` chips; the first process alone writes them.

  flops: of a step, over all chips; peak: what these could do of them in a second.
  """

  def __init__(self, workdir: str, step: int, chips: int, flops: float = 0.0, peak: float = 0.0):
    self.path, self.attempts = epath.Path(workdir) / NAME, read(workdir)
    self.about = {"chips": chips, "flops": flops, "peak": peak}
    self.again(step, STARTED)

  def again(self, step: int, start: float | None = None) -> None:
    """A new attempt at what comes after `step`, by this process, that began at `start` (default: now)."""
    self.attempts.append([])
    self.append({"start": time.time() if start is None else start, "step": step, **self.about})

  def mark(self, step: int, spent: dict[str, float]) -> None:
    """`step` is done, and this is what was spent on each of BESIDE since the last mark, in seconds."""
    self.append({"at": time.time(), "step": step, **spent})

  def append(self, line: dict[str, Any]) -> None:
    self.attempts[-1].append(line)
    if distributed.first():
      files.append(self.path, ("\n" if "start" in line else "") + json.dumps(line) + "\n")  # the last may be torn

  def summary(self) -> dict[str, float]:
    """Of the run so far."""
    return summary(self.attempts)


def read(workdir: str) -> list[list[dict[str, Any]]]:
  """The lines of each attempt, its start first."""
  path, attempts = epath.Path(workdir) / NAME, []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      line = json.loads(text)
    except json.JSONDecodeError:  # torn by a kill
      continue
    if "start" in line:
      attempts.append([])
    if attempts:
      attempts[-1].append(line)
  return attempts


def summary(attempts: list[list[dict[str, Any]]]) -> dict[str, float]:
  """Sums of seconds, and what follows from them.

  start: from a process's start to its first step's end, compilation and restoring among it. step: steps that the run
  kept. redone: steps that were lost to a kill, or given up after a spike. data, save, eval: see BESIDE. goodput is the
  share of step in all of it; step_time is a kept step's mean, its wait for data apart; utilisation (MFU) is the model's
  FLOPs in these, over the peak of their chips; chip_hours is all of it, times the chips of each attempt. What passed
  between a process's last line and its end, and between attempts, is not known here.
  """
  total = {name: 0.0 for name in ("start", "step", "redone", *BESIDE)}
  chip_hours = steps = flops = most = 0.0
  for number, (start, *marks) in enumerate(attempts):
    later = [attempt[0]["step"] for attempt in attempts[number + 1 :]]
    kept = min(later, default=float("inf"))
    before, step = start["start"], start["step"]
    for first, mark in ((mark is marks[0], mark) for mark in marks):
      seconds = mark["at"] - before
      beside = {name: mark.get(name, 0.0) for name in BESIDE}
      for name, value in beside.items():
        total[name] += value
      rest, done = seconds - sum(beside.values()), mark["step"] - step
      lost = min(max(mark["step"] - max(kept, step), 0) / done, 1.0) if done else 0.0
      if first or not done:
        total["start" if first else "eval"] += rest
      else:
        total["step"] += (1 - lost) * rest
        total["redone"] += lost * rest
        steps += (1 - lost) * done
        flops += (1 - lost) * done * start.get("flops", 0.0)  # an older vdt did not say
        most += (1 - lost) * rest * start.get("peak", 0.0)
      before, step = mark["at"], mark["step"]
    chip_hours += start["chips"] * (before - start["start"]) / 3600
  whole = sum(total.values())
  return {
    **total,
    "goodput": total["step"] / whole if whole else 0.0,
    "step_time": total["step"] / steps if steps else 0.0,
    "utilisation": flops / most if most else 0.0,
    "chip_hours": chip_hours,
    "attempts": len(attempts),
  }
