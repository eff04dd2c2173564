"""A run's weights to where others can use them: a folder with arrays or a program, and a card that says what it is."""

import fcntl
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jinja2
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vdt import conditions, files, ledger, parity, stablehlo, weights, workdirs
from vdt.averages import Averages
from vdt.checkpoint import Checkpointer, shapes
from vdt.config import Config, to_dict
from vdt.diffusion import Gaussian
from vdt.evaluate import EVALUATION
from vdt.importer import CARD
from vdt.sharding import path_name
from vdt.writer import read_rows

FORMATS = ("safetensors", "orbax", "latte", "vdt", "diffusers", "stablehlo")
FILES = dict.fromkeys(("safetensors", "latte", "vdt"), "model.safetensors")
FILES["diffusers"] = "diffusion_pytorch_model.safetensors"
PAGE = "README.md"
FLUSH = 2**28
"""Bytes after which what is written goes to the disk, so that it is not all left for the end."""


def run(
  config: Config,
  workdir: str,
  format: str,
  out: str | None,
  step: int | None,
  ema: float | None,
  licence: str,
  check: bool,
) -> None:
  """`vdt export`: writes the average weights of a run as a folder, in one step, and prints it.

  out: where (default: WORKDIR/export/FORMAT); an export that is there is replaced. licence: for the card. check: read
  what was written again, and run the other side (`vdt.parity`). ValueError for what the format cannot express, for an
  `out` that is no export, and where the other side disagrees.
  """
  out = out or f"{workdir}/export/{format}"
  if files.remote(out):
    raise ValueError(f"an export is written to a disk, not to {out}: name a local folder with --out, and copy it then")
  folder = pathlib.Path(out).resolve()
  refuse_folder(folder)
  workdirs.refuse_another(workdir, config)
  config.check()
  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  if format in ("latte", "vdt", "diffusers"):
    refuse(format, config)
  start = time.perf_counter()
  with Checkpointer(workdir, create=False) as checkpoints:
    step = checkpoints.there(step)
    if ema is None:
      tree = checkpoints.arrays(step, ("ema",))["ema"]
    else:
      here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like)
      with Averages(workdir, create=False) as averages:
        tree = jax.tree.map(np.asarray, averages.restore(placed, step, ema))
  arrays = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  del tree
  weights.check({path: array.shape for path, array in arrays.items()}, shapes(like), f"{workdir} step {step}")
  print(f"read in {time.perf_counter() - start:.2f} s", file=sys.stderr)
  facts = card(config, workdir, format, step, ema, licence, arrays)
  with replacing(folder) as new:
    start = time.perf_counter()
    WRITERS[format](new, config, like, arrays, facts)
    if format == "stablehlo" and stablehlo.pieces(config):
      (new / conditions.KEPT).write_bytes((epath.Path(workdir) / conditions.KEPT).read_bytes())
    print(f"written in {time.perf_counter() - start:.2f} s", file=sys.stderr)
    facts["files"] = sorted([*(path.name for path in new.iterdir()), CARD, PAGE])
    (new / CARD).write_text(json.dumps(facts, indent=2) + "\n")
    page = jinja2.Environment(loader=jinja2.PackageLoader("vdt"), keep_trailing_newline=True).get_template("card.md.j2")
    (new / PAGE).write_text(page.render(facts, config_text=json.dumps(facts["config"], indent=2)))
    if check:
      held = new
      if format in FILES:
        held = weights.Tensors(new / FILES[format])
        verify(held, *contents(format, config, arrays))
      print(parity.report(format, config, arrays, held), file=sys.stderr)
  print(f"step {step} as {format}: {folder}")


