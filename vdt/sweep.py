"""An experiment's arms: which fields each of them changes, what makes two of them one, and where each of them lives.

An experiment file lists them in a function, `sweep()` or another that the command line names, from dicts of dotted
fields or with the helpers below:

  def sweep():
    layouts = chainit([BASE], vary("model.pattern", joint=(("joint",),), causal=(("space",), ("causal",))))
    return product(layouts, seeds(3))
"""

import dataclasses
import hashlib
import itertools
import json
import re
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vdt import files, workdirs
from vdt.attempts import Job
from vdt.config import Config, to_dict

NAME = "sweep.json"
RESERVED = ("variant", "processes")
"""Names in an arm's changes that are no field: another variant of the experiment, the processes that run the arm."""


class Arm(NamedTuple):
  """Changes of the base config under a name; arms that differ in nothing but `seed` repeat one another."""

  name: str = ""
  changes: dict[str, Any] = {}
  seed: int | None = None


BASE = Arm("base")


def vary(field: str, values: Iterable[Any] = (), **named: Any) -> list[Arm]:
  """An arm for each value of a dotted field, named after it, or by keyword."""
  short = field.rpartition(".")[2]
  return [Arm(f"{short}={value}", {field: value}) for value in values] + [
    Arm(name, {field: value}) for name, value in named.items()
  ]


def seeds(count: int, first: int = 0) -> list[Arm]:
  """Repeats: weights, noise, times, tasks and the order of the clips are drawn anew; what is held out stays."""
  return [Arm("", {"seed": seed, "data.seed": seed}, seed) for seed in range(first, first + count)]


def product(*parts: Iterable[Arm | dict]) -> list[Arm]:
  """Each arm of the first part with each of the second, and so on."""
  return [both(arms) for arms in itertools.product(*map(arms_of, parts))]


def zipit(*parts: Iterable[Arm | dict]) -> list[Arm]:
  """The first arms of all parts as one, then the second ones. ValueError if their numbers differ."""
  lists = [arms_of(part) for part in parts]
  if len({len(each) for each in lists}) > 1:
    raise ValueError(f"zipit of parts of {', '.join(str(len(each)) for each in lists)} arms: give as many each")
  return [both(arms) for arms in zip(*lists)]


def chainit(*parts: Iterable[Arm | dict]) -> list[Arm]:
  """The arms of the first part, then those of the second."""
  return [arm for part in parts for arm in arms_of(part)]


def arms_of(part: Iterable[Arm | dict]) -> list[Arm]:
  """Arms, where a dict is named after what it changes."""
  named = lambda changes: ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
  return [each if isinstance(each, Arm) else Arm(named(each), dict(each)) for each in part]


def both(arms: Iterable[Arm]) -> Arm:
  """One arm that changes what all of them do. ValueError if two change one field."""
  changes, seed, names = {}, None, []
  for arm in arms:
    if twice := {*changes} & {*arm.changes}:
      raise ValueError(f"an arm changes {', '.join(sorted(twice))} twice ({', '.join([*names, arm.name])})")
    changes |= arm.changes
    seed = arm.seed if seed is None else seed
    names += [arm.name] * bool(arm.name)
  return Arm(",".join(names), changes, seed)


def load(path: str, function: str) -> list[Arm]:
  """The arms that `function` of the experiment file yields. ValueError if there are none, or two of one name."""
  module = runpy.run_path(path)
  if not callable(module.get(function)):
    raise ValueError(f"{path} has no function {function}(): it would yield the arms of a sweep, say seeds(3)")
  yielded = module[function]()
  if not isinstance(yielded, Iterable) or isinstance(yielded, (str, dict)):
    raise ValueError(f"{function}() of {path} gave {type(yielded).__name__}: let it yield or return arms")
  arms = arms_of(yielded)
  names = [(arm.name, arm.seed) for arm in arms]
  if not arms or len({*names}) < len(names):
    twice = sorted({f"{name} (seed {seed})" for name, seed in names if names.count((name, seed)) > 1})
    raise ValueError(f"{function}() of {path} yields {f'{twice[0]} twice' if twice else 'no arms'}")
  return [arm._replace(name=arm.name or "base") for arm in arms]


