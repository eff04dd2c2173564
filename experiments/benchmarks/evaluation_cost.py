r"""What does FVD cost, and how many clips does it take?

  vdt ingest ...                                           (as in metrics.py)
  python experiments/benchmarks/evaluation_cost.py [--data data/metrics] [--rounds 3] [--json FILE]

Clips a second through I3D with its resizing, beside matrix products of the same device in turns with it, and the
largest resident set of the process. Then the width of FVD's 95 % interval over FVD, for real clips against as many
noised ones, by the number of clips: measured on the clips that there are, and then on draws of the normal distributions
that have their means and covariances, which is what FVD takes features for. Printed is the least number at which the
width is below 5 %, of those draws, and by the line through the measured ones, width = c n^-p.
"""

import argparse
import json
import resource
import statistics as medians
import time
from pathlib import Path

import jax
import numpy as np

from data_pipelines.clips import Clips
from vdt.distributed import in_chunks
from vdt.evals import Run, controls, features, real_videos, statistics

RESULTS = Path(__file__).parent / "results" / "evaluation_cost.json"
CHUNK, SIZE, GOAL = 4, 2048, 0.05


def seconds(function, *inputs):
  start = time.perf_counter()
  jax.block_until_ready(function(*inputs))
  return time.perf_counter() - start


def speed(videos, rounds):
  """Clips a second, and what share of the rate of matrix products their floating-point operations are done at."""
  made_by = features.network("i3d")
  network, square = jax.jit(made_by.function()), jax.jit(lambda x: x @ x)
  matrix = np.ones((SIZE, SIZE), np.float32)
  chunk = features.resized(videos[:CHUNK], made_by.size)
  counted = network.lower(chunk).compile().cost_analysis()["flops"]
  whole = lambda: network(features.resized(videos[:CHUNK], made_by.size))
  seconds(whole), seconds(square, matrix)
  rows = [(seconds(whole), seconds(square, matrix)) for _ in range(rounds)]
  clip, product = (medians.median(column) for column in zip(*rows))
  return CHUNK / clip, (counted / clip) / (2 * SIZE**3 / product)


def width(real, made, resamples=200):
  """The interval's width over the distance."""
  low, high = statistics.interval(statistics.bootstrap(statistics.frechet_distance, real, {"": made}, resamples)[""])
  return (high - low) / statistics.frechet_distance(real)(made)


def drawn(like, count, seed):
  """Features of `count` clips from the normal distribution of those that there are."""
  normal = statistics.gaussian(like)
  half = statistics.root(normal.covariance)
  return normal.mean + np.random.default_rng(seed).standard_normal((count, len(half))) @ half


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--data", default="data/metrics")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  path = Path(options.data)
  data = Clips(path.name, frames=16, size=(64, 64), batch_size=32, data_dir=str(path.parent))
  rate, share = speed(real_videos(data, CHUNK), options.rounds)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(f"I3D, resizing included: {rate:.2f} clips a second on {jax.devices()[0].device_kind}, {share:.0%} of the rate")
  print(f"of matrix products beside it; {memory / 2**30:.1f} GiB of memory, {CHUNK} clips at a time")

  half = len(data) // 2
  run = Run(None, 1, None, None, lambda function, *inputs: in_chunks(jax.jit(function), inputs, CHUNK))
  clips = real_videos(data, 2 * half)
  sets = (clips[half:], controls.noised(clips[:half]))  # as metrics.py has them, whose features are stored
  made_by = features.network("i3d")
  function = made_by.function()
  real, made = (features.extract(made_by, function, run, each, data) for each in sets)
  rng, measured, simulated = np.random.default_rng(0), {}, {}
  for count in (16, 32, 64, 128, half):
    draws = [(real[rng.permutation(half)[:count]], made[rng.permutation(half)[:count]]) for _ in range(4)]
    measured[count] = medians.median(width(*each) for each in draws)
    print(f"{count:6} clips: {measured[count]:.1%} of FVD", flush=True)
  slope, start = np.polyfit(np.log([*measured]), np.log([*measured.values()]), 1)
  line = float(np.exp((np.log(GOAL) - start) / slope))
  for count in 2 ** np.arange(6, 14):
    simulated[int(count)] = width(drawn(real, int(count), 1), drawn(made, int(count), 2), 100)
    print(f"{count:6} draws: {simulated[int(count)]:.1%}", flush=True)
    if simulated[int(count)] < GOAL:
      break
  (before, wide), (enough, narrow) = list(simulated.items())[-2:]
  share_of_way = (np.log(wide) - np.log(GOAL)) / (np.log(wide) - np.log(narrow))
  least = float(np.exp(np.log(before) + share_of_way * (np.log(enough) - np.log(before))))
  print(f"below {GOAL:.0%} from {line:,.0f} clips by the line through the measured ones, {least:,.0f} by the draws")
  found = {"clips a second": rate, "share of matrix products": share, "bytes": memory, "measured": measured}
  found |= {"simulated": simulated, "clips by the line": line, "clips by the draws": least}
  options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