@contextmanager
def replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A new folder beside `folder` that takes its place when all is written; after an error nothing has changed.

  ValueError as `refuse_folder`, or where another process writes there; OSError where it cannot be written.
  """
  refuse_folder(folder)
  new, old, lock = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old", "lock"))
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as held:
      fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
      settle(folder, new, old)
      try:
        new.mkdir()
        yield new
        if folder.exists():
          folder.rename(old)
        new.rename(folder)
      finally:
        settle(folder, new, old)
        lock.unlink(missing_ok=True)
  except BlockingIOError:
    raise ValueError(f"another process exports to {folder}: wait for it, or name another --out") from None
  except OSError as error:
    raise OSError(f"{folder} cannot be written ({error.strerror or error}): name another --out") from error


def refuse_folder(folder: pathlib.Path) -> None:
  """ValueError where `folder` holds anything but an export, as its card says."""
  if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
    return
  if not (folder / CARD).exists():
    raise ValueError(f"{folder} is there, and no export (it has no {CARD}): name another --out")
  try:
    known = json.loads((folder / CARD).read_text())["files"]
  except (ValueError, LookupError, TypeError) as error:
    raise ValueError(f"{folder / CARD} is not of vdt, or damaged: name another --out") from error
  if others := sorted({path.name for path in folder.iterdir()} - {*known}):
    raise ValueError(f"{folder} holds {', '.join(others)} beside an export: move it, or name another --out")


def settle(folder: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
  """What is left of an export that came to no end: `old` goes back to where nothing is, all else away."""
  if old.exists() and not folder.exists():
    old.rename(folder)
  for left in (new, old):
    shutil.rmtree(left, ignore_errors=True)


def card(
  config: Config, workdir: str, format: str, step: int, ema: float | None, licence: str, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
  """What a reader must know of these weights."""
  stored, path = workdirs.read(workdir), epath.Path(workdir) / EVALUATION
  evaluation = None
  if path.exists():
    try:
      found = json.loads(path.read_text())
      if (found["step"], found["ema"]) == (step, ema):  # of these weights
        evaluation = {name: found[name] for name in ("step", "seed", "ema", "tables", "cards")}
    except (ValueError, LookupError, TypeError) as error:
      raise ValueError(f"{path} is damaged ({error}): remove it, or run vdt evaluate again") from error
  experiment = [flag.partition("=")[2] for flag in stored["origin"] if flag.startswith("--config=")]
  average = f"the exponential average of decay {config.ema}" if ema is None else f"the average of relative length {ema}"
  measured = {name: value for row in read_rows(workdir) if row["step"] == step for name, value in row.items()}
  return {
    "format": format,
    "licence": licence,
    "experiment": pathlib.PurePath(*experiment[:1]).name,
    "step": step,
    "weights": "imported" if stored["imported"] else average,
    "imported": stored["imported"],
    "parameters": sum(array.size for array in arrays.values()),
    "data": None if stored["imported"] else {"name": type(config.data).__name__, "fingerprint": stored["data"]},
    "metrics": measured,
    "evaluation": evaluation,
    "ledger": ledger.summary(ledger.read(workdir)),
    "environment": stored["environment"],
    "exported_by": workdirs.environment(),
    "config": to_dict(config),
  }


def refuse(format: str, config: Config) -> None:
  """ValueError naming all that a foreign layout cannot express, of the model and of its diffusion."""
  wrong = weights.refuse(format, config.model)
  if not isinstance(config.diffusion, Gaussian):
    wrong.append(f"diffusion {type(config.diffusion).__name__} (it is Gaussian there)")
  else:
    fixed = dict(timesteps=1000, anomaly=0.0)
    if format != "diffusers":  # whose scheduler has a config of its own
      fixed |= dict(prediction="noise", schedule="linear", betas=Gaussian().betas, zero_terminal_snr=False)
    for name, value in fixed.items():
      if (ours := getattr(config.diffusion, name)) != value:
        wrong.append(f"diffusion.{name} {ours!r} (it is {value!r} there)")
  if format == "diffusers" and max(config.data.size) >= 128:
    wrong.append(f"data.size {tuple(config.data.size)} (positions of 128 and more are scaled there)")
  if config.data.size[0] != config.data.size[1]:
    wrong.append(f"data.size {tuple(config.data.size)} (it is square there)")
  if wrong:
    raise ValueError(f"format {format} cannot express {'; '.join(wrong)}: take --format safetensors")


def to_orbax(folder: pathlib.Path, config: Config, like: Any, arrays: dict[str, np.ndarray], facts: dict) -> None:
  tree = jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_name(path)], like)
  with (
    workdirs.one_line(folder),
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer,
  ):
    checkpointer.save((folder / "params").absolute(), args=ocp.args.PyTreeSave(tree))


def contents(format: str, config: Config, arrays: dict[str, np.ndarray]) -> tuple[dict[str, tuple], Callable]:
  """What a safetensors file of a format holds: shapes by name, and what makes an array of a name."""
  if format == "safetensors":
    named = {path.replace("/", "."): array for path, array in arrays.items()}
    return shapes(named), named.__getitem__
  cells = config.model.cells(config.data.frames, tuple(config.data.size))
  computed = weights.tables(format, cells, config.model.width)
  rows = {row.key: row for row in weights.rows(format, config.model, cells)}
  return {key: row.shape for key, row in rows.items()}, lambda key: weights.there(rows[key], arrays, computed)


def to_safetensors(
  format: str, folder: pathlib.Path, config: Config, like: Any, arrays: dict[str, np.ndarray], facts: dict
) -> None:
  metadata = {"format": "pt"} | ({"vdt": json.dumps(facts["config"])} if format == "safetensors" else {})
  write(folder / FILES[format], *contents(format, config, arrays), metadata)


def to_diffusers(folder: pathlib.Path, config: Config, like: Any, arrays: dict[str, np.ndarray], facts: dict) -> None:
  """A folder for `LatteTransformer3DModel.from_pretrained`, and scheduler/ for a scheduler's."""
  to_safetensors("diffusers", folder, config, like, arrays, facts)
  (folder / "config.json").write_text(json.dumps(parity.diffusers_config(config), indent=2) + "\n")
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler(config.diffusion), indent=2) + "\n")


