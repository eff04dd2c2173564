"""A job's attempts, on whatever machine: it is started, watched, started again where it was cut off, and all of that is
written down, so that anyone can tell a job that is done from one that broke, and why.

A folder with a job.json is a job; attempts.jsonl says what became of it, log.txt holds what it printed.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESTART, INTERRUPTED = 77, 130
"""Exit codes of a run that saved because of SIGTERM (start it again), or of SIGINT."""
WAITING, QUEUED, RUNNING, DONE = "waiting", "queued", "running", "done"
PREEMPTED, LOST, FAILED, CANCELLED, STOPPED = "preempted", "lost", "failed", "cancelled", "stopped"
OVER = (DONE, FAILED, CANCELLED, STOPPED)
LOCK = ".job.lock"
COMPILED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "VDT_TRACEBACK": "1", "PYTHONUNBUFFERED": "1"}
"""Programs are compiled once for all jobs beside one another; a traceback is worth its lines in a log."""


@dataclasses.dataclass
class Job:
  """What to run: a `vdt` command, in so many processes, and how often it may be lost to the machine.

  cwd: the folder in which it was written, against which relative paths are meant. halving: see `vdt.halving`.
  """

  name: str
  command: list[str]
  identity: str = ""
  processes: int = 1
  retries: int = 3
  halving: dict[str, Any] | None = None
  cwd: str = dataclasses.field(default_factory=os.getcwd)

  @property
  def workdir(self) -> str:
    """Where its run lies, if its command says so."""
    return next((word.partition("=")[2] for word in reversed(self.command) if word.startswith("--workdir=")), "")

  def write(self, folder: Path) -> None:
    new = folder / "job.json.new"
    new.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
    new.replace(folder / "job.json")

  @classmethod
  def read(cls, folder: Path) -> "Job":
    """ValueError if there is none."""
    if not (folder / "job.json").exists():
      raise ValueError(f"{folder} is no job (it has no job.json): name a workdir that `vdt launch` made")
    return cls(**json.loads((folder / "job.json").read_text()))


def kind(codes: list[int]) -> str:
  """What became of an attempt whose processes ended with `codes`.

  1 is an error of ours, which would come again. 77 asks to be started again. All else, signals among it, is the
  machine's: killed for its memory, a process that missed another (SIGABRT), a broken device.
  """
  if 1 in codes:
    return FAILED
  if not any(codes):
    return DONE
  return PREEMPTED if {*codes} <= {0, RESTART, INTERRUPTED} else LOST


def note(folder: Path, what: str, **line: Any) -> None:
  """Appends a line to attempts.jsonl; the one before it may be torn."""
  with (folder / "attempts.jsonl").open("a") as file:
    file.write("\n" + json.dumps({"what": what, "at": time.time(), **line}))


def notes(folder: Path) -> list[dict[str, Any]]:
  """The lines of attempts.jsonl, but for those torn by a kill."""
  path, found = folder / "attempts.jsonl", []
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      found.append(json.loads(line))
  return found


def state(folder: Path) -> str:
  """Where a job stands. Who holds its lock runs it; one that was started and has no end was lost."""
  if (folder / LOCK).exists():
    with open(folder / LOCK) as file:
      try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may look at the same time
      except BlockingIOError:
        return RUNNING
  last = next((line for line in reversed(notes(folder)) if line["what"] != "cancel"), {"what": WAITING})
  if last["what"] == "submit":
    return QUEUED if last.get("job") else WAITING
  return {"start": LOST}.get(last["what"], last["what"])


@contextlib.contextmanager
def held(path: Path, seconds: float = 0.0) -> Iterator[bool]:
  """Whether nobody else held the lock at `path`, or let go of it within `seconds`; it is ours inside."""
  until = time.monotonic() + seconds
  with open(path, "a") as file:
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if time.monotonic() >= until:
          yield False
          return
        time.sleep(0.2)
    yield True


def tail(folder: Path, count: int = 6) -> list[str]:
  """The last lines that a job printed, as a terminal would show them: of a progress bar its last state."""
  path = folder / "log.txt"
  text = path.read_bytes()[-20_000:].decode(errors="replace") if path.exists() else ""
  lines = [line.rstrip("\r").rpartition("\r")[2].strip() for line in text.split("\n")]
  return [line for line in lines if line][-count:]


def run(folder: Path, cores: list[int] | None = None, here: bool = True) -> str:
  """Runs the job in `folder` to its end, through preemptions and, `retries` times, losses; returns its state.

  A SIGTERM or SIGINT is handed on, and what it ends is not started again. cores: those the job may use. here: whether
  all its processes, and later attempts, are on this machine; else this is a task of Slurm's, runs one of them, once,
  and comes back with PREEMPTED or LOST. The first task writes. RUNNING comes back where another runs the job, and goes
  on to; what another brought to its end meanwhile is not run again.
  """
  job, first = Job.read(folder), here or os.environ["SLURM_PROCID"] == "0"
  with held(folder / LOCK, 300) if first else contextlib.nullcontext(True) as ours, Hand() as hand:
    if not ours:
      return RUNNING
    lines = [line["what"] for line in notes(folder)]
    if first and lines and lines[-1] in OVER:
      return lines[-1]
    while True:
      if first:
        note(folder, "start", host=socket.gethostname(), pid=os.getpid(), job=os.environ.get("SLURM_JOB_ID"))
      ended = attempt(folder, job, hand, cores, here, first)
      lines = notes(folder)
      started = max((number for number, line in enumerate(lines) if line["what"] == "start"), default=0)
      since = [line["what"] for line in lines[started:]]
      if ended != DONE and "cancel" in since:
        ended = CANCELLED
      elif FAILED in since:  # by another task, which this one missed then
        ended = FAILED
      if first or ended == FAILED:
        note(folder, ended)
      if ended in OVER or hand.signal or not here or exhausted(folder, job):
        return ended


def exhausted(folder: Path, job: Job) -> bool:
  """Whether a job was lost more often than it may be, since it was last submitted."""
  lines = [line["what"] for line in notes(folder)]
  since = len(lines) - lines[::-1].index("submit") if "submit" in lines else 0
  return lines[since:].count(LOST) > job.retries


def attempt(folder: Path, job: Job, hand: "Hand", cores: list[int] | None, here: bool, first: bool) -> str:
  """Starts the job's processes once, waits for them, and says what became of them.

  A process also ends with 77 if it hung, or missed another: without a signal, and nothing new saved, that is LOST.
  """
  halving = None
  if job.halving and first:
    from vdt.halving import Halving

    halving = Halving(folder, job)
  stood = saved(folder)
  with held(folder / ".lock", 300) as ours:  # a run that lost its parent saves, and ends
    if not ours:
      return LOST
  environments = apart(job.processes) if here and job.processes > 1 else [{}]
  inherited = {name: value for name, value in os.environ.items() if not (here and name == "SLURM_NTASKS")}
  with (folder / "log.txt").open("ab") as log:
    for each in environments:
      environment = {**COMPILED, "JAX_COMPILATION_CACHE_DIR": str(folder.parent / ".compiled"), **inherited, **each}
      options = dict(stdout=log, stderr=log, env=environment, cwd=job.cwd)
      hand.start([sys.executable, "-m", "vdt.cli", *job.command], cores, **options)
    stopped, looked = False, time.monotonic()
    while any(process.poll() is None for process in hand.processes):
      time.sleep(0.2)
      if halving and not stopped and time.monotonic() - looked > 1:
        stopped, looked = halving.hopeless(), time.monotonic()
        if stopped:
          hand.terminate()
  codes = [process.returncode for process in hand.processes]
  hand.processes.clear()
  ended = STOPPED if stopped and {*codes} == {RESTART} else kind(codes)
  if ended == PREEMPTED and not hand.signal and saved(folder) <= stood:
    ended = LOST
  if halving:
    halving.end(ended)
  return ended


def saved(folder: Path) -> int:
  """The newest step of which there is a checkpoint, or -1."""
  names = [path.name for path in (folder / "checkpoints").glob("*")]
  return max((int(name) for name in names if name.isdigit()), default=-1)


def apart(count: int) -> list[dict[str, str]]:
  """What tells each of several processes on this machine where the first one is, and which one it is."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    names = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": str(count)}
  return [{**names, "JAX_PROCESS_ID": str(index)} for index in range(count)]


