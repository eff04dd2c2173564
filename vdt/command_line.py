"""The flags of a command, and the experiment's config that they make."""

import difflib
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import flags

SWITCHES = ("dry_run", "check")
"""Flags that need no value, and may be said with a "no" before them."""


def parse(rest: list[str], values: flags.FlagValues) -> tuple[Any, list[str]]:
  """The experiment's config, and the flags that make it again; `values` takes its own flags.

  Without --config the experiment is the one that the workdir's config.json names.
  """
  if any(flag.lstrip("-") in ("help", "h") for flag in rest):
    print("  --config FILE.py[:VARIANT] and --config.FIELD=VALUE: the experiment, and changes to it")
    print(values.get_help())
    sys.exit(0)
  from ml_collections.config_flags import config_flags

  from vdt import workdirs

  named = pairs(rest)
  if "config" not in named:
    if "workdir" not in named:
      run = ", or a run with --workdir DIR" if "workdir" in values else ""
      raise ValueError(f"name an experiment with --config FILE.py[:VARIANT]{run}")
    stored = workdirs.read(named["workdir"])
    if not stored["origin"]:
      raise ValueError(f"{named['workdir']} does not know its experiment's file: name it with --config")
    named = {**pairs(stored["origin"]), **named}
  path, colon, variant = named["config"].partition(":")
  if not os.path.isfile(path):
    raise FileNotFoundError(f"no experiment at {path}: --config takes a Python file with get_config()")
  if (folder := os.path.dirname(os.path.abspath(path))) not in sys.path:
    sys.path.append(folder)  # an experiment may import its neighbours, as a script may
  named["config"] = os.path.abspath(path) + colon + variant
  argv = [f"--{name}={value}" for name, value in named.items()]
  try:
    config_flags.DEFINE_config_file("config", None, "the experiment", flag_values=values, sys_argv=argv)
    values(["vdt", *argv])
  except flags.UnrecognizedFlagError as error:
    raise ValueError(f"unknown flag --{error.flagname}{close_to(error.flagname, list(values))}") from None
  except KeyError as error:
    if any(frame.filename == os.path.abspath(path) for frame in traceback.extract_tb(error.__traceback__)):
      raise  # the experiment's own
    raise ValueError(f"unknown config field: {error.args[0]}") from None
  except config_flags.UnsupportedOperationError as error:
    field = str(error).partition(" is not supported")[0].split()[-1]
    raise ValueError(
      f"--{field} is no single value: change its fields, --{field}.NAME=VALUE, or the experiment"
    ) from None
  except flags.IllegalFlagValueError as error:  # an experiment's own error arrives as a traceback
    raise ValueError(str(error).strip().splitlines()[-1]) from None
  return values.config, [f"--{name}={value}" for name, value in named.items() if name.split(".")[0] == "config"]


def pairs(rest: list[str]) -> dict[str, str]:
  """Flags written --name=value or --name value, by name; all but SWITCHES take a value."""
  found, left = {}, list(rest)
  while left:
    flag = left.pop(0)
    if not flag.startswith("-"):
      raise ValueError(f"unexpected argument {flag!r}: flags are written --name=value")
    name, equals, value = flag.lstrip("-").partition("=")
    name = name if name.startswith("config") else name.replace("-", "_")
    if name in SWITCHES and not equals:
      equals, value = "=", "true"
    elif name.removeprefix("no") in SWITCHES and not equals:
      name, equals, value = name.removeprefix("no"), "=", "false"
    if not equals and not left:
      raise ValueError(f"--{name} lacks its value")
    found[name] = value if equals else left.pop(0)
  return found


def close_to(name: str, names: list[str]) -> str:
  close = difflib.get_close_matches(name, names, 1)
  return f"; did you mean --{close[0]}?" if close else ""


def required(values: flags.FlagValues, name: str) -> str:
  if not values[name].value:
    raise ValueError(f"--{name} is missing")
  return values[name].value


def folders(rest: list[str], values: flags.FlagValues | None = None) -> list[Any]:
  """The folders that a command line names, here or in buckets, with its flags taken by `values`.

  ValueError if there are none.
  """
  from etils import epath

  from vdt import files

  values = flags.FlagValues() if values is None else values
  if any(flag.lstrip("-") in ("help", "h") for flag in rest):
    print("  DIR ...: folders of sweeps, or workdirs of runs")
    print(values.get_help())
    sys.exit(0)
  named = [epath.Path(each) if files.remote(each) else pathlib.Path(each) for each in values(["vdt", *rest])[1:]]
  if not named or (missing := [str(each) for each in named if not each.is_dir()]):
    raise ValueError(f"no folder {missing[0]}" if named else "name a folder: that of a sweep, or a run's workdir")
  return named
