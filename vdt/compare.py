"""The arms of a sweep, or any runs, beside one another: what differs, by how much, how surely, and at what cost."""

import csv
import io
import math
from typing import Any

import jinja2
import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from vdt import ledger, paired
from vdt.arms import ALIGNMENTS, Arms, Run, effects, load, unlike
from vdt.config import differences
from vdt.report import embed

SHOWN = 6  # videos of a task
ACROSS = 4  # pictures beside one another
REPEATS = ("seed", "data.seed")
matplotlib.use("Agg")


def run(
  folders: list[epath.Path],
  bases: list[str],
  align: str,
  out: epath.Path,
  allowed: tuple[str, ...] = (),
  evaluated: bool = False,
) -> None:
  """`vdt compare`: writes compare.html, effects.csv, effects.md, values.csv and a picture of each eval's effects,
  effects_EVAL.svg, to `out`, and prints the page's path.

  The first arm is the base where none is named. All are compared at the largest budget that all of them have.
  bases: see `vdt.arms.against`. allowed: lines of cards in which evaluations may differ. evaluated: see
  `vdt.arms.load`. ValueError for less than two finished arms, and for figures whose cards differ otherwise.
  """
  runs, left = load(folders, align, evaluated)
  if not runs:
    raise ValueError(f"no finished run in {', '.join(map(str, folders))}: {'; '.join(left) or 'nothing there'}")
  arms = Arms.of(runs, bases)
  runs = [run for run in runs if run.arm in arms.values]
  lines = {line for run in runs for card in run.cards.values() for line in card}
  if unknown := {*allowed} - lines:
    raise ValueError(f"--allow {min(unknown)!r} is no line of a card; there are: {', '.join(sorted(lines)) or 'none'}")
  if wrong := unlike(runs, allowed):
    told = "; ".join(f"{line}: {values}" for line, values in wrong.items())
    names = ",".join(dict.fromkeys(line.partition(", ")[2] for line in wrong if ", " in line))
    advice = (
      f"evaluate alike, or, where they are meant to differ, give --allow '{names}'" if names else "evaluate alike"
    )
    raise ValueError(f"figures that were made differently cannot be ranked: {told}; {advice}")
  names = {name for run in runs for row in run.rows for name in row if "/" in name}
  there = set.intersection(*({*values} for runs in arms.values.values() for _, values in runs))
  if gone := sorted({name.split("/")[0] for name in names - there}):
    left.append(f"some of {', '.join(gone)}, which not all arms have by then: give these evals an `every`")
  out.mkdir(parents=True, exist_ok=True)
  (out / "values.csv").write_text(values_csv(arms))
  rows = effects(arms)
  (out / "effects.csv").write_text(to_csv(rows))
  (out / "effects.md").write_text(markdown(arms, rows))
  pictures = {name: intervals(arms, group) for name, group in grouped(rows).items()}
  for name, picture in pictures.items():
    (out / f"effects_{name}.svg").write_bytes(picture)
  (out / "compare.html").write_text(page(runs, left, arms, rows, pictures, align))
  print(out / "compare.html")


def to_csv(rows: list[dict[str, Any]]) -> str:
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]) if rows else [])
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def values_csv(arms: Arms) -> str:
  """A row for each run, a column for each metric that every run has."""
  each = [(arm, seed, values) for arm, runs in arms.values.items() for seed, values in runs]
  names = [name for name in each[0][2] if all(name in values for _, _, values in each)]
  return to_csv([{"arm": arm, "seed": seed, **{name: values[name] for name in names}} for arm, seed, values in each])


