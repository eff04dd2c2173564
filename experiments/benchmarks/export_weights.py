"""How much memory does an export take, and how fast is it beside the disk?

  python experiments/benchmarks/export_weights.py [--variant latte-xl] [--rounds 3] [--json FILE]

A run with random weights of a published size is exported in Latte's layout by the command `vdt export`, by turns with
`dd`, which writes the same bytes to the same disk up to fsync. Memory is the largest resident set of the process, all
libraries included; the time is the command's, and of it what reading the checkpoint and writing the file took. Goals:
memory below 1.5 times the weights' bytes, and at least half of the disk's speed.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "export_weights.json"
MAKE = """
import jax, jax.numpy as jnp, numpy as np, sys
sys.path.insert(0, {root!r})
from vdt import command_line, workdirs
from absl import flags
from vdt.checkpoint import Checkpointer, State
config, origin = command_line.parse(["--config={root}/experiments/published.py:{variant}"], flags.FlagValues())
like = jax.eval_shape(config.model.build(16, config.data.size, {{}}).init, jax.random.key(0))
rng = np.random.default_rng(0)
ema = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), like)
with workdirs.claim({workdir!r}, config, origin), Checkpointer({workdir!r}) as checkpoints:
  checkpoints.save(State(None, ema, None, jnp.int32(1)), {{}}, wait=True)
"""


def export(workdir: str) -> dict[str, float]:
  """Seconds and peak bytes of one export."""
  code = "import resource, sys; from vdt import cli; cli.main(sys.argv[1:])"
  code += "; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
  command = [sys.executable, "-c", code, "export", f"--workdir={workdir}", "--format=latte", "--nocheck"]
  start = time.perf_counter()
  done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
  seconds = time.perf_counter() - start
  phases = {name: float(value) for name, value in re.findall(r"(read|written) in ([\d.]+) s", done.stderr)}
  return {"seconds": seconds, "peak": float(done.stdout.split()[-1]), **phases}


def disk(folder: str, source: str) -> float:
  """Seconds that dd takes to write the same bytes, which it reads from memory, up to fsync."""
  path = f"{folder}/dd"
  subprocess.run(["cat", source], stdout=subprocess.DEVNULL, check=True)
  start = time.perf_counter()
  command = ["dd", f"if={source}", f"of={path}", "bs=4M", "conv=fsync"]
  subprocess.run(command, capture_output=True, check=True)
  seconds = time.perf_counter() - start
  os.remove(path)
  return seconds


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--variant", default="latte-xl")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=ROOT) as folder:
    workdir = f"{folder}/run"
    code = MAKE.format(root=str(ROOT), variant=options.variant, workdir=workdir)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
    rounds = []
    for _ in range(options.rounds):
      found = export(workdir)
      file = f"{workdir}/export/latte/model.safetensors"
      size = os.path.getsize(file)
      rounds.append({**found, "disk": disk(folder, file)})
  medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
  found = {
    "variant": options.variant,
    "bytes": size,
    "memory over bytes": max(each["peak"] for each in rounds) / size,
    "command over disk": medians["disk"] / medians["seconds"],
    "writing over disk": medians["disk"] / medians["written"],
    "medians": medians,
    "rounds": rounds,
  }
  print(f"{options.variant}, {size / 2**30:.2f} GiB, medians of {options.rounds} rounds")
  print(f"peak memory, all included    {found['memory over bytes']:.2f} of the bytes")
  print(f"dd up to fsync               {size / medians['disk'] / 1e6:,.0f} MB/s")
  print(f"writing the file up to fsync {size / medians['written'] / 1e6:,.0f} MB/s, {found['writing over disk']:.0%}")
  print(f"the command, from its start  {medians['seconds']:.1f} s, {found['command over disk']:.0%}")
  options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
