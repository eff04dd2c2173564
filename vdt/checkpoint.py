"""Checkpoints: Orbax saves the whole state in the background; a run starts where the newest complete one ends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vdt import distributed
from vdt.averages import Averages
from vdt.sharding import path_name
from vdt.workdirs import absolute, file_bytes


class State(NamedTuple):
  """All of a run: parameters, their average, the optimizer's state, the number of steps done, and power-function
  averages, if any are kept (`vdt.averages`)."""

  params: Any
  ema: Any
  opt: Any
  step: jax.Array
  averages: tuple = ()

  def fields(self) -> dict[str, Any]:
    """What is saved: those that are there. Imported weights are an average alone, without an optimizer."""
    absent = {name for name, value in self._asdict().items() if value is None} | (
      {"averages"} if not self.averages else set()
    )
    return {name: value for name, value in self._asdict().items() if name not in absent}


def new_state(network: Any, optimizer: Any, averages: int, key: jax.Array) -> State:
  """The state before the first step, with room for so many power-function averages."""
  params = network.init(key)
  return State(params, params, optimizer.init(params), jnp.zeros((), jnp.int32), (params,) * averages)


def donated() -> tuple[int, ...]:
  """The arguments of a training step whose memory its results take: the state's, its first.

  None where a CPU is one device: a save reads arrays where they lie, and a step that was given their memory would copy
  them before it began, and wait. So a state is there twice. Several such devices are for tests.
  """
  return () if jax.default_backend() == "cpu" and jax.device_count() == 1 else (0,)


class NewestAndBest(NamedTuple):
  """Which checkpoints stay, as Orbax asks: the `keep` newest ones, and that which `best` chooses of all steps."""

  keep: int
  best: Callable[[list[int]], int | None]

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    steps = [each.step for each in checkpoints]
    stay = {*steps[-self.keep :], self.best(steps)}
    return [step in stay for step in steps]


class Checkpointer:
  """Checkpoints under `workdir`/checkpoints, the `keep` newest of them, written in the background.

  best: which one of the steps is kept as well, if any. averages: relative lengths of the state's power-function
  averages. Those of every save are kept, and waited for.
  """

  def __init__(
    self,
    workdir: str,
    keep: int = 3,
    create: bool = True,
    averages: tuple[float, ...] = (),
    best: Callable[[list[int]], int | None] = lambda steps: None,
  ):
    self.directory = absolute(workdir) / "checkpoints"
    if not create and not self.directory.exists():
      raise FileNotFoundError(f"no checkpoints at {self.directory}: train there first, or name another --workdir")
    options = ocp.CheckpointManagerOptions(
      preservation_policy=NewestAndBest(keep, best), create=create, cleanup_tmp_directories=create
    )
    arrays = ocp.PyTreeCheckpointHandler(use_compression=False)  # it saved 8 % of the bytes for twice the time
    handlers = {"state": arrays, "ledger": ocp.JsonCheckpointHandler()}
    self.manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
    self.keep = keep
    self.lengths, self.averages = averages, Averages(workdir) if averages else None

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, kind: type | None, *_) -> None:
    shared = kind is None or not issubclass(kind, Exception) or issubclass(kind, FloatingPointError)
    if not shared and not distributed.alone():
      return  # closing waits for the other processes, which know of no error
    self.manager.wait_until_finished()
    self.manager.close()
    if self.averages:
      self.averages.manager.close()

  @property
  def newest(self) -> int | None:
    return self.manager.latest_step()

  def save(self, state: State, ledger: dict[str, float], wait: bool = False) -> None:
    """Saves `state` under its step, and what it took beside it (`vdt.ledger`), unless that is saved already."""
    step = int(state.step)
    if step != self.newest:
      if self.averages:  # one after the other: saves of two managers would meet at one barrier of the processes
        self.manager.wait_until_finished()
        self.averages.save(step, state.averages, self.lengths)
      arrays = ocp.args.PyTreeSave(state.fields(), ocdbt_target_data_file_size=file_bytes(self.directory))
      self.manager.save(step, args=ocp.args.Composite(state=arrays, ledger=ocp.args.JsonSave(ledger)))
    if wait:
      self.manager.wait_until_finished()

  def restore(self, like: State, step: int | None = None) -> State:
    """The state saved at `step` (default: the newest) in the shapes and shardings of `like`.

    ValueError if nothing is there, if it is another model's, if it is weights alone, or if it cannot be read.
    """
    step, target = self.there(step), like.fields()
    with self.reading(step):
      found = self.saved(step)
      if not any(path.startswith("params/") for path in found):
        raise MismatchError(
          f"{self.directory.parent} holds weights alone: train in another --workdir with --config.init_from="
          f"{self.directory.parent}"
        )
      check_same(found, shapes(target), f"checkpoint {step}")
      return State(**self.read(step, target, ocp.checkpoint_utils.construct_restore_args(target)))

  def weights(self, like: Any, step: int | None = None) -> Any:
    """The average weights saved at `step` (default: the newest), in the shapes and shardings of `like`.

    Nothing else is read. ValueError as `restore`.
    """
    step = self.there(step)
    with self.reading(step):
      check_same(self.averaged(step), shapes({"ema": like}), f"checkpoint {step}")
      return self.some_weights(step, like)

  def some_weights(self, step: int, like: Any) -> Any:
    """Of the average weights saved at `step`, those that `like` has."""
    return self.read(step, {"ema": like}, ocp.checkpoint_utils.construct_restore_args({"ema": like}))["ema"]

  def arrays(self, step: int | None = None, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of the state saved at `step` (default: the newest), as they are there, in NumPy; or `only` those."""
    step = self.there(step)
    with self.reading(step):
      saved = self.manager.item_metadata(step)["state"].tree
      saved = {name: tree for name, tree in saved.items() if not only or name in only}
      how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
      return self.read(step, jax.tree.map(lambda _: 0, saved), how)

  def there(self, step: int | None) -> int:
    """`step`, or the newest. ValueError if it is not there."""
    step = self.newest if step is None else step
    steps = sorted(self.manager.all_steps())
    if step is None:
      raise ValueError(f"no checkpoint in {self.directory} yet: train there first, or wait for its first save")
    if step not in steps:
      raise ValueError(f"no checkpoint of step {step} in {self.directory}: there are {steps or 'none'}")
    return step

  def saved(self, step: int) -> dict[str, tuple[int, ...]]:
    """Path to shape of all arrays that are saved at `step`."""
    if "state" not in (items := self.manager.item_metadata(step)):
      raise MismatchError(f"checkpoint {step} is laid out as an older vdt did: go on with that version")
    saved = items["state"]
    if not (found := shapes(saved.tree if hasattr(saved, "tree") else saved)):
      raise ValueError("its metadata is missing")
    return found

  def averaged(self, step: int) -> dict[str, tuple[int, ...]]:
    """`saved`, of the average weights."""
    return {path: shape for path, shape in self.saved(step).items() if path.startswith("ema/")}

  def read(self, step: int, like: Any, how: Any) -> dict[str, Any]:
    """The fields of the state saved at `step` that `like` has; how: Orbax's arguments."""
    args = ocp.args.Composite(state=ocp.args.PyTreeRestore(like, restore_args=how, partial_restore=True))
    return self.manager.restore(step, args=args)["state"]

  def ledger(self, step: int) -> dict[str, float]:
    """What the state saved at `step` had taken (`vdt.ledger`)."""
    return self.manager.restore(step, args=ocp.args.Composite(ledger=ocp.args.JsonRestore()))["ledger"]

  @contextlib.contextmanager
  def reading(self, step: int) -> Iterator[None]:
    """Turns whatever Orbax raises inside into one clear ValueError, but for the loss of another process."""
    try:
      yield
    except MismatchError:
      raise
    except Exception as error:
      if distributed.lost(error):
        raise
      reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
      raise ValueError(
        f"checkpoint {self.directory / str(step)} cannot be read ({reason[:200]}): remove that folder to go on from "
        f"the one before it"
      ) from error

  def restore_or(self, new: Callable[[], State], like: State) -> State:
    """The newest saved state, or a new one."""
    return new() if self.newest is None else self.restore(like)


