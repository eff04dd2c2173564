"""The arms of a sweep, or any runs, beside one another: what differs, by how much, how surely, and at what cost."""

import csv
import functools
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vdt import attempts, ledger, paired, sweep, workdirs
from vdt.config import differences
from vdt.evaluate import CARDS, EVALUATION, flat
from vdt.report import embed
from vdt.writer import read_rows

ALIGNMENTS = {
  "steps": "steps",
  "flops": "FLOPs of the model, forward and backward",
  "hours": "hours in steps",
  "share": "of its own steps",
}
LOGGED = ("loss", "grad_norm")
LAST = 20  # logged steps of which training's own columns are the mean
SHOWN = 6
REPEATS = ("seed", "data.seed")
matplotlib.use("Agg")


class Run(NamedTuple):
  """One run of an arm: its config as config.json has it, its rows of metrics, where each step is along an axis, and the
  cards of its evals."""

  arm: str
  seed: int | None
  folder: Path
  config: dict[str, Any]
  sources: str
  rows: list[dict[str, Any]]
  where: dict[int, float]
  cards: dict[str, dict[str, Any]] = {}

  @property
  def end(self) -> float:
    return float(max(self.where.values()))

  def values(self, budget: float) -> dict[str, float]:
    """Each column at `budget`, linearly between the evals around it; training's own are means of the rows before it.

    A column that is only there for later steps is left out.
    """
    logged = [row for row in self.rows if "loss" in row and self.at(row["step"]) <= budget * (1 + 1e-9)][-LAST:]
    found = {f"train/{name}": float(np.mean([row[name] for row in logged])) for name in LOGGED if logged}
    for name in dict.fromkeys(name for row in self.rows for name in row if "/" in name):
      x, y = series(self, name)
      if x[0] <= budget * (1 + 1e-9):
        found[name] = float(np.interp(budget, x, y))
    return found

  def at(self, step: int) -> float:
    steps = list(self.where)
    return float(np.interp(step, steps, [self.where[each] for each in steps]))


def load(folders: list[Path], align: str, evaluated: bool = False) -> tuple[list[Run], list[str]]:
  """The finished runs in sweeps' folders and runs' workdirs, and what was left out, with the reason.

  evaluated: with the figures of `vdt evaluate` in the place of those of training.
  """
  runs, left = [], []
  for folder in folders:
    alike = [each.name for each in folders].count(folder.name) > 1
    arms = [{"name": str(folder) if alike else folder.name, "seed": None, "folder": "."}]
    if (folder / sweep.NAME).exists():
      prefix = f"{folder.name}/" * (len(folders) > 1)
      arms = [{**arm, "name": prefix + arm["name"]} for arm in sweep.read(folder)]
    for arm in arms:
      where = folder / arm["folder"]
      job = (where / "job.json").exists()
      if job and (state := attempts.state(where)) != attempts.DONE:
        left.append(f"{arm['name']}, seed {arm['seed']}: {state}")
        continue
      content, rows = workdirs.read(str(where)), read_rows(str(where))
      config, sources = content["config"], content["environment"].get("sources", "")
      logged = [row for row in rows if "loss" in row]
      if not logged or logged[-1]["step"] < config["steps"]:
        left.append(f"{where.name}: at step {logged[-1]['step'] if logged else 0} of {config['steps']}")
        continue
      cards = json.loads((where / CARDS).read_text()) if (where / CARDS).exists() else {}
      if evaluated:
        if not (where / EVALUATION).exists():
          left.append(f"{where.name}: not evaluated, run vdt evaluate --workdir {where}")
          continue
        rows, cards = figures(logged, where / EVALUATION)
      runs.append(Run(arm["name"], arm["seed"], where, config, sources, rows, axis(logged, align), cards))
  return runs, left


