"""Weights from elsewhere to a run that `vdt sample`, `vdt evaluate` and `vdt train --config.init_from` take."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vdt import parity, torch_file, weights, workdirs
from vdt.checkpoint import Checkpointer, State, shapes
from vdt.config import Config, differences, filled, to_dict
from vdt.sharding import path_name

CARD = "card.json"
"""What `vdt export` puts beside the weights."""


class Source(NamedTuple):
  """Opened weights: arrays by their names, the layout of these, the files they are in, and what was chosen of these."""

  arrays: Mapping[str, np.ndarray]
  layout: str
  files: list[pathlib.Path]
  which: str = ""


def run(config: Config, origin: list[str], source: str, workdir: str, which: str, check: bool) -> None:
  """`vdt import`: the weights in `source`, as step 0 of a new run in `workdir`, which holds nothing else.

  source: a .pt of Latte's or VDT's, a .safetensors in any layout of `weights`, or a folder that holds one, such as
  diffusers', or that `vdt export` wrote. which: of a .pt's "ema" and "model". Doing it again changes nothing.
  ValueError where the file is not of the config's model, where it is damaged, where the other side disagrees, or where
  `workdir` holds another run; nothing is written then.
  """
  opened = open_weights(pathlib.Path(source), which)
  config.check()
  compare(opened, config)
  cells = config.model.cells(config.data.frames, tuple(config.data.size))
  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  arrays = weights.adopt(opened.layout, config.model, cells, shapes(like), opened.arrays, source)
  if holds(workdir, config, arrays):
    print(f"{workdir} holds these weights already")
    return
  if check:
    print(parity.report(opened.layout, config, arrays, opened.arrays), file=sys.stderr)
  root = opened.files[0].parent
  files = {str(path.relative_to(root)): digest(path) for path in opened.files}
  imported = {"files": files, "layout": opened.layout}
  with workdirs.claim(workdir, config, origin, imported={**imported, "weights": opened.which}):
    with workdirs.one_line(workdir), Checkpointer(workdir) as checkpoints:
      checkpoints.save(State(None, parity.tree(like, arrays), None, jnp.zeros((), jnp.int32)), {}, wait=True)
  print(f"{sum(array.size for array in arrays.values()):,} parameters of {source} ({opened.layout}): {workdir}")


def holds(workdir: str, config: Config, arrays: dict[str, np.ndarray]) -> bool:
  """Whether `workdir` holds these weights, of this config. ValueError if it holds other ones, or a run."""
  if not (epath.Path(workdir) / "checkpoints").exists():
    return False
  with Checkpointer(workdir, create=False) as checkpoints:
    if checkpoints.newest is None:
      return False
    workdirs.refuse_another(workdir, config)
    found = checkpoints.arrays(checkpoints.newest)
    held = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found["ema"])}
    same = held.keys() == arrays.keys() and all(np.array_equal(held[path], arrays[path]) for path in held)
    if "params" in found or not same:
      raise ValueError(f"{workdir} holds another run, at step {checkpoints.newest}: name another --workdir")
  return True


def open_weights(path: pathlib.Path, which: str) -> Source:
  """What is in a file or folder. FileNotFoundError; ValueError for what is none."""
  if not path.exists():
    raise FileNotFoundError(f"no file or folder {path}")
  if which and path.suffix not in TORCH:
    raise ValueError(f"--weights {which} chooses of a .pt, {path} holds one set of weights alone: leave it out")
  if path.is_dir() and (path / "params").is_dir():
    files, arrays = sorted(each for each in (path / "params").iterdir() if each.is_file()), orbax(path / "params")
  elif path.is_dir():
    if (path / "sampler.stablehlo").exists():
      raise ValueError(f"{path} holds programs, not weights to train on: export the run as safetensors for that")
    files = sorted(path.glob("*.safetensors")) or sorted((path / "transformer").glob("*.safetensors"))
    if not files:
      raise FileNotFoundError(f"no .safetensors in {path}: name a file, or a folder that holds one")
    arrays = weights.Tensors(*files)
  elif path.suffix == ".safetensors":
    files, arrays = [path], weights.Tensors(path)
  elif path.suffix in TORCH:
    files, (arrays, which) = [path], chosen(torch_file.read(path), which, path)
  else:
    raise ValueError(f"{path}: weights come in .safetensors, .pt, or a folder; what is {path.suffix or 'this'}?")
  if not arrays:
    raise ValueError(f"{path} holds no arrays")
  return Source(arrays, weights.guess(list(arrays)), files, which)


TORCH = (".pt", ".pth", ".bin", ".ckpt")


def orbax(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of an Orbax folder, by the names that the plain layout has. ValueError if it cannot be read."""
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      if not (metadata := checkpointer.metadata(folder.absolute()).item_metadata):
        raise ValueError("its metadata is missing or damaged")
      saved = metadata.tree
      how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
      tree = checkpointer.restore(folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=how))
  except Exception as error:  # whatever Orbax raises
    raise ValueError(f"{folder} cannot be read ({' '.join(str(error).split())[:200]}): copy it again") from error
  return {path_name(path).replace("/", "."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def chosen(content: dict[Any, Any], which: str, path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
  """The state dict of a .pt, which holds it alone or by a name, by its `bare` names; and that name."""
  is_tensor = lambda key, value: isinstance(key, str) and isinstance(value, np.ndarray)
  tensors = lambda part: {key: value for key, value in part.items() if is_tensor(key, value)}
  inside = {name: found for name, part in content.items() if isinstance(part, dict) and (found := tensors(part))}
  if inside:
    which = which or next(name for name in ("ema", "model", "state_dict", *inside) if name in inside)
    if which not in inside:
      raise ValueError(f"{path} holds {', '.join(map(str, inside))}, not {which}: choose one with --weights")
    content = inside[which]
  elif which:
    raise ValueError(f"{path} holds one set of weights alone: leave out --weights")
  content = tensors(content)
  return {name: content[whole] for name, whole in weights.bare(content).items()}, which


def compare(opened: Source, config: Config) -> None:
  """ValueError naming what is said beside the weights otherwise than the config does: heads, which shapes do not show.

  diffusers' config.json lies beside; our own exports hold the config, of which the model and the diffusion count, but
  not how they are computed.
  """
  beside = opened.files[0].with_name("config.json")
  wrong = []
  if opened.layout == "diffusers" and beside.exists():
    theirs, source = parsed(beside.read_bytes(), beside), beside
    ours = parity.diffusers_config(config)
    wrong = [
      f"{name} {theirs[name]!r}, here {value!r}"
      for name, value in ours.items()
      if name in theirs and name != "_class_name" and theirs[name] != value
    ]
  elif stored := own_config(opened):
    source = opened.files[0]
    for name in ("model", "diffusion"):
      part = getattr(config, name)
      old = filled(stored.get(name) or {}, part)
      for field, (before, now) in differences(old, json.loads(json.dumps(to_dict(part))), f"{name}.").items():
        if field not in ("model.remat", "model.scan", "model.dtype", "diffusion.spacing"):
          wrong.append(f"{field} {before!r}, here {now!r}")
  if wrong:
    raise ValueError(f"{source} is of another model: {'; '.join(wrong)}")


def own_config(opened: Source) -> dict[str, Any]:
  """The config that an export of ours says it is of, in its metadata or its card; empty where there is none."""
  if isinstance(opened.arrays, weights.Tensors) and (text := opened.arrays.metadata.get("vdt")):
    return parsed(text, opened.files[0])
  inside = opened.files[0].parent.name == "params"  # Orbax's folder
  for card in [opened.files[0].parent.with_name(CARD) if inside else opened.files[0].with_name(CARD)]:
    if card.exists() and isinstance(found := parsed(card.read_bytes(), card).get("config"), dict):
      return found
  return {}


def parsed(text: str | bytes, path: pathlib.Path) -> dict[str, Any]:
  """A JSON object. ValueError that names the file."""
  try:
    found = json.loads(text)
  except ValueError as error:
    raise ValueError(f"{path} is damaged ({error})") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} is damaged (it holds no object)")
  return found


def digest(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
