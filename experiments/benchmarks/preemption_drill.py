"""A training run of several processes, killed, told to stop, and left without disk, again and again: what is lost?

  python experiments/benchmarks/preemption_drill.py [--rounds 20] [--seed 0] [--json FILE]

Two processes of two CPU devices each train experiments/bouncing.py:tiny over loopback and save every few steps. Each
round starts them, strikes at a random step, or in the middle of a save, and waits until both have ended; a process that
is left waiting counts as hung. The full disk is a small file system of its own (mounting it takes root; without, its
rounds are left out and said so). Checked: what was saved in full before the strike is there after it, the next start
goes on from the newest of these, and in the end the rows of metrics and all arrays equal, bit for bit, those of a run
that was left in peace. Prints a table and writes JSON; exits with 1 if a check fails.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vdt import attempts, ledger

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "preemption_drill.json"
STRIKES = ("kill one", "kill one in a save", "terminate one", "kill both", "full disk", "kill both in a save")
SAVE_EVERY, HEARTBEAT, PATIENCE = 4, 10, 120
TORN = "*.orbax-checkpoint-tmp"


def start(workdir: Path, data: Path, steps: int) -> list[subprocess.Popen]:
  """Both processes of the run."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  flags = {"steps": steps, "log_every": 1, "save_every": SAVE_EVERY, "data.data_dir": data, "optimizer.decay": 0}
  for name in ("loss", "motion", "physics", "memorisation"):
    flags[f"evals.{name}.count"] = 4
  config = f"--config={ROOT}/experiments/bouncing.py:tiny"
  fields = [f"--config.{name}={value}" for name, value in flags.items()]
  command = [sys.executable, "-m", "vdt.train", config, f"--workdir={workdir}", *fields]
  shared = {
    "PYTHONPATH": str(ROOT),
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": "2",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "JAX_COMPILATION_CACHE_DIR": str(data / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "VDT_HEARTBEAT": str(HEARTBEAT),
  }
  pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  spawn = lambda index: subprocess.Popen(command, env={**os.environ, **shared, "JAX_PROCESS_ID": str(index)}, **pipes)
  return [spawn(index) for index in range(2)]


def rows(workdir: Path) -> dict[int, float]:
  """The loss of each step; a torn last line is left out."""
  found, path = {}, workdir / "metrics.jsonl"
  for line in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(json.JSONDecodeError):
      row = json.loads(line)
      if "loss" in row:
        found[row["step"]] = row["loss"]
  return found


def complete(workdir: Path) -> set[int]:
  """The steps of checkpoints that are whole: Orbax gives one its name when it is."""
  folder = workdir / "checkpoints"
  return {int(each.name) for each in folder.iterdir() if each.name.isdigit()} if folder.exists() else set()


def end(processes: list[subprocess.Popen]) -> tuple[list[int | None], list[str]]:
  """Exit codes (None: it had to be killed after PATIENCE seconds) and the last line that each said."""
  codes, said, deadline = [], [], time.monotonic() + PATIENCE
  for process in processes:
    try:
      said.append(process.communicate(timeout=max(deadline - time.monotonic(), 1))[1])
      codes.append(process.returncode)
    except subprocess.TimeoutExpired:
      process.kill()
      said.append(process.communicate()[1])
      codes.append(None)
  return codes, [(text.strip().splitlines() or [""])[-1] for text in said]


def strike(kind: str, processes: list[subprocess.Popen], workdir: Path, rng: random.Random) -> dict | None:
  """Waits for the moment, strikes, and returns what was there then; None if a process ended before."""
  begin, target = max(complete(workdir), default=0), rng.randint(2, 3 * SAVE_EVERY)
  starts = len(ledger.read(str(workdir)))  # rows of the attempt before are there until this one cuts them
  left = set((workdir / "checkpoints").glob(TORN))
  while all(process.poll() is None for process in processes):
    step = max(rows(workdir), default=0)
    saving = set((workdir / "checkpoints").glob(TORN)) - left
    if saving if "save" in kind else step >= begin + target and len(ledger.read(str(workdir))) > starts:
      break
    time.sleep(0.001 if "save" in kind else 0.02)
  else:
    return None
  before = complete(workdir)
  struck = processes if "both" in kind else [rng.choice(processes)]
  if kind == "full disk":
    fill(workdir)
  for process in struck if kind != "full disk" else ():
    process.send_signal(signal.SIGTERM if "terminate" in kind else signal.SIGKILL)
  return {"step": max(rows(workdir), default=0), "complete": max(before, default=0), "in save": bool(saving)}