def markdown(arms: Arms, rows: list[dict[str, Any]]) -> str:
  """The table of effects, but for single noise levels."""
  names = [name for base, others in arms.groups.items() for name in (base, *others)]
  lines = [f"| metric | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
  for column in arms.columns():
    if "/t=" not in column:
      found, cells = [row for row in rows if row["metric"] == column], []
      for base in arms.groups:
        ours = [row for row in found if row["against"] == base]
        cells += [f"{ours[0]['base']:.4g}", *(f"{row['value']:.4g}: {cell(row)}" for row in ours)]
      lines.append(f"| {column} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
  """An effect with its interval; one that differs is marked."""
  if row["pairs"] == 1:
    return f"{row['mean']:+.3g}"
  text = f"{row['mean']:+.3g} ({row['low']:+.3g}, {row['high']:+.3g})"
  return f"**{text}**" if row["differs"] else text


def grouped(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """Eval to metric to its rows of `effects`, but for single noise levels."""
  groups: dict[str, dict[str, list]] = {}
  for row in rows:
    group, _, metric = row["metric"].partition("/")
    if "/t=" not in metric:
      groups.setdefault(group, {}).setdefault(metric, []).append(row)
  return groups


def page(
  runs: list[Run], left: list[str], arms: Arms, rows: list[dict[str, Any]], pictures: dict[str, bytes], align: str
) -> str:
  """compare.html, which opens offline; rows: those of `effects`, left: what was left out, and why, pictures: of each
  eval's effects, SVG."""
  groups = grouped(rows)
  every = [row for group in groups.values() for found in group.values() for row in found]
  template = jinja2.Environment(loader=jinja2.PackageLoader("vdt"), autoescape=True).get_template("compare.html.j2")
  return template.render(
    arms=arms,
    budget="the end of each" if align == "share" else f"{arms.budget:.4g} {ALIGNMENTS[align]}",
    changes=changes(runs),
    counts={name: [str(seed) for seed, _ in found] for name, found in arms.values.items()},
    left=left,
    groups=groups,
    pictures={name: embed(picture, "svg+xml") for name, picture in pictures.items()},
    count=sum(row["pairs"] > 1 for row in every),
    unpaired=[name for name in arms.base if not arms.common(name)],
    sources=sorted({run.sources for run in runs}),
    differ=sum(row["differs"] for row in every),
    bins=bins(rows),
    curves=embed(curves(runs, align), "svg+xml"),
    videos=videos(runs),
    costs=costs(runs),
    few=paired.FEW,
  )


def changes(runs: list[Run]) -> dict[str, dict[str, Any]]:
  """Dotted field to its value in each arm, for fields in which the arms differ; what repeats differ in is left out."""
  firsts = {run.arm: run.config for run in reversed(runs)}
  found = {}
  for config in firsts.values():
    for field in differences(next(iter(firsts.values())), config):
      if field not in REPEATS:
        found[field] = {name: lookup(each, field) for name, each in firsts.items()}
  return {field: dict(reversed(each.items())) for field, each in found.items()}


def lookup(config: dict[str, Any], field: str) -> Any:
  """A dotted field's value, of lists by number; "" where it is not there."""
  value: Any = config
  for key in field.split("."):
    value = {str(number): each for number, each in enumerate(value)} if isinstance(value, list) else value
    value = value.get(key, "") if isinstance(value, dict) else ""
  return value


def intervals(arms: Arms, group: dict[str, list[dict[str, Any]]]) -> bytes:
  """Each metric's effects as one picture: a base's mean, and its arms' on the side of it with the interval; red where
  that leaves out the base. group: metric to rows of `effects`; SVG."""
  across, names = min(len(group), ACROSS), [name for base, ours in arms.groups.items() for name in (base, *ours)]
  down, height = math.ceil(len(group) / across), 1.0 + 0.26 * len(names)
  figure = Figure(figsize=(3.2 * across + 1.2, height * down), layout="constrained")
  plots = figure.subplots(down, across, squeeze=False, sharey=True)
  for plot, (metric, rows) in zip(plots.flat, group.items()):
    for row in rows:
      base, place = names.index(row["against"]), names.index(row["arm"])
      plot.plot([row["base"]] * 2, [base, place], color="0.6", lw=0.8, ls=":")
      plot.plot(row["base"], base, "o", color="0.3", ms=4)
      wide = 0.0 if row["pairs"] == 1 else (row["high"] - row["low"]) / 2
      colour, width = ("C3", 2.4) if row["differs"] else ("C0", 1.2)
      plot.errorbar(row["base"] + row["mean"], place, xerr=wide, fmt="o", color=colour, ms=4, lw=width)
    plot.set(title=metric, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    plot.title.set_size(9)
    plot.tick_params(labelsize=8)
    plot.locator_params(axis="x", nbins=4)
    plot.grid(axis="x", alpha=0.2)
  for plot in plots.flat[len(group) :]:
    plot.set_axis_off()
  return svg(figure)


def svg(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  with matplotlib.rc_context({"svg.hashsalt": "vdt"}):  # the same for the same figures
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  return buffer.getvalue()


def bins(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, tuple]]]:
  """Eval and task to arm to noise level to (change relative to its base, whether it differs, its colour)."""
  found: dict[str, dict[str, dict[str, tuple]]] = {}
  for row in rows:
    table, _, level = row["metric"].rpartition("/t=")
    if table:
      change = row["mean"] / row["base"] if row["base"] else 0.0
      shade = f"rgba({'200,60,40' if change > 0 else '40,110,200'},{min(abs(change) * 2, 0.8):.2f})"
      cell = f"{100 * change:+.1f} %", row["differs"], shade
      found.setdefault(table, {}).setdefault(row["arm"], {})[level] = cell
  return found


def curves(runs: list[Run], align: str) -> bytes:
  """The training loss, and the means of validation losses, of each arm, averaged over its runs; as one picture."""
  means = [name for name in runs[0].rows[-1] if name.endswith("/mean")]
  often = lambda name: all(sum(name in row for row in run.rows) > 1 for run in runs)
  names = ["loss", *[name for name in means if often(name)]]
  figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
  for plot, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names):
    for arm in dict.fromkeys(run.arm for run in runs):
      lines = [smooth(*run.series(name)) for run in runs if run.arm == arm]
      length = min(len(x) for x, _ in lines)
      x, y = lines[0][0][:length], np.array([values[:length] for _, values in lines])
      (line,) = plot.plot(x, y.mean(0), label=arm, lw=1.2)
      if len(lines) > 1:
        plot.fill_between(x, y.min(0), y.max(0), alpha=0.15, color=line.get_color(), lw=0)
    plot.set(title=name, xlabel=ALIGNMENTS[align], yscale="log")
    plot.grid(alpha=0.2)
  plot.legend(fontsize=8)
  return svg(figure)


def smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Running means over a fortieth of a long series."""
  width = max(len(y) // 40, 1)
  return x[width - 1 :], np.convolve(y, np.ones(width) / width, "valid")


def videos(runs: list[Run]) -> dict[str, list[dict[str, str]]]:
  """Task to rows of arm to video: those that each arm's first run made of the same clips and noise."""
  firsts = {run.arm: run.folder / "samples" for run in reversed(runs)}
  firsts = dict(reversed(firsts.items()))
  tasks = [path.name for path in sorted(next(iter(firsts.values())).glob("*")) if path.is_dir() and path.name != "real"]
  found = {}
  for task in tasks:
    real = next(iter(firsts.values())) / "real"
    found[task] = []
    for number in range(SHOWN):
      files = {"real": real, **{arm: folder / task for arm, folder in firsts.items()}}
      files = {name: folder / f"{number:04d}.webp" for name, folder in files.items()}
      found[task].append(
        {name: embed(path.read_bytes(), "webp") if path.exists() else "" for name, path in files.items()}
      )
  return found


def costs(runs: list[Run]) -> dict[str, dict[str, str]]:
  """Arm to means over its runs: of the last row's rates, and of the ledger."""
  found: dict[str, dict[str, str]] = {}
  for arm in dict.fromkeys(run.arm for run in runs):
    ours = [run for run in runs if run.arm == arm]
    rows = [next(row for row in reversed(run.rows) if "loss" in row) for run in ours]
    sums = [ledger.summary(ledger.read(str(run.folder))) for run in ours]
    mean = lambda values: float(np.mean(list(values)))
    usual = lambda run, name: np.median([row[name] for row in run.rows if "loss" in row])
    found[arm] = {
      "GFLOPs a step": f"{mean(row['step_time'] * row['flops_per_second'] for row in rows) / 1e9:.4g}",
      "seconds a step": f"{mean(usual(run, 'step_time') for run in ours):.3g}",
      "MFU": f"{100 * mean(usual(run, 'utilisation') for run in ours):.1f} %",
      "chip-hours": f"{mean(each['chip_hours'] for each in sums):.4g}",
      "goodput": f"{100 * mean(each['goodput'] for each in sums):.1f} %",
      "attempts": f"{mean(each['attempts'] for each in sums):.3g}",
    }
  return found