def flags(changes: dict[str, Any]) -> dict[str, str]:
  """Flags by name, as the command line would have them. ValueError for a value that none can write."""
  found = {}
  for field, value in changes.items():
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, (str, bool, int, float, tuple, list)):
      raise ValueError(
        f"an arm sets {field} to a {type(value).__name__}: give a number, text or tuple, or make a variant of the "
        f'experiment and set "variant"'
      )
    if field not in RESERVED:
      found[f"config.{field}"] = value if isinstance(value, str) else repr(value)
  return found


def identity(config: Config, data: str, processes: int = 1) -> str:
  """What a run is a function of, as a hash: the resolved config, our sources, the data, how many processes."""
  what = [to_dict(config), workdirs.source_hash(), data, processes]
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


Resolve = Callable[[dict[str, Any]], tuple[Config, list[str]]]


class Plan(NamedTuple):
  """An arm, resolved: its config, the folder of its run, and the job to write there."""

  arm: Arm
  config: Config
  folder: Path
  job: Job


def lay_one(folder: Path, config: Config, origin: list[str], processes: int, here: bool) -> Plan:
  """A run of its own, in `folder`."""
  (plan,) = lay(folder, [Arm(folder.name, {"processes": processes})], lambda _: (config, origin), here)
  return plan._replace(folder=folder)


def lay(
  folder: Path,
  arms: list[Arm],
  resolve: Resolve,
  here: bool,
  **options: Any,
) -> list[Plan]:
  """What to run of `arms` under `folder`, each in a folder named after it and its identity; arms that are one share it.

  resolve: from an arm's changes to its config and the flags that make it. here: whether the data can be looked at on
  this machine, to be part of the identity. options: of each job. ValueError for a config that cannot be.
  """
  prints, plans = {}, []
  for arm in arms:
    try:
      config, origin = resolve(arm.changes)
      config.check()
      config.model.build(config.data.frames, tuple(config.data.size), {})
    except ValueError as error:
      raise ValueError(f"arm {arm.name!r}: {error}") from error
    if (key := repr(config.data)) not in prints:
      if here:
        config.prepare()
      prints[key] = config.data.fingerprint() if here else ""
    processes = arm.changes.get("processes", 1)
    mark = identity(config, prints[key], processes)
    name = arm.name if arm.seed is None else f"{arm.name},seed={arm.seed}"
    where = folder / f"{re.sub(r'[^A-Za-z0-9_.,=+-]', '_', name)[:100]}-{mark[:8]}"
    where = next((each.folder for each in plans if each.job.identity == mark), where)
    plans.append(Plan(arm, config, where, Job(name, ["train", *origin], mark, processes, **options)))
  return plans


def write(folder: Path | None, plans: list[Plan], remote: str = "", dry: bool = False) -> list[Plan]:
  """Completes and writes down the jobs that `lay` made, one for each folder, and the sweep, if `folder` is one's.

  remote: where workdirs lie, if not in the folders of their jobs.
  """
  jobs = []
  for plan in {plan.folder: plan for plan in reversed(plans)}.values():
    place = f"{remote.rstrip('/')}/{plan.folder.name}" if remote else plan.folder
    job = dataclasses.replace(plan.job, command=[*plan.job.command, f"--workdir={place}"])
    jobs.insert(0, plan._replace(job=job))
    if not dry:
      plan.folder.mkdir(parents=True, exist_ok=True)
      job.write(plan.folder)
  if folder and not dry:
    rows = [
      {"name": arm.name, "seed": arm.seed, "folder": where.name, "identity": job.identity, "changes": arm.changes}
      for arm, _, where, job in plans
    ]
    content = {"arms": rows, "sources": workdirs.source_hash()}
    files.rewrite(epath.Path(folder) / NAME, json.dumps(content, indent=2) + "\n")
  return jobs


def read(folder: Path) -> list[dict[str, Any]]:
  """The arms that `write` laid out. ValueError if none were."""
  if not (folder / NAME).exists():
    raise ValueError(f"{folder} is no sweep (it has no {NAME}): name the --workdir of `vdt sweep`")
  return json.loads((folder / NAME).read_text())["arms"]
