"""A run describes itself: config.json in its workdir, from which later programs find the experiment again."""

import contextlib
import fcntl
import hashlib
import json
import pathlib
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
from etils import epath

from vdt import distributed
from vdt.config import Config, differences, filled, resumable, to_dict
from vdt.files import remote, rewrite

PACKAGES = ("vdt", "data_pipelines")


def source_hash() -> str:
  """A hash of the imported `vdt` and `data_pipelines` sources."""
  digest = hashlib.sha256()
  for name in PACKAGES:
    if name in sys.modules:
      for path in sorted(pathlib.Path(sys.modules[name].__path__[0]).rglob("*.py")):
        digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def environment() -> dict[str, str]:
  """Versions, devices and sources: what a figure must be read with."""
  devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} processes"
  versions = {name: metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
  return {"python": platform.python_version(), **versions, "devices": devices, "sources": source_hash()}


@contextlib.contextmanager
def claim(workdir: str, config: Config, origin: list[str] | None, **more: Any) -> Iterator[None]:
  """Makes `workdir` this run's, as long as it lasts, and writes config.json; `origin` is the flags of its experiment.

  more: what config.json says beside: "data", the data set's fingerprint, or "imported", where the weights are from.

  A workdir that another run is in, or that holds checkpoints of another one, or of another data set, is refused
  (ValueError), so is one that cannot be written (OSError). Going on with other sources than those it was begun with
  is told on stderr. A bucket (gs://...) cannot be locked, and is not.
  """
  path, now = epath.Path(workdir), environment()
  with contextlib.ExitStack() as held:
    try:
      path.mkdir(parents=True, exist_ok=True)
      if distributed.first() and not remote(workdir):
        fcntl.flock(held.enter_context(open(path / ".lock", "w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
      if (path / "config.json").exists() and (steps := saved(path)):
        refuse_another(workdir, config)
        if (data := read(workdir)["data"]) and more.get("data") and data != more["data"]:
          raise ValueError(
            f"{workdir} was trained on a data set {data}, now there is {more['data']}: put the other back, "
            f"or name another --workdir"
          )
        if max(steps) > config.steps:
          raise ValueError(f"{workdir} is at step {max(steps)}, past steps = {config.steps}: raise it")
        before = read(workdir)["environment"]
        if before.get("sources") != now["sources"] and distributed.first():
          print(f"{workdir} was made by sources {before.get('sources')}, these are {now['sources']}", file=sys.stderr)
      distributed.barrier("config.json is read")
      if distributed.first():
        content = {"origin": origin or [], "config": to_dict(config), "environment": now, **more}
        rewrite(path / "config.json", json.dumps(content, indent=2))
    except BlockingIOError:
      raise ValueError(f"another process trains in {workdir}: wait for it, or name another --workdir") from None
    except OSError as error:
      reason = error.strerror or error
      raise OSError(f"workdir {workdir} cannot be written ({reason}): name another --workdir") from error
    yield


@contextlib.contextmanager
def one_line(path: Any) -> Iterator[None]:
  """Turns whatever Orbax raises inside, while it writes to `path`, into one OSError of a line."""
  try:
    yield
  except Exception as error:
    reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    raise OSError(f"{path} cannot be written ({reason[:200]}): is the disk full?") from error


def absolute(workdir: str) -> epath.Path:
  """As Orbax wants paths; a bucket's (gs://...) is one already, and `resolve` would make a local one of it."""
  return epath.Path(workdir) if remote(workdir) else epath.Path(workdir).resolve()


def file_bytes(path: epath.Path) -> int | None:
  """The size at which one of Orbax's files of arrays is full, and written while the next is filled. An array that is
  larger on a device lies in several. None: as Orbax has it, 400 MiB in a bucket (and 2 GiB on a disk)."""
  return None if remote(str(path)) else 2**25


def saved(path: epath.Path) -> list[int]:
  """The steps of complete checkpoints: Orbax gives one its name, the step, when it is."""
  folder = path / "checkpoints"
  return [int(child.name) for child in folder.iterdir() if child.name.isdigit()] if folder.exists() else []


def exists(workdir: str) -> bool:
  """Whether a run is there."""
  return (epath.Path(workdir) / "config.json").exists()


def busy(workdir: str) -> bool:
  """Whether a process of this machine trains there."""
  path = epath.Path(workdir) / ".lock"
  if not path.exists():
    return False
  with open(path) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


def read(workdir: str) -> dict[str, Any]:
  """What config.json in `workdir` says: "origin", "config", "environment", "data", "imported".

  FileNotFoundError if there is none, ValueError if it is damaged.
  """
  path = epath.Path(workdir) / "config.json"
  if not exists(workdir):
    raise FileNotFoundError(f"{workdir} is no workdir of a run (it has no config.json): name another --workdir")
  try:
    content = json.loads(path.read_text())
    needed = {name: content[name] for name in ("origin", "config", "environment")}
    return {**needed, "data": content.get("data", ""), "imported": content.get("imported")}
  except (json.JSONDecodeError, KeyError) as error:
    raise ValueError(f"{path} is damaged ({error}): restore it, or train in another --workdir") from error


def agree(config: Config, data: bool = True, **asked: Any) -> None:
  """ValueError where the processes of this run do not have one config, one code and, with `data`, one data set, or were
  `asked` different things."""
  if distributed.alone():
    return
  digest = lambda text: hashlib.sha256(text.encode()).hexdigest()[:16]
  fields = {f"config.{name}": value for name, value in to_dict(config).items()} | asked
  told = {name: digest(json.dumps(value, sort_keys=True, default=str)) for name, value in fields.items()}
  told["sources"] = source_hash()
  if data:
    ids = ",".join(config.data.batch(0)["id"].tolist())
    told["data set"] = f"{len(config.data)} clips, {digest(ids)}, {config.data.fingerprint()}"
  distributed.agree(told)


def refuse_another(workdir: str, config: Config) -> None:
  """ValueError naming the fields of `config`, but for RESUMABLE ones, in which the run in `workdir` differs from it."""
  plain = lambda content: json.loads(json.dumps(content))
  changes = differences(plain(filled(read(workdir)["config"], config)), plain(to_dict(config)))
  changes = {name: pair for name, pair in changes.items() if not resumable(name)}
  if changes:
    listed = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changes.items())
    raise ValueError(f"{workdir} holds a run of another config ({listed}): change it back, or name another --workdir")
