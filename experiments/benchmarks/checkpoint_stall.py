"""How long does a save keep training waiting, and how fast is it written?

  python experiments/benchmarks/checkpoint_stall.py [--gigabytes 2] [--rounds 12] [--json FILE]

A state of float32 arrays, shaped like a model's with its average and moments, is saved through `vdt.checkpoint` by
turns waiting for it, down to the disk (a synchronous save), and as training does: in the background, with steps that
change every array of the state, and multiply matrices, going on. Each save removes the one before it, as in training,
but for the first of a round: its time tells the throughput, for the removing of dd's file is not timed either. The
stall is what `save` itself takes, and what the step after it takes longer on the state that is being saved than on an
equal one of which nothing is saved, at the same moment of another save. So what both lose to the save's work on two
cores is no part of it, and is printed beside it. In the same rounds `dd` writes as many bytes to the same disk, up to
fsync, before and after: the state's bytes, which it has in memory, and not zeros, which some disks do not write. Prints
a table of medians, and the range of the rounds, and writes JSON. Goals: stall at most 5 % of a synchronous save,
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

from vdt.checkpoint import Checkpointer, State, donated

RESULTS = Path(__file__).parent / "results" / "checkpoint_stall.json"
LEDGER = {"goodput": 0.0}


def new_state(gigabytes: float) -> State:
  """Parameters, average and two moments, a quarter of the bytes each: 24 matrices in the shapes of an MLP."""
  width = int((gigabytes * 2**30 / 4 / 4 / 24 / 4) ** 0.5)
  tree = lambda seed: {
    str(i): jax.random.normal(jax.random.key(seed * 100 + i), (width, 4 * width), jnp.float32) for i in range(24)
  }
  return State(tree(0), tree(1), {"mu": tree(2), "nu": tree(3)}, jnp.zeros((), jnp.int32))


def step(state: State, matrix: jax.Array) -> tuple[State, jax.Array]:
  """Moves every array a little, and multiplies matrices."""
  moved = jax.tree.map(lambda x: 0.999 * x, state._replace(step=None))
  product = jax.lax.fori_loop(0, 20, lambda _, a: a @ a / 1024, matrix)
  return moved._replace(step=state.step + 1), product


def disk(folder: Path, size: int) -> float:
  """Bytes a second that dd writes, up to fsync."""
  start = time.perf_counter()
  count = size // 2**22
  command = ["dd", f"if={folder}/bytes", f"of={folder}/dd", "bs=4M", f"count={count}", "conv=fsync", "status=none"]
  subprocess.run(command, check=True)
  seconds = time.perf_counter() - start
  (folder / "dd").unlink()
  return count * 2**22 / seconds


def percent(shares: list[float]) -> str:
  """The median, and the least and most."""
  return f"{statistics.median(shares):.1%} ({min(shares):.0%} to {max(shares):.0%})"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--gigabytes", type=float, default=2.0)
  parser.add_argument("--rounds", type=int, default=12)
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  state = jax.block_until_ready(new_state(options.gigabytes))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  other, matrix = jax.block_until_ready(new_state(options.gigabytes)), jnp.ones((1024, 1024))
  work = jax.jit(step, donate_argnums=donated())

  def timed(state: State) -> tuple[State, float]:
    start = time.perf_counter()
    state, _ = jax.block_until_ready(work(state, matrix))
    return state, time.perf_counter() - start

  folder = Path(tempfile.mkdtemp(prefix="stall", dir="."))
  rounds, number = [], 0
  try:
    with (folder / "bytes").open("wb") as file:
      for leaf in jax.tree.leaves(state):
        file.write(memoryview(np.asarray(leaf)).cast("B"))
    for turn in range(options.rounds + 1):  # the first warms up
      row = {"disk": disk(folder, size)}
      with Checkpointer(str(folder / str(turn)), keep=1) as checkpoints:
        for _ in range(2):
          (state, _), (other, row["step in peace"]) = timed(state), timed(other)
        for kind in ("nothing removed", "synchronous", "saved", "other"):
          number += 1
          state = state._replace(step=jnp.int32(number))
          start = time.perf_counter()
          checkpoints.save(state, LEDGER, wait=kind in ("nothing removed", "synchronous"))
          if kind in ("nothing removed", "synchronous"):
            os.sync()  # as dd does, down to the disk
            row[kind] = time.perf_counter() - start
            continue
          row[f"save, {kind}"] = time.perf_counter() - start
          if kind == "saved":
            state, row["step on what is saved"] = timed(state)
          else:
            other, row["step on another state"] = timed(other)
          while checkpoints.manager.is_saving_in_progress():  # training goes on
            other, _ = timed(other)
          row["whole"] = time.perf_counter() - start
        row["stall"] = row["save, saved"] + row["step on what is saved"] - row["step on another state"]
      row["disk"] = (row["disk"] + disk(folder, size)) / 2
      rounds.append(row)
      shutil.rmtree(folder / str(turn))
  finally:
    shutil.rmtree(folder)
  rounds = rounds[1:]
  kinds = ("nothing removed", "synchronous")
  shares = {
    "stall of a save": {kind: [row["stall"] / row[kind] for row in rounds] for kind in kinds},
    "throughput of dd's": {kind: [size / row[kind] / row["disk"] for row in rounds] for kind in kinds},
  }
  median = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
  found = {"bytes": size, "median": median, "shares": shares, "rounds": rounds, "load": os.getloadavg()[0]}
  print(f"state                 {size / 2**30:.2f} GiB")
  for kind, name in zip(kinds, ("nothing to remove", "the last removed"), strict=True):
    part = [f"{name:20} {percent(each[kind])}" for name, each in shares.items()]
    print(f"save, {name:17} {median[kind]:.2f} s, {size / median[kind] / 1e6:,.0f} MB/s; {'; '.join(part)}")
  print(f"dd up to fsync        {median['disk'] / 1e6:,.0f} MB/s")
  print(
    f"stall                 {median['stall']:.3f} s: save itself {median['save, saved']:.3f} s, and of a step the rest"
  )
  for name in ("step on what is saved", "step on another state", "step in peace"):
    print(f"  {name:21} {median[name]:.3f} s")
  print(f"done in background    {median['whole']:.2f} s after, beside training")
  options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
