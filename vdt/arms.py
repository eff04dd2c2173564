"""Finished runs by the arm they repeat, and how much an arm differs from another, how surely, at equal cost."""

import fnmatch
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vdt import attempts, files, paired, sweep, workdirs
from vdt.evaluate import CARDS, EVALUATION, flat
from vdt.writer import read_rows

ALIGNMENTS = {
  "steps": "steps",
  "flops": "FLOPs of the model, forward and backward",
  "hours": "hours in steps",
  "share": "of its own steps",
}
LOGGED = ("loss", "grad_norm")
LAST = 20  # logged steps of which training's own columns are the mean


class Run(NamedTuple):
  """One run of an arm: its config as config.json has it, its rows of metrics, where each step is along an axis, and the
  cards of its evals."""

  arm: str
  seed: int | None
  folder: epath.Path
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
      x, y = self.series(name)
      if x[0] <= budget * (1 + 1e-9):
        found[name] = float(np.interp(budget, x, y))
    return found

  def at(self, step: int) -> float:
    steps = list(self.where)
    return float(np.interp(step, steps, [self.where[each] for each in steps]))

  def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where along the axis a column has values, and which."""
    rows = [row for row in self.rows if name in row]
    return np.array([self.at(row["step"]) for row in rows]), np.array([row[name] for row in rows], float)


def load(folders: list[epath.Path], align: str, evaluated: bool = False) -> tuple[list[Run], list[str]]:
  """The finished runs in the folders of sweeps and of runs, here or in buckets, and what was left out, and why.

  evaluated: with the figures of `vdt evaluate` in the place of those of training.
  """
  runs, left = [], []
  for folder in folders:
    alike = [each.name for each in folders].count(folder.name) > 1
    arms = [{"name": str(folder) if alike else folder.name, "seed": None, "folder": "."}]
    if (folder / sweep.NAME).exists():
      prefix = f"{folder.name}/" * (len(folders) > 1)
      arms = [{**arm, "name": prefix + arm["name"]} for arm in sweep.read(Path(folder))]
    for arm in arms:
      where = folder if arm["folder"] == "." else folder / arm["folder"]
      if (where / "job.json").exists():
        place, state = attempts.Job.read(Path(where)).workdir, attempts.state(Path(where))
        if files.remote(place):  # nobody here knows how it stands
          where, state = epath.Path(place), attempts.DONE if workdirs.exists(place) else f"not begun in {place}"
        if state != attempts.DONE:
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


def figures(logged: list[dict[str, Any]], path: epath.Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
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
  """Values of all runs at one budget: `values[arm]` is a list of (seed, column to value), in the order of the runs.

  base: an arm to the one it is compared with.
  """

  base: dict[str, str]
  budget: float
  values: dict[str, list[tuple[int | None, dict[str, float]]]]

  @classmethod
  def of(cls, runs: list[Run], bases: list[str]) -> "Arms":
    """bases: see `against`."""
    names = list(dict.fromkeys(run.arm for run in runs))
    base, budget = against(names, bases or names[:1]), min(run.end for run in runs)
    kept = [name for name in names if name in (*base, *base.values())]
    return cls(
      base, budget, {name: [(run.seed, run.values(budget)) for run in runs if run.arm == name] for name in kept}
    )

  def columns(self) -> list[str]:
    """What every run has, and some arm has otherwise than its base: controls on real clips, say, are alike in all."""
    each = [values for runs in self.values.values() for _, values in runs]
    common = [name for name in each[0] if all(name in values for values in each)]
    return [name for name in common if any(np.not_equal(*self.pairs(arm, name)).any() for arm in self.base)]

  def common(self, arm: str) -> list[int]:
    """The seeds that an arm and its base have both."""
    other = [seed for seed, _ in self.values[arm]]
    return [seed for seed, _ in self.values[self.base[arm]] if seed is not None and seed in other]

  def pairs(self, arm: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The base's values and the arm's, by seed; by place, where they have no seed in common."""
    base, other = self.values[self.base[arm]], self.values[arm]
    if common := self.common(arm):
      pick = lambda runs: [dict(runs)[seed][column] for seed in common]
    else:
      count = min(len(base), len(other))
      pick = lambda runs: [values[column] for _, values in runs[:count]]
    return np.array(pick(base), float), np.array(pick(other), float)

  @property
  def groups(self) -> dict[str, list[str]]:
    """Each base to the arms that are compared with it."""
    return {base: [arm for arm in self.base if self.base[arm] == base] for base in dict.fromkeys(self.base.values())}


def against(names: list[str], bases: list[str]) -> dict[str, str]:
  """Arm to the arm it is compared with, by the first of `bases` that fits: "ARM" of all others, "PATTERN:ARM" of those
  whose names look like that ("*-64:scratch-64"). What none fits is not compared.

  ValueError for an arm that is not there, and for a base that nothing is compared with.
  """
  found: dict[str, str] = {}
  for each in bases:
    pattern, base = ("*", each) if each in names else each.rpartition(":")[::2]
    if base not in names:
      raise ValueError(f"{base!r} is not among the finished runs: {', '.join(names)}")
    if len(names) < 2:
      raise ValueError(f"there is one finished run, {base}: name another one beside it")
    fits = [name for name in names if name != base and fnmatch.fnmatchcase(name, pattern)]
    if not fits:
      raise ValueError(f"--base {each!r}: no other arm is called like {pattern!r}; there are {', '.join(names)}")
    found = {**{name: base for name in fits}, **found}
  return {name: found[name] for name in names if name in found}


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
  """A row for each column and each arm that is compared with another."""
  rows = []
  for column in arms.columns():
    for arm, against in arms.base.items():
      base, other = arms.pairs(arm, column)
      effect = paired.compare(base, other)
      means = {"base": float(base.mean()), "value": float(other.mean())}
      rows.append(
        {"metric": column, "arm": arm, "against": against, **means, **effect._asdict(), "differs": effect.differs}
      )
  return rows