def fill(workdir: Path) -> None:
  """Leaves no byte on the file system of the run."""
  with contextlib.suppress(OSError), (workdir.parent / "filler").open("wb", buffering=0) as file:
    while True:
      file.write(bytes(2**16))


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "64m") -> Iterator[bool]:
  """A file system of its own at `folder`; yields whether it could be had."""
  folder.mkdir()
  had = not subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
  ).returncode
  try:
    yield had
  finally:
    if had:
      subprocess.run(["umount", folder], check=True)


def arrays(workdir: Path) -> list:
  import jax

  from vdt.checkpoint import Checkpointer

  with Checkpointer(str(workdir), create=False) as checkpoints:
    return [bytes(memoryview(leaf).cast("B")) for leaf in map(to_numpy, jax.tree.leaves(checkpoints.arrays()))]


def to_numpy(leaf):
  import numpy as np

  return np.ascontiguousarray(leaf).reshape(-1)


def drill(rounds: int, seed: int, folder: Path) -> dict:
  rng, data, peace = random.Random(seed), folder / "data", folder / "peace"
  with small_disk(folder / "disk") as had:
    strikes = [each for each in STRIKES if had or each != "full disk"]
    workdir, table = folder / "disk" / "run", []
    steps = 12 * rounds
    for number in range(rounds):
      kind, again = strikes[number % len(strikes)], -1
      while again < 5:  # as a launcher would, where they did not find each other in time, or one was lost
        again, begin, seen = again + 1, max(complete(workdir), default=0), set(rows(workdir))
        processes = start(workdir, data, steps)
        struck = strike(kind, processes, workdir, rng)
        since = time.monotonic()
        codes, said = end(processes)
        if struck or attempts.kind(codes) in (attempts.DONE, attempts.FAILED):
          break
      (folder / "disk" / "filler").unlink(missing_ok=True)
      if struck is None:
        raise RuntimeError(f"round {number}: the run ended before it was struck, with {codes}: {said}")
      after = max(complete(workdir), default=0)
      done = rows(workdir)
      started = ledger.read(str(workdir))[-1][0]["step"]
      row = {
        "strike": kind,
        **struck,
        "after": after,
        "steps lost": max(done, default=0) - after,
        "ended by itself before": again,
        "codes": codes,
        "seconds to end": round(time.monotonic() - since, 1),
        "kept": after >= struck["complete"],
        "went on": started == begin and seen - set(done) <= set(range(begin + 1, steps + 1)),
        "hung": None in codes,
        "said": said,
      }
      table.append(row)
      print(line(number, row), flush=True)
    codes, said = end_in_peace(workdir, data, steps)
    reference, _ = end_in_peace(peace, data, steps)
    if codes + reference != [0, 0, 0, 0]:
      raise RuntimeError(f"the last run ended with {codes}, the undisturbed one with {reference}: {said}")
    same = {"rows": rows(workdir) == rows(peace), "arrays": arrays(workdir) == arrays(peace)}
  return {"rounds": table, "full disk": had, "equal to the run in peace": same, "save_every": SAVE_EVERY, "seed": seed}


def end_in_peace(workdir: Path, data: Path, steps: int) -> tuple[list[int | None], list[str]]:
  """Runs it to its end, started again as a launcher would: exit codes, and what the processes said last."""
  for _ in range(3):
    processes = start(workdir, data, steps)
    said = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    if attempts.kind(codes) in (attempts.DONE, attempts.FAILED):
      break
  return codes, [text[-500:] for text in said]


def line(number: int, row: dict) -> str:
  """A row of the table."""
  codes = ", ".join("hung" if code is None else str(code) for code in row["codes"])
  kept = "kept" if row["kept"] else "LOST A SAVE"
  went_on = "went on" if row["went on"] else "WRONG RESUME"
  return (
    f"{number:3}  {row['strike']:20} at step {row['step']:4}{' in a save' if row['in save'] else '':10}  saved "
    f"{row['complete']:4} -> {row['after']:4}  lost {row['steps lost']:2}  exit {codes:10} after "
    f"{row['seconds to end']:5.1f} s  {kept}, {went_on}"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  folder = Path(tempfile.mkdtemp(prefix="drill"))
  try:
    found = drill(options.rounds, options.seed, folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  good = all(row["kept"] and row["went on"] and not row["hung"] for row in found["rounds"])
  same = found["equal to the run in peace"]
  most, again = (max(row[name] for row in found["rounds"]) for name in ("steps lost", "ended by itself before"))
  print(
    f"{len(found['rounds'])} rounds, at most {most} steps lost; ended by itself, and was started again, at most "
    f"{again} times a round; equal to the run in peace: {same}"
  )
  options.json.write_text(json.dumps(found, indent=2) + "\n")
  sys.exit(0 if good and all(same.values()) else 1)


if __name__ == "__main__":
  main()