def figures(logged: list[dict[str, Any]], path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
  """Rows with the figures of an evaluation, and its cards. ValueError for a damaged file."""
  try:
    found = json.loads(path.read_text())
    row, cards = {"step": found["step"], **flat(found["tables"])}, found["cards"]
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged ({error}): run vdt evaluate again") from error
  return [*({name: value for name, value in row.items() if "/" not in name} for row in logged), row], cards


def axis(rows: list[dict[str, Any]], align: str) -> dict[int, float]:
  """Step to steps, FLOPs, hours spent in steps, or its share of all, from logged rows."""
  found, hours, before = {0: 0.0}, 0.0, 0
  for row in rows:
    hours += row["step_time"] * (row["step"] - before) / 3600
    before = row["step"]
    flops = row["step"] * row["step_time"] * row["flops_per_second"]
    share = row["step"] / rows[-1]["step"]
    found[row["step"]] = {"steps": row["step"], "flops": flops, "hours": hours, "share": share}[align]
  return found


class Arms(NamedTuple):
  """Values of all runs at one budget: `values[arm]` is a list of (seed, column to value), in the order of the runs."""

  base: str
  budget: float
  values: dict[str, list[tuple[int | None, dict[str, float]]]]

  @classmethod
  def of(cls, runs: list[Run], base: str | None) -> "Arms":
    """ValueError if no run is of the base arm, or there is only one arm."""
    names = list(dict.fromkeys(run.arm for run in runs))
    base = base or names[0]
    if base not in names or len(names) < 2:
      raise ValueError(
        f"{base!r} is not among the finished runs: {', '.join(names)}"
        if base not in names
        else f"there is one finished run, {base}: name another one beside it"
      )
    budget = min(run.end for run in runs)
    return cls(
      base, budget, {name: [(run.seed, run.values(budget)) for run in runs if run.arm == name] for name in names}
    )

  def columns(self) -> list[str]:
    """What every run has and not all have alike: controls on real clips, say, are the same in all."""
    each = [values for runs in self.values.values() for _, values in runs]
    common = [name for name in each[0] if all(name in values for values in each)]
    return [name for name in common if len({values[name] for values in each}) > 1]

  def common(self, arm: str) -> list[int]:
    """The seeds that the base and the arm have both."""
    other = [seed for seed, _ in self.values[arm]]
    return [seed for seed, _ in self.values[self.base] if seed is not None and seed in other]

  def pairs(self, arm: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The base's values and the arm's, by seed; by place, where they have no seed in common."""
    base, other = self.values[self.base], self.values[arm]
    if common := self.common(arm):
      pick = lambda runs: [dict(runs)[seed][column] for seed in common]
    else:
      count = min(len(base), len(other))
      pick = lambda runs: [values[column] for _, values in runs[:count]]
    return np.array(pick(base), float), np.array(pick(other), float)

  @property
  def others(self) -> list[str]:
    return [name for name in self.values if name != self.base]


def run(
  folders: list[Path], base: str | None, align: str, out: Path, allowed: tuple[str, ...] = (), evaluated: bool = False
) -> None:
  """`vdt compare`: writes compare.html, effects.csv, effects.md and values.csv to `out`, and prints the page's path.

  The first arm is the base where none is named. All are compared at the largest budget that all of them have.
  allowed: lines of cards in which evaluations may differ. evaluated: see `load`. ValueError for less than two finished
  arms, and for figures whose cards differ otherwise.
  """
  runs, left = load(folders, align, evaluated)
  if not runs:
    raise ValueError(f"no finished run in {', '.join(map(str, folders))}: {'; '.join(left) or 'nothing there'}")
  arms = Arms.of(runs, base)
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
  (out / "compare.html").write_text(page(runs, left, arms, rows, align))
  print(out / "compare.html")


def unlike(runs: list[Run], allowed: tuple[str, ...] = ()) -> dict[str, str]:
  """Lines, but for `allowed`, in which the runs' evaluations were made differently, as "EVAL, LINE", and their values.

  An eval that some runs have no card of is unlike as a whole, under its own name.
  """
  cards, found = [run.cards for run in runs], {}
  for name in dict.fromkeys(name for card in cards for name in card):
    if without := list(dict.fromkeys(run.arm for run in runs if name not in run.cards)):
      found[name] = f"only {', '.join(dict.fromkeys(run.arm for run in runs if name in run.cards))} has it"
      found[name] += f", {', '.join(without)} has not"
      continue
    for line in dict.fromkeys(line for card in cards for line in card[name]):
      values = {json.dumps(card[name].get(line)): run.arm for run, card in zip(runs, cards)}
      if len(values) > 1 and line not in allowed:
        found[f"{name}, {line}"] = " against ".join(f"{value} ({arm})" for value, arm in values.items())
  return found


def effects(arms: Arms) -> list[dict[str, Any]]:
  """A row for each column and arm."""
  rows = []
  for column in arms.columns():
    for arm in arms.others:
      base, other = arms.pairs(arm, column)
      effect = paired.compare(base, other)
      means = {"base": float(base.mean()), "value": float(other.mean())}
      rows.append({"metric": column, "arm": arm, **means, **effect._asdict(), "differs": effect.differs})
  return rows


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
  lines = [f"| metric | {arms.base} | {' | '.join(arms.others)} |", "|---" * (2 + len(arms.others)) + "|"]
  for column in arms.columns():
    if "/t=" not in column:
      found = [row for row in rows if row["metric"] == column]
      cells = [f"{row['value']:.4g}: {cell(row)}" for row in found]
      lines.append(f"| {column} | {found[0]['base']:.4g} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def cell(row: dict[str, Any]) -> str:
  """An effect with its interval; one that differs is marked."""
  if row["pairs"] == 1:
    return f"{row['mean']:+.3g}"
  text = f"{row['mean']:+.3g} ({row['low']:+.3g}, {row['high']:+.3g})"
  return f"**{text}**" if row["differs"] else text


def page(runs: list[Run], left: list[str], arms: Arms, rows: list[dict[str, Any]], align: str) -> str:
  """compare.html, which opens offline; rows: those of `effects`, left: what was left out, and why."""
  by_column = {column: [row for row in rows if row["metric"] == column] for column in arms.columns()}
  groups: dict[str, dict] = {}
  for column, found in by_column.items():
    if "/t=" not in column:
      groups.setdefault(column.split("/")[0], {})[column.partition("/")[2]] = found
  template = jinja2.Environment(loader=jinja2.PackageLoader("vdt"), autoescape=True).get_template("compare.html.j2")
  return template.render(
    arms=arms,
    budget=f"{arms.budget:.4g} {ALIGNMENTS[align]}",
    changes=changes(runs),
    counts={name: [str(seed) for seed, _ in found] for name, found in arms.values.items()},
    left=left,
    groups=groups,
    count=sum(row["pairs"] > 1 for group in groups.values() for found in group.values() for row in found),
    unpaired=[name for name in arms.others if not arms.common(name)],
    sources=sorted({run.sources for run in runs}),
    differ=sum(row["differs"] for group in groups.values() for each in group.values() for row in each),
    bins=bins(arms, by_column),
    curves=curves(runs, align),
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
  value = functools.reduce(
    lambda part, key: part.get(key, {}) if isinstance(part, dict) else {}, field.split("."), config
  )
  return value if value != {} else ""


def bins(arms: Arms, by_column: dict[str, list[dict]]) -> dict[str, dict[str, dict[str, tuple]]]:
  """Eval and task to arm to noise level to (change relative to the base, whether it differs, its colour)."""
  found: dict[str, dict[str, dict[str, tuple]]] = {}
  for column, rows in by_column.items():
    table, _, level = column.rpartition("/t=")
    for row in rows if table else ():
      change = row["mean"] / row["base"] if row["base"] else 0.0
      shade = f"rgba({'200,60,40' if change > 0 else '40,110,200'},{min(abs(change) * 2, 0.8):.2f})"
      differs = row["differs"]
      found.setdefault(table, {}).setdefault(row["arm"], {})[level] = (f"{100 * change:+.1f} %", differs, shade)
  return found


def curves(runs: list[Run], align: str) -> str:
  """The training loss, and the means of validation losses, of each arm, averaged over its runs; as one picture."""
  means = [name for name in runs[0].rows[-1] if name.endswith("/mean")]
  often = lambda name: all(sum(name in row for row in run.rows) > 1 for run in runs)
  names = ["loss", *[name for name in means if often(name)]]
  figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
  for plot, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names):
    for arm in dict.fromkeys(run.arm for run in runs):
      lines = [smooth(*series(run, name)) for run in runs if run.arm == arm]
      length = min(len(x) for x, _ in lines)
      x, y = lines[0][0][:length], np.array([values[:length] for _, values in lines])
      (line,) = plot.plot(x, y.mean(0), label=arm, lw=1.2)
      if len(lines) > 1:
        plot.fill_between(x, y.min(0), y.max(0), alpha=0.15, color=line.get_color(), lw=0)
    plot.set(title=name, xlabel=ALIGNMENTS[align], yscale="log")
    plot.grid(alpha=0.2)
  plot.legend(fontsize=8)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="svg")
  return embed(buffer.getvalue(), "svg+xml")


def series(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Where along the axis a column has values, and which."""
  rows = [row for row in run.rows if name in row]
  return np.array([run.at(row["step"]) for row in rows]), np.array([row[name] for row in rows], float)


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
