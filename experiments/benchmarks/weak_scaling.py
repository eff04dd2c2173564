"""Weak scaling on paper: the XL plan from 64 to 4096 chips of v5e, with as many clips a chip everywhere.

  python experiments/benchmarks/weak_scaling.py [--plans docs/plans] [--out docs/plans/weak_scaling.svg]

Up to 512 chips (two slices) the points are what the compiler made (docs/plans/xl_v5e_*.json, by experiments/plans.sh).
Beyond, a slice does what it does at 512 chips, and only the network between slices grows: a chip sends its share V
of the gradient 2 V (s - 1) / s times over s slices, in a ring, as it sends V at two, and receives as much. The line
hides as large a part of both as the two slices' schedule does, the band's lower edge none, one after the other. Prints
a table; all of it is an estimate.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
COMPILED = {64: "xl_v5e_64", 256: "xl_v5e_256", 512: "xl_v5e_2x256"}
SLICES = (4, 8, 16)


def over_dcn(plan: dict) -> tuple[float, float]:
  """Seconds that sending and receiving between slices take, and those that are waited for."""
  found = [each for each in plan["train"]["collectives"] if each["network"] == "dcn"]
  return sum(each["seconds"] for each in found), sum(each["exposed"] for each in found)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--plans", type=Path, default=ROOT / "docs" / "plans")
  parser.add_argument("--out", type=Path, default=ROOT / "docs" / "plans" / "weak_scaling.svg")
  options = parser.parse_args()
  plans = {chips: json.loads((options.plans / f"{name}.json").read_text()) for chips, name in COMPILED.items()}
  two = plans[512]
  seconds, waited = over_dcn(two)
  work = two["mfu"] * two["step_seconds"]  # seconds of the step at the chip's peak
  inside = two["step_seconds"] - waited
  points = {chips: (plan["mfu"], plan["mfu"], plan["batch"], "compiled") for chips, plan in plans.items()}
  for slices in SLICES:
    grown = 2 * (slices - 1) / slices
    best, worst = (work / (inside + grown * each) for each in (waited, seconds))
    points[256 * slices] = (best, worst, two["batch"] // 2 * slices, "extrapolated")
  print(f"{'chips':>6} {'clips a step':>13} {'MFU':>7} {'nothing hidden':>15}")
  for chips, (best, worst, batch, how) in points.items():
    print(f"{chips:6} {batch:13,} {100 * best:6.1f}% {100 * worst:14.1f}%  {how}")
  figure = Figure(figsize=(7, 3.5), layout="constrained")
  axis = figure.subplots()
  chips = list(points)
  axis.plot(chips, [100 * points[n][0] for n in chips], marker="o", label="as the schedule of two slices hides")
  axis.fill_between(
    chips, *([100 * points[n][i] for n in chips] for i in (1, 0)), alpha=0.2, label="down to nothing hidden"
  )
  axis.axvline(256, color="gray", ls=":", lw=1)
  axis.annotate("one slice | several, over the data centre's network", (256, 2), ha="center", fontsize=8)
  axis.set(xscale="log", xticks=chips, xticklabels=chips, ylim=(0, 100), xlabel="chips of v5e, 5 clips a step each")
  axis.set(ylabel="MFU, estimated, %", title="XL, 16 frames of 256 x 256, weak scaling")
  axis.minorticks_off()
  axis.grid(alpha=0.2)
  axis.legend(fontsize=8)
  figure.savefig(options.out)
  print(options.out)


if __name__ == "__main__":
  main()