def scheduler(diffusion: Gaussian) -> dict[str, Any]:
  """diffusers' config of a scheduler for a diffusion, by its names."""
  return {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": diffusion.timesteps,
    "beta_schedule": {"cosine": "squaredcos_cap_v2"}.get(diffusion.schedule, diffusion.schedule),
    "beta_start": diffusion.betas[0],
    "beta_end": diffusion.betas[1],
    "prediction_type": {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}[diffusion.prediction],
    "rescale_betas_zero_snr": diffusion.zero_terminal_snr,
    "timestep_spacing": diffusion.spacing,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
  }


def to_stablehlo(folder: pathlib.Path, config: Config, like: Any, arrays: dict[str, np.ndarray], facts: dict) -> None:
  stablehlo.write(folder, config, like)
  with open(folder / "params.npz", "wb") as file:
    np.savez(file, **{path.replace("/", "."): array for path, array in arrays.items()})


def write(
  path: pathlib.Path, wanted: dict[str, tuple[int, ...]], make: Callable[[str], np.ndarray], metadata: dict[str, str]
) -> None:
  """A safetensors file of float32 arrays, made one after the other: the library's own writer holds all of them twice.

  The format is a length, a JSON header and the bytes (github.com/huggingface/safetensors, "Format"). Read back by its
  library it has exactly `wanted`.
  """
  header: dict[str, Any] = {"__metadata__": metadata}
  end = 0
  for key, shape in wanted.items():
    begin, end = end, end + 4 * math.prod(shape)
    header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)

  with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as flusher:
    file.write(len(text).to_bytes(8, "little") + text)
    written, flushed, waiting = writer.submit(bool), flusher.submit(bool), 0
    for key in wanted:  # one is made, the one before written, those before that flushed
      array = np.ascontiguousarray(make(key), "<f4")
      written.result()
      written, waiting = writer.submit(put, file, array), waiting + array.nbytes
      if waiting > FLUSH and flushed.done():
        flushed, waiting = flusher.submit(os.fdatasync, file.fileno()), 0
    written.result()
    os.fsync(file.fileno())


def verify(held: weights.Tensors, wanted: dict[str, tuple[int, ...]], make: Callable[[str], np.ndarray]) -> None:
  """OSError unless a written file holds what it should, bit for bit."""
  for key in wanted:
    if held[key].tobytes() != np.ascontiguousarray(make(key), "<f4").tobytes():
      raise OSError(f"{key} reads back otherwise than it was written")


def put(file: Any, array: np.ndarray) -> None:
  """Writes all of an array, of which a file takes 2 GiB at once at most."""
  left = memoryview(array).cast("B")
  while left:
    left = left[file.write(left) :]


WRITERS: dict[str, Callable] = {
  "safetensors": partial(to_safetensors, "safetensors"),
  "orbax": to_orbax,
  "latte": partial(to_safetensors, "latte"),
  "vdt": partial(to_safetensors, "vdt"),
  "diffusers": to_diffusers,
  "stablehlo": to_stablehlo,
}