class Signals:
  """Inside, SIGTERM and SIGINT go to `catch`."""

  def __enter__(self) -> "Signals":
    self.before = {each: signal.signal(each, self.catch) for each in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_) -> None:
    for each, handler in self.before.items():
      signal.signal(each, handler)


class Hand(Signals):
  """Starts processes that save and end, by SIGTERM, with this one: when it is told to, or killed."""

  def __init__(self):
    self.signal, self.processes = 0, []

  def catch(self, number: int, frame: Any) -> None:
    self.signal = number
    self.terminate()

  def terminate(self) -> None:
    for process in self.processes:
      process.terminate()

  def start(self, command: list[str], cores: list[int] | None = None, **options: Any) -> subprocess.Popen:
    """A process in a session of its own, that a terminal's Ctrl-C does not reach, on `cores` alone."""
    parent = os.getpid()

    def begin() -> None:
      if cores:
        os.sched_setaffinity(0, cores)
      ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
      if os.getppid() != parent:
        os._exit(RESTART)

    options = dict(stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=begin) | options
    self.processes.append(subprocess.Popen(command, **options))
    if self.signal:
      self.processes[-1].terminate()
    return self.processes[-1]


if __name__ == "__main__":
  allowed = [int(core) for core in sys.argv[2].split(",")] if len(sys.argv) > 2 else None
  sys.exit(0 if run(Path(sys.argv[1]), allowed) in OVER else RESTART)
