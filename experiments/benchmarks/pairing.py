r"""What pairing runs by seed is worth, and whether equal arms are told apart.

  vdt sweep --config experiments/ablations.py:short --arms pairing --workdir runs/pairing --workers 2
  vdt compare runs/pairing
  python experiments/benchmarks/pairing.py runs/pairing  # or experiments/results/pairing

For each ablation: the variance of its effect if runs were not paired, over its variance as they are, with a 95 %
interval from a bootstrap over pairs of runs. And of the runs that differ in their seed alone, drawn 2,000 times as two
arms: of 100 draws, how many the comparison says do not differ.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from vdt import paired

METRICS = ("loss/generation/mean", "loss/prediction/mean", "train/loss")
RESAMPLES, DRAWS, SIZES = 9_999, 2_000, (3, 8, 16)
OUT = Path(__file__).parent / "results" / "pairing.json"


def read(path):
  """Arm to metric to values, in the order of seeds."""
  with path.open() as file:
    rows = sorted(csv.DictReader(file), key=lambda row: int(row["seed"]))
  seeds = {arm: [row["seed"] for row in rows if row["arm"] == arm] for arm in {row["arm"] for row in rows}}
  if any(each != seeds["base"] for arm, each in seeds.items() if arm != "again"):
    sys.exit(f"not all arms have the same seeds ({seeds}): finish the sweep")
  arms = dict.fromkeys(row["arm"] for row in rows)
  return {
    arm: {name: np.array([float(row[name]) for row in rows if row["arm"] == arm]) for name in METRICS} for arm in arms
  }


def ratio(base, arm):
  """The gain with its interval."""
  index = np.random.default_rng(0).integers(0, len(base), (RESAMPLES, len(base)))
  gains = paired.gain(base[index], arm[index])
  low, high = np.nanquantile(gains, [0.025, 0.975])
  return {"gain": float(paired.gain(base, arm)), "low": float(low), "high": float(high), "pairs": len(base)}


def equal(values, size):
  """Of 100 draws of two arms of `size` runs, how many do not differ: the mean of DRAWS."""
  rng, count = np.random.default_rng(0), 0
  for _ in range(DRAWS):
    chosen = rng.permutation(len(values))[: 2 * size]
    count += not paired.compare(values[chosen[:size]], values[chosen[size:]]).differs
  return 100 * count / DRAWS


def main(folder):
  arms = read(Path(folder) / "values.csv")
  base, again = arms.pop("base"), arms.pop("again")
  found = {"gain": {}, "equal": {}}
  for arm, values in arms.items():
    differ = [name for name in METRICS if (base[name] != values[name]).any()]  # an average does not touch training
    found["gain"][arm] = {name: ratio(base[name], values[name]) for name in differ}
    for name, each in found["gain"][arm].items():
      print(f"{arm:10} {name:22} unpaired / paired {each['gain']:8.3g} ({each['low']:.3g}, {each['high']:.3g})")
  for size in SIZES:
    whole = {name: np.concatenate([base[name], again[name]]) for name in METRICS}
    found["equal"][size] = {name: equal(values, size) for name, values in whole.items()}
    print(f"two equal arms of {size} runs do not differ, of 100 draws: {found['equal'][size]}")
  OUT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main(sys.argv[1])
