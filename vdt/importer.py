"""Weights from elsewhere to a run that `vdt sample`, `vdt evaluate` and `vdt train --config.init_from` take."""

import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vdt import parity, torch_file, weights, workdirs
from vdt.checkpoint import Checkpointer, State, shapes
from vdt.config import Config
from vdt.sharding import path_name

PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before the names."""


def run(config: Config, origin: list[str], source: str, workdir: str, which: str, check: bool) -> None:
  """`vdt import`: the weights in `source`, as step 0 of a new run in `workdir`, which holds nothing else.

  source: a .pt of Latte's or VDT's, a .safetensors in any layout of `weights`, or a folder that holds one, such as
  diffusers'. which: of a .pt's "ema" and "model". Doing it again changes nothing. ValueError where the file is not of
  the config's model, where it is damaged, or where `workdir` holds another run; nothing is written then.
  """
  path = pathlib.Path(source)
  theirs, layout = open_weights(path, which)
  config.check()
  cells = config.model.cells(config.data.frames, tuple(config.data.size))
  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  if layout == "diffusers" and (path / "config.json").exists():
    compare(json.loads((path / "config.json").read_text()), config, path)
  arrays = weights.adopt(layout, config.model, cells, shapes(like), theirs, source)
  if workdirs_hold(workdir, arrays):
    print(f"{workdir} holds these weights already")
    return
  with workdirs.claim(workdir, config, origin), Checkpointer(workdir) as checkpoints:
    checkpoints.save(State(None, parity.tree(like, arrays), None, jnp.zeros((), jnp.int32)), {}, wait=True)
  if check:
    print(parity.report(layout, config, path), file=sys.stderr)
  print(f"{sum(array.size for array in arrays.values()):,} parameters of {source} ({layout}): {workdir}")


def workdirs_hold(workdir: str, arrays: dict[str, np.ndarray]) -> bool:
  """Whether `workdir` holds these weights. ValueError if it holds other ones, or a run."""
  if not (epath.Path(workdir) / "checkpoints").exists():
    return False
  with Checkpointer(workdir, create=False) as checkpoints:
    if checkpoints.newest is None:
      return False
    found = checkpoints.arrays(checkpoints.newest)
    held = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found["ema"])}
    same = held.keys() == arrays.keys() and all(np.array_equal(held[path], arrays[path]) for path in held)
    if "params" in found or not same:
      raise ValueError(f"{workdir} holds another run, at step {checkpoints.newest}: name another --workdir")
  return True


def open_weights(path: pathlib.Path, which: str) -> tuple[Mapping[str, np.ndarray], str]:
  """The arrays in a file or folder by their names, and their layout. FileNotFoundError; ValueError for what is none."""
  if path.is_dir():
    files = sorted(path.glob("*.safetensors")) or sorted((path / "transformer").glob("*.safetensors"))
    if not files:
      raise FileNotFoundError(f"no .safetensors in {path}: name a file, or a folder that holds one")
    theirs: Mapping[str, np.ndarray] = weights.Tensors(*files)
  elif not path.exists():
    raise FileNotFoundError(f"no file or folder {path}")
  elif path.suffix == ".safetensors":
    theirs = weights.Tensors(path)
  elif path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
    theirs = chosen(torch_file.read(path), which, path)
  else:
    raise ValueError(f"{path}: weights come in .safetensors, .pt, or a folder; what is {path.suffix or 'this'}?")
  return theirs, weights.guess(list(theirs))


def chosen(content: dict[str, Any], which: str, path: pathlib.Path) -> dict[str, np.ndarray]:
  """The state dict of a .pt, which holds it alone or by a name, without what wrappers put before its keys."""
  inside = {name: part for name, part in content.items() if isinstance(part, dict) and name != "args"}
  if inside and not any(isinstance(value, np.ndarray) for value in content.values()):
    named = which or next((name for name in ("ema", "model", "state_dict") if name in inside), "")
    if named not in inside:
      raise ValueError(f"{path} holds {', '.join(inside)}, not {named or 'ema or model'}: choose one with --weights")
    content = inside[named]
  elif which:
    raise ValueError(f"{path} holds one set of weights alone: leave out --weights")
  tensors = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
  for prefix in PREFIXES:
    if tensors and all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
  return tensors


def compare(theirs: dict[str, Any], config: Config, path: pathlib.Path) -> None:
  """ValueError naming what config.json of a diffusers folder says otherwise than the model does, heads for one."""
  ours = parity.diffusers_config(config)
  wrong = [
    f"{name} {theirs[name]!r}, here {value!r}"
    for name, value in ours.items()
    if name in theirs and theirs[name] != value
  ]
  if wrong:
    raise ValueError(f"{path / 'config.json'} is of another model: {'; '.join(wrong)}")