class MismatchError(ValueError):
  """Two trees of parameters are not of one model."""


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Path to shape of every array in a tree of arrays, or of anything with a shape."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
  return {path_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def check_same(found: dict, wanted: dict, name: str) -> None:
  """MismatchError naming the first array that is missing, left over or of another shape."""
  for path in sorted({*found, *wanted}):
    if found.get(path) != wanted.get(path):
      raise MismatchError(
        f"{name} is not of this model: {path} is {found.get(path, 'absent')} there and {wanted.get(path, 'absent')} "
        f"here; use the config it was trained with, or another --workdir"
      )


def branches(tree: dict, paths: set[str], above: str = "") -> dict:
  """Of nested dicts, those leaves whose path is one of `paths`, and what leads to them."""
  found = {}
  for name, value in tree.items():
    path = f"{above}{name}"
    if isinstance(value, dict):
      value = branches(value, paths, f"{path}/")
    if path in paths or (isinstance(value, dict) and value):
      found[name] = value
  return found


@contextlib.contextmanager
def origin(workdir: str) -> Iterator[tuple[Checkpointer, int]]:
  """The checkpoints of the run that another one starts from, and the newest step. Errors as `init_from`."""
  try:
    with Checkpointer(workdir, create=False) as checkpoints:
      yield checkpoints, checkpoints.there(None)
  except (ValueError, FileNotFoundError) as error:
    reason = str(error).rpartition(": ")[0]
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    raise kind(f"init_from {workdir}: {reason}; name a run that has a whole checkpoint") from error


def init_from(params: Any, workdir: str) -> tuple[Any, str]:
  """`params` with every array that the average weights of the run in `workdir` hold in the same shape, and a report.

  A process reads what its devices hold of these, and nothing else. The report names what matched, what stays new
  (missing there, or of another shape) and what was not used. FileNotFoundError if it is not there; ValueError if
  nothing matches, or it cannot be read. Nothing there is changed.
  """
  ours = shapes(params)
  with origin(workdir) as (checkpoints, step):
    with checkpoints.reading(step):
      theirs = {path.removeprefix("ema/"): shape for path, shape in checkpoints.averaged(step).items()}
      matched = {path for path, shape in ours.items() if theirs.get(path) == shape}
      read = checkpoints.some_weights(step, branches(params, matched)) if matched else {}
  if not matched:
    raise ValueError(f"init_from: no parameter of {workdir} matches this model's")
  other = [path for path in {*ours} & {*theirs} if ours[path] != theirs[path]]
  rows = {
    "matched": [f"{len(matched)} arrays"],
    "missing": sorted({*ours} - {*theirs}),
    "other shape": sorted(f"{path} {theirs[path]} there, {ours[path]} here" for path in other),
    "unused": sorted({*theirs} - {*ours}),
  }
  report = "\n".join(f"  {name}: {', '.join(values) or 'none'}" for name, values in rows.items())
  found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(read)}
  params = jax.tree_util.tree_map_with_path(lambda path, leaf: found.get(path_name(path), leaf), params)
  return params, f"init_from {workdir} step {step}:\n{report}"
