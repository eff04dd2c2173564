"""Where jobs run: this machine, a Slurm cluster, Google Kubernetes Engine, or TPU VMs by hand; and how they stand."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vdt import attempts, sweep
from vdt.attempts import DONE, FAILED, LOST, QUEUED, STOPPED, Job
from vdt.writer import read_rows


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
  """Makes `folder`, and keeps other sweeps out of it. ValueError if one is there, OSError if it cannot be written."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with attempts.held(folder / ".sweep.lock") as ours:
      if not ours:
        raise ValueError(f"another sweep runs in {folder}: wait for it, or name another --workdir")
      yield
  except PermissionError as error:
    raise OSError(f"{folder} cannot be written ({error.strerror}): name another --workdir") from error


def run(folders: list[Path], workers: int) -> None:
  """Brings jobs to their end, but for those that are done, stopped as hopeless, or on their way."""
  left = [folder for folder in folders if attempts.state(folder) not in (DONE, STOPPED, QUEUED)]
  print(f"{len(folders)} arms, {len(left)} to run", flush=True)
  local(left, workers)


def local(folders: list[Path], workers: int) -> None:
  """Runs jobs on this machine, `workers` at a time, each on its share of the cores, to the end of all.

  SIGTERM and SIGINT let those that run save; the process ends with 77, or 130. Where it is killed, they save as well.
  """
  cores = sorted(os.sched_getaffinity(0))
  shares = [cores[number::workers] or [cores[number % len(cores)]] for number in range(workers)]
  left, running = list(folders), {}
  for folder in left:
    attempts.note(folder, "submit", backend="local")
  with attempts.Hand() as hand:
    while running or (left and not hand.signal):
      for share, (folder, process) in list(running.items()):
        if process.poll() is not None:
          hand.processes.remove(process)
          del running[share]
          print(f"{Job.read(folder).name}: {line(folder)}", flush=True)
      for share in range(workers):
        if left and share not in running and not hand.signal:
          folder = left.pop(0)
          command = [sys.executable, "-m", "vdt.attempts", str(folder), ",".join(map(str, shares[share]))]
          running[share] = (folder, hand.start(command))
      time.sleep(0.2)
    if hand.signal:
      sys.exit(attempts.RESTART if hand.signal == 15 else attempts.INTERRUPTED)


def line(folder: Path) -> str:
  """How a job stands, and why."""
  rows = [row for row in read_rows(str(folder)) if "loss" in row]
  state = attempts.state(folder)
  starts = sum(each["what"] == "start" for each in attempts.notes(folder))
  text = f"{state}, {starts} attempt{'s' * (starts != 1)}"
  if rows:
    text += f", step {rows[-1]['step']}, loss {rows[-1]['loss']:.4f}"
  if state in (FAILED, LOST):
    text += "".join(f"\n    {each[:200]}" for each in attempts.tail(folder))
  return text


def jobs(folder: Path) -> list[Path]:
  """The jobs of a sweep's folder, or the one of a run's. ValueError if there are none."""
  if (folder / sweep.NAME).exists():
    return list(dict.fromkeys(folder / arm["folder"] for arm in sweep.read(folder)))
  Job.read(folder)
  return [folder]


def table(folders: list[Path]) -> str:
  """How the jobs of sweeps and runs stand, a line each."""
  rows = {Job.read(each).name: line(each) for folder in folders for each in jobs(folder)}
  width = max(map(len, rows))
  return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())
