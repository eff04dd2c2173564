"""How long does a save keep training waiting, and how fast is it written?

  python experiments/benchmarks/checkpoint_stall.py [--gigabytes 2] [--rounds 5] [--json FILE]

A state of float32 arrays, shaped like a model's with its average and moments, is saved through `vdt.checkpoint` by
turns as training does (in the background; the stall is what `save` itself takes) and waiting for it, down to the disk
(a synchronous save). In the same rounds `dd` writes as many bytes to the same disk, up to fsync, before and after: the
state's bytes, which it has in memory, and not zeros, which some disks do not write. Training keeps one core busy with a
matrix product meanwhile. Prints a table of medians and writes JSON. Goals: stall at most 5 % of a synchronous save,
throughput at least 70 % of the disk's.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from vdt.checkpoint import Checkpointer, State

RESULTS = Path(__file__).parent / "results" / "checkpoint_stall.json"
LEDGER = {"goodput": 0.0}


def new_state(gigabytes: float) -> State:
  """Parameters, average and two moments, a quarter of the bytes each: 24 matrices in the shapes of an MLP."""
  width = int((gigabytes * 2**30 / 4 / 4 / 24 / 4) ** 0.5)
  tree = lambda seed: {
    str(i): jax.random.normal(jax.random.key(seed * 100 + i), (width, 4 * width), jnp.float32) for i in range(24)
  }
  return State(tree(0), tree(1), {"mu": tree(2), "nu": tree(3)}, jnp.zeros((), jnp.int32))


def disk(folder: Path, size: int) -> float:
  """Bytes a second that dd writes, up to fsync."""
  start = time.perf_counter()
  count = size // 2**22
  command = ["dd", f"if={folder}/bytes", f"of={folder}/dd", "bs=4M", f"count={count}", "conv=fsync", "status=none"]
  subprocess.run(command, check=True)
  seconds = time.perf_counter() - start
  (folder / "dd").unlink()
  return count * 2**22 / seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--gigabytes", type=float, default=2.0)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  state = jax.block_until_ready(new_state(options.gigabytes))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  work = jax.jit(lambda a: a @ a / 1024)
  matrix = jnp.ones((1024, 1024))
  folder = Path(tempfile.mkdtemp(prefix="stall", dir="."))
  rounds, number = [], 0
  try:
    with (folder / "bytes").open("wb") as file:
      for leaf in jax.tree.leaves(state):
        file.write(memoryview(np.asarray(leaf)).cast("B"))
    with Checkpointer(str(folder), keep=1) as checkpoints:
      for _ in range(options.rounds + 1):  # the first warms up
        row = {"disk": disk(folder, size)}
        for kind in ("synchronous", "stall"):
          number += 1
          start = time.perf_counter()
          checkpoints.save(state._replace(step=jnp.int32(number)), LEDGER, wait=kind == "synchronous")
          if kind == "synchronous":
            os.sync()  # as dd does, down to the disk
          row[kind] = time.perf_counter() - start
          while checkpoints.manager.is_saving_in_progress():  # training goes on
            matrix = work(matrix).block_until_ready()
          row[f"{kind} whole"] = time.perf_counter() - start
        row["disk"] = (row["disk"] + disk(folder, size)) / 2
        rounds.append(row)
  finally:
    shutil.rmtree(folder)
  median = {name: statistics.median(row[name] for row in rounds[1:]) for name in rounds[0]}
  found = {
    "bytes": size,
    "median": median,
    "stall share": statistics.median(row["stall"] / row["synchronous"] for row in rounds[1:]),
    "share of disk": statistics.median(size / row["synchronous"] / row["disk"] for row in rounds[1:]),
    "rounds": rounds[1:],
    "load": os.getloadavg()[0],
  }
  rate = size / median["synchronous"]
  print(f"state                 {size / 2**30:.2f} GiB")
  print(f"synchronous save      {median['synchronous']:.2f} s, {rate / 1e6:,.0f} MB/s")
  print(
    f"dd up to fsync        {median['disk'] / 1e6:,.0f} MB/s; the save reaches {100 * found['share of disk']:.0f} %"
  )
  print(f"stall of a save       {median['stall']:.3f} s, {100 * found['stall share']:.1f} % of a synchronous one")
  print(f"done in background    {median['stall whole']:.2f} s after, beside training")
  options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
