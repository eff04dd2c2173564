r"""Which metric sees which corruption? Real clips, corrupted, under every metric that needs no model.

  vdt ingest FOLDER --out data/metrics --size 64 --fps 12 --frames 16 --stride 8 --format png \
    --test-sources experiments/real_clips_test.txt
  python experiments/benchmarks/metrics.py [--data data/metrics] [--count 64] [--features i3d] [--json FILE]

Prints each metric of as many further real clips ("samples", and "real floor"), and of corrupted ones: where it is as at
the floor it is blind to that corruption. FVD and KVD have their intervals. Then the same of simulated clips, with the
metrics that follow an object.
"""

import argparse
import dataclasses
import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from data_pipelines.clips import Clips, SimulatedClips
from vdt.evals import Run, controls, real_videos
from vdt.evals.fvd import FVD
from vdt.evals.motion import Motion
from vdt.evals.physics import Physics
from vdt.sample import in_chunks

RESULTS = Path(__file__).parent / "results" / "metrics.json"
COLUMNS = ("frozen", "half-pixel jitter", "jitter", "shuffled", "reversed", "flicker", "noised", "noise")
MORE = {
  "half-pixel jitter": partial(controls.jitter, distance=0.5),
  "noise": lambda videos: np.random.default_rng(0).uniform(-1, 1, videos.shape).astype(np.float32),
}


def tables(data, evals):
  """The table of each eval, where "samples" are further real clips."""
  sample = lambda count, **_: real_videos(data, 3 * count)[2 * count :][:, None]
  run = Run(None, 1, lambda split: data, sample, lambda function, *inputs: in_chunks(jax.jit(function), inputs, 4))
  found = {}
  for name, each in evals.items():
    start = time.perf_counter()
    found[name] = each(run)
    print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)
  return found


def show(found):
  names = list(dict.fromkeys(column for table in found.values() for row in table.values() for column in row))
  print(f"{'':34}" + "".join(f"{name:>18}" for name in names))
  for title, table in found.items():
    for row, values in table.items():
      cells = [f"{values[name]:.4g}" if name in values else "" for name in names]
      print(f"{f'{title}, {row}':34}" + "".join(f"{cell:>18}" for cell in cells))


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--data", default="data/metrics")
  parser.add_argument("--count", type=int, default=64)
  parser.add_argument("--features", default="i3d", choices=["i3d", "random"])
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  controls.CONTROLS.update(MORE)
  path = Path(options.data)
  real = Clips(path.name, frames=16, size=(64, 64), batch_size=32, data_dir=str(path.parent))
  fvd = FVD(count=options.count, features="random", controls=COLUMNS)
  on_real = {"random": fvd, "motion": Motion(count=options.count)}
  if options.features == "i3d":
    on_real["I3D"] = dataclasses.replace(fvd, features="i3d")
  found = {"real clips": tables(real, on_real)}
  show(found["real clips"])
  simulated = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=32)
  simulated.prepare()
  on_simulated = {"physics": Physics(count=options.count), "random": dataclasses.replace(fvd, features="random")}
  found["simulated clips"] = tables(simulated, on_simulated)
  show(found["simulated clips"])
  options.json.write_text(json.dumps({"count": options.count, **found}, indent=2) + "\n")


if __name__ == "__main__":
  main()
