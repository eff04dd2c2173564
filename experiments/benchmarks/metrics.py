r"""Which metric sees which corruption? Real clips, corrupted, under every metric that needs no model.

  vdt ingest FOLDER --out data/metrics --size 64 --fps 12 --frames 16 --stride 8 --format png \
    --test-sources experiments/real_clips_test.txt
  python experiments/benchmarks/metrics.py [--data data/metrics] [--count 64] [--features i3d,vgg,random] [--json FILE]

Prints each metric of as many further real clips ("samples", and "real floor"), and of corrupted ones: where it is as at
the floor it is blind to that corruption. Distances have intervals, and their excess over the floor a paired one: a
corruption is seen where its low end is above 0. Then whether real < shuffled < frozen < noised holds, by the paired
differences; then the same metrics of simulated clips, with those that follow an object. There are too few real clips
for a held-out split: they are of the training split, as in some published protocols, so "memorised" is the real set.
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
from vdt.distributed import in_chunks
from vdt.evals import Run, controls, features, real_videos, statistics
from vdt.evals.fvd import FVD
from vdt.evals.fvmd import FVMD
from vdt.evals.motion import Motion
from vdt.evals.physics import Physics

RESULTS = Path(__file__).parent / "results" / "metrics.json"
MORE = {
  "half-pixel jitter": partial(controls.jitter, distance=0.5),
  "noise alone": lambda videos: np.random.default_rng(0).uniform(-1, 1, videos.shape).astype(np.float32),
}
ORDER = ("real floor", "shuffled", "frozen", "noised")


def world(data):
  """A run whose samples are further real clips."""

  def sample(count, split="test", **_):
    return real_videos(dataclasses.replace(data, split=split), 3 * count)[2 * count :][:, None]

  rows = lambda function, *inputs: in_chunks(jax.jit(function), inputs, 4)
  return Run(None, 1, lambda split: dataclasses.replace(data, split=split), sample, rows)


def tables(run, evals):
  found = {}
  for name, each in evals.items():
    start = time.perf_counter()
    found[name] = each(run)
    print(f"({name}: {time.perf_counter() - start:.0f} s)", flush=True)
  return found


def order(run):
  """FVD of ORDER on all clips that there are, half of them real: each, and the paired differences of neighbours.

  (value, low, high) each; features are stored.
  """
  data, made_by, distance = run.data("train"), features.network("i3d"), statistics.frechet_distance
  function, alone = made_by.function(), run._replace(sample=lambda *_, **__: np.empty((1, 1)))  # samples are not asked
  videos = controls.columns(alone, "train", len(data) // 2, ORDER[1:])
  found = {name: features.extract(made_by, function, run, each, data) for name, each in videos if name != "samples"}
  real, whole = found.pop("real"), {}
  draws, apart = statistics.bootstrap(distance, real, found, 1000), distance(real)
  for name in ORDER:
    whole[name] = (apart(found[name]), *statistics.interval(draws[name]))
  for one, other in zip(ORDER, ORDER[1:]):
    difference = whole[other][0] - whole[one][0]
    whole[f"{other} - {one}"] = (difference, *statistics.interval(draws[other] - draws[one]))
  return whole


def show(found):
  names = list(dict.fromkeys(column for table in found.values() for row in table.values() for column in row))
  print(f"{'':44}" + "".join(f"{name:>18}" for name in names))
  for title, table in found.items():
    for row, values in table.items():
      cells = [f"{values[name]:.4g}" if name in values else "" for name in names]
      print(f"{f'{title}: {row}':44}" + "".join(f"{cell:>18}" for cell in cells))


def seen(found):
  """Each distance, with the corruptions that it is sure to tell from real clips at this count, and the others."""
  for title, table in found.items():
    for row, values in table.items():
      if row.endswith(" excess low"):
        known = {name: value for name, value in values.items() if name != "samples"}
        told = lambda yes, known=known: ", ".join(name for name, value in known.items() if (value > 0) == yes)
        print(f"{title}: {row.removesuffix(' excess low')} sees {told(True) or 'nothing'}; does not tell {told(False)}")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--data", default="data/metrics")
  parser.add_argument("--count", type=int, default=64)
  parser.add_argument("--features", default="i3d,vgg,random")
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  controls.CONTROLS.update(MORE)
  every, path = (*controls.CONTROLS, controls.MEMORISED), Path(options.data)
  real = Clips(path.name, frames=16, size=(64, 64), batch_size=32, data_dir=str(path.parent))
  distances = lambda names, split: {name: FVD(options.count, name, every, split) for name in names}
  named, run = options.features.split(","), world(real)
  evals = {"motion": Motion(options.count, "train"), "fvmd": FVMD(options.count, every, "train")}
  found = {"real clips": tables(run, {**evals, **distances(named, "train")})}
  show(found["real clips"])
  seen(found["real clips"])
  if "i3d" in named:
    found["order"] = order(run)
    for pair, (difference, low, high) in found["order"].items():
      print(f"FVD, {pair}: {difference:.4g} ({low:.4g}, {high:.4g})")
  simulated = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=32)
  dataclasses.replace(simulated, split="test").prepare()
  evals = {"physics": Physics(options.count), "fvmd": FVMD(options.count, every), **distances(["random"], "test")}
  found["simulated clips"] = tables(world(simulated), evals)
  show(found["simulated clips"])
  seen(found["simulated clips"])
  options.json.write_text(json.dumps({"count": options.count, **found}, indent=2) + "\n")


if __name__ == "__main__":
  main()
