"""A config and a pod slice: does it fit, and what will it cost? Compiled ahead of time: no TPU is needed."""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import tqdm
from jax.sharding import NamedSharding

from vdt import checkpoint, conditions, distributed, sharding, topology
from vdt.compiled import PEAK, Refused, TooLarge, program
from vdt.config import Config
from vdt.distributed import CHUNK
from vdt.sample import make
from vdt.topology import GIB, Slice
from vdt.train import make_update

STATE = ("params", "ema", "opt", "averages")


def plan(config: Config, name: str, slices: int = 1, sampling: bool = True) -> dict[str, Any]:
  """What training `config`, and `sampling` from it, takes on `slices` slices named `name`, as JSON-able data.

  Bytes and FLOPs are of one chip and one step unless named otherwise; programs are compiled once (`vdt.compiled`).
  least_bytes: what a step must move at least, the state read and written once, and for each micro-batch the weights
  read three times in bfloat16 and what is kept for the backward pass written and read. least_unfused_bytes: at least
  where every matrix product and kernel reads what it takes from HBM and writes what it makes there, beside the state.
  Where batches have several shapes, all of them are to fit: `train`, `memory` and the least bytes are of the first one,
  `buckets` of the others, and the rest is a step's mean. TooLarge with what to change if it does not fit; ValueError
  for a config or a slice that cannot be.
  """
  where = topology.describe(name, slices)
  config.check()
  mesh, model = config.layout(where.devices)
  where = where._replace(devices=list(mesh.devices.flat))  # collectives name them by their place in the mesh
  options = topology.options(config.xla, where.devices[0])
  shapes, programs = config.data.shapes(), []
  for shape in shapes:
    state, step = lowered_step(config, mesh, config.model.build(shape.frames, shape.size, dict(mesh.shape)), shape)
    held = {kind: sum(map(shard_bytes, jax.tree.leaves(getattr(state, kind)))) for kind in STATE}
    try:
      programs.append(program(step, where, name, slices, options))
    except TooLarge as error:
      said = refusal(config, shape, error, float(sum(held.values())), mesh, name)
      raise TooLarge(said, error.used, error.there) from None

  chips, chip, train = len(mesh.devices.flat), where.chip, programs[0]
  mean = lambda values: sum(shape.share * value for shape, value in zip(shapes, values))
  forwards = [config.model.flops_by_part(shape.frames, shape.size) for shape in shapes]
  model_flops = {
    part: 3 * mean(shape.batch_size * each[part] for shape, each in zip(shapes, forwards)) for part in forwards[0]
  }
  seconds = mean(each["seconds"] for each in programs)
  hours = config.steps * seconds / 3600
  count_parameters, micro = parameters(config), config.micro_batches
  least = 2 * sum(held.values()) + micro * (3 * 2 * count_parameters / mesh.shape["tensor"] + 2 * train["activations"])
  found = {
    "topology": name,
    "slices": slices,
    "chips": chips,
    "mesh": dict(mesh.shape),
    "batch": shapes[0].batch_size,
    "micro_batches": config.micro_batches,
    "remat": config.model.remat,
    "xla": options,
    "parameters": count_parameters,
    "memory": {
      **held,
      "batch": train["arguments"] - sum(held.values()),
      "activations": train["activations"],
      "temporaries": train["peak"] - train["arguments"] - train["activations"],
      "peak": train["peak"],
      "chip": chip.hbm,
      "host": train["host"],
    },
    "model_flops": model_flops,
    "hardware_flops": mean(each["flops"] for each in programs) * chips,
    "train": train,
    "buckets": [
      {**shape._asdict(), **{key: each[key] for key in ("seconds", "peak", "flops", "bytes")}}
      for shape, each in zip(shapes[1:], programs[1:])
    ],
    "least_bytes": least,
    "least_unfused_bytes": 2 * sum(held.values()) + train["operands"],
    "step_seconds": seconds,
    "mfu": sum(model_flops.values()) / (chips * chip.peak * seconds),
    "chip_hours": hours * chips,
    "days": hours / 24,
    "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
  }
  if sampling:
    lowered, made = lowered_sampling(config, mesh, model, state.ema)
    try:
      sample = program(lowered, where, name, slices)
    except TooLarge as error:
      raise TooLarge(
        f"sampling {made} videos does not fit {name}: a chip has {error.there / GIB:.2f} GiB, its temporaries "
        f"need {error.used / GIB:.2f}; raise mesh.fsdp ({mesh.shape['fsdp']}), or take chips with more memory",
        error.used,
        error.there,
      ) from None
    evaluations = sample["flops"] * chips / (made * sum(forwards[0].values()))
    found["sample"] = {**sample, "videos": made, "evaluations": evaluations}
  return found


def lowered_step(
  config: Config, mesh: jax.sharding.Mesh, model: Any, shape: Any = None
) -> tuple[checkpoint.State, Any]:
  """The state's shapes and places, and the training step of batches of a `shape` (default: the first that the data
  have), traced for `mesh`."""
  optimizer = config.optimizer.build()
  new_state = partial(checkpoint.new_state, model, optimizer, len(config.averages))
  state = sharding.place(jax.eval_shape(new_state, jax.random.key(0)), mesh)
  placed = jax.tree.map(lambda leaf: leaf.sharding, state)
  update = make_update(config, model, optimizer, jax.random.key(config.seed))
  shape = shape or config.data.shapes()[0]
  count, video = shape.batch_size, (shape.frames, *shape.size, config.model.channels)
  cond = {name: rows(mesh, count, *row) for name, row in conditions.shapes(config, shape.frames).items()}
  stop = jax.ShapeDtypeStruct((mesh.size,), "int32", sharding=NamedSharding(mesh, sharding.P(mesh.axis_names)))
  latents = any(hasattr(part, "standard") for part in getattr(config.data, "parts", [config.data]))
  kind = "bfloat16" if latents else "uint8"
  batch = {"video": rows(mesh, count, video, kind), "cond": cond, "stop": stop}
  with jax.set_mesh(mesh):
    return state, jax.jit(update, donate_argnums=0, out_shardings=(placed, None)).lower(state, batch)


def lowered_sampling(config: Config, mesh: jax.sharding.Mesh, model: Any, params: Any) -> tuple[Any, int]:
  """The sampling of one chunk of videos, traced for `mesh`, and how many those are."""
  with jax.set_mesh(mesh):
    made = distributed.rows(CHUNK)
    video = (config.data.frames, *config.data.size, config.model.channels)
    cond = {name: rows(mesh, made, *row) for name, row in conditions.shapes(config).items()}
    cond["given"] = rows(mesh, made, (*video[:-1], 1), "float32")
    cond["null"] = {name: rows(mesh, made, (), bool) for name in config.model.conditions}
    inputs = (rows(mesh, made, (2,), "uint32"), rows(mesh, made, video, "float32"), cond)
    return make.lower(model.apply, config.diffusion, config.sampler, True, params, *inputs), made


def rows(mesh: jax.sharding.Mesh, count: int, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
  """An array of `count` rows that lie as a batch does."""
  return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=NamedSharding(mesh, sharding.BATCH))


def shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """What a device holds of an array, without the padding of tiles."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def refusal(config: Config, shape: Any, error: TooLarge, state: float, mesh: jax.sharding.Mesh, name: str) -> str:
  """What a config that does not fit is told: the numbers, and what to change."""
  levers = []
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  if state > 0.5 * error.there and mesh.shape["data"] > 1:
    levers.append(f"raise mesh.fsdp ({mesh.shape['fsdp']}), over which the state lies")
  if config.model.remat != "full":
    less = '"dots" or "full"' if config.model.remat == "dots+params" else '"full"'
    levers.append(f'set model.remat to {less} (it is "{config.model.remat}")')
  if shape.batch_size // parts > config.micro_batches:
    levers.append(f"raise micro_batches ({config.micro_batches}) to as much as {shape.batch_size // parts}")
  elif shape.batch_size > parts:
    levers.append(f"lower data.batch_size ({shape.batch_size})")
  levers.append("take more chips, or chips with more memory")
  return (
    f"does not fit {name}: a chip has {error.there / GIB:.2f} GiB, "
    f"{'all of it needs' if str(error) == PEAK else 'its temporaries need'} {error.used / GIB:.2f}, "
    f"{'with' if str(error) == PEAK else 'beside'} a state of {state / GIB:.2f} (mesh {dict(mesh.shape)}, batch "
    f"{shape.batch_size}); {', or '.join(levers)}"
  )


def table(found: dict[str, Any]) -> str:
  """A plan as text."""
  gib = lambda value: f"{value / GIB:.2f} GiB"
  memory, train, sample = found["memory"], found["train"], found["sample"]
  chips, steps = found["chips"], found["step_seconds"]
  total = sum(found["model_flops"].values())
  share = {part: f"{part} {100 * value / total:.0f} %" for part, value in found["model_flops"].items()}
  bound = ", ".join(
    f"{name} {100 * value / train['seconds']:.1f} %"
    for name, value in sorted(train["bound"].items(), key=lambda item: -item[1])
  )
  lines = [
    ("slice", f"{found['slices']} x {found['topology']}, {chips} chips; mesh {found['mesh']}"),
    ("batch", f"{found['batch']} clips, {found['micro_batches']} micro-batches, remat {found['remat']}"),
    *(("the compiler's option", f"{name}={value}") for name, value in found["xla"].items()),
    *(
      (
        f"of {100 * each['share']:.0f} % of steps",
        f"{each['batch_size']} clips of {each['frames']} x {' x '.join(map(str, each['size']))}, "
        f"{1e3 * each['seconds']:.1f} ms, peak {gib(each['peak'])}",
      )
      for each in found["buckets"]
    ),
    ("parameters", f"{found['parameters'] / 1e6:,.1f} M"),
    *(
      (f"HBM a chip: {name}", gib(memory[name]))
      for name in (*STATE, "batch", "activations", "temporaries")
      if memory[name]
    ),
    ("HBM a chip: peak", f"{gib(memory['peak'])} of {gib(memory['chip'])}"),
    *([("the host's memory a chip", gib(memory["host"]))] if memory["host"] else []),
    ("model FLOPs a step", f"{total:.3e} ({', '.join(share.values())})"),
    ("hardware FLOPs a step", f"{found['hardware_flops']:.3e}, {found['hardware_flops'] / total:.2f} of the model's"),
    *(
      (
        f"{each['kind']} over {each['network'].upper()}",
        f"{each['count']:.0f} a step, {each['bytes'] / 1e6:,.1f} MB a chip, {1e3 * each['seconds']:.2f} ms, of which "
        f"{1e3 * each['exposed']:.2f} exposed",
      )
      for each in train["collectives"]
    ),
    ("step, estimated", f"{1e3 * train['seconds']:.1f} ms: {bound}"),
    (
      "HBM traffic a step",
      f"{train['bytes'] / 1e9:.1f} GB a chip, {train['bytes'] / found['least_bytes']:.1f} of the least, "
      f"{train['bytes'] / found['least_unfused_bytes']:.2f} of what the products take and make",
    ),
    *([("a step of all shapes", f"{1e3 * steps:.1f} ms, the mean")] if found["buckets"] else []),
    ("MFU, estimated", f"{100 * found['mfu']:.1f} %"),
    ("the run, estimated", f"{found['chip_hours']:,.0f} chip-hours, {found['days']:.1f} days"),
    ("sampling, estimated", f"{sample['videos']} videos in {sample['seconds']:.2f} s, {gib(sample['peak'])} a chip"),
  ]
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:{width}}  {value}" for name, value in lines)


def search(config: Config, name: str, slices: int, limit: int) -> list[tuple[Config, dict[str, Any]]]:
  """Plans of training on `limit` meshes, remats and micro-batches, those that fit, the fastest first.

  They are tried in the order of what they compute twice and move, as far as their state and activations, by a rough
  count, have room; the compiler has the last word.
  """
  if not hasattr(config.model, "depth"):
    raise ValueError("--search tries what a transformer's remat and mesh may be: plan an autoencoder without it")
  where = topology.describe(name, slices)
  powers = lambda most: [2**i for i in range(int(math.log2(most)) + 1)]
  degrees = itertools.product(powers(len(where.devices) // slices), powers(8), powers(8), powers(64), REMAT)
  ranked, size = [], parameters(config)
  for fsdp, sequence, tensor, micro, remat in degrees:
    mesh = dataclasses.replace(config.mesh, data=-1, fsdp=fsdp, sequence=sequence, tensor=tensor)
    model = dataclasses.replace(config.model, remat=remat)
    each = dataclasses.replace(config, mesh=mesh, model=model, micro_batches=micro)
    twice, kept, weights = REMAT[remat]
    parts = len(where.devices) / (sequence * tensor)
    if remat == "dots+params" and fsdp == 1:
      continue  # there is nothing to gather
    if fsdp * sequence * tensor * slices > len(where.devices) or config.data.batch_size % (parts * micro):
      continue
    tokens = math.prod(model.cells(config.data.frames, config.data.size)) * config.data.batch_size / micro
    room = 20 * size / (fsdp * tensor) + weights * size / tensor
    room += 2 * kept * tokens * model.depth * model.width / len(where.devices)
    if room < 0.9 * where.chip.hbm and valid(each, where):
      moved = 0.02 * math.log2(micro) + (0.01 if remat == "dots+params" else 0.02) * math.log2(fsdp)
      moved += 0.05 * math.log2(sequence) + 0.1 * math.log2(tensor)
      ranked.append((twice + moved, len(ranked), each))
  found = []
  for _, _, each in tqdm.tqdm(sorted(ranked)[:limit], unit="plan", file=sys.stderr):
    with contextlib.suppress(TooLarge, Refused):
      found.append((each, plan(each, name, slices, sampling=False)))
  return sorted(found, key=lambda pair: pair[1]["step_seconds"])


def valid(config: Config, where: Slice) -> bool:
  """Whether a config can be laid out on a slice at all."""
  try:
    config.layout(where.devices)
  except ValueError:
    return False
  return True


REMAT = {"none": (1.0, 40, 0), "dots+params": (1.05, 16, 2), "dots": (1.05, 16, 0), "full": (1.33, 2, 0)}
"""For `search`: work relative to none, values of a token's width that a block keeps, and bytes of each weight, by a
rough count. "offload" is not tried: what "dots" keeps is longer on its way to the host and back than "full" takes to
compute it again."""


def parameters(config: Config) -> int:
  """How many numbers the model of `config` has."""
  model = config.model.build(config.data.frames, tuple(config.data.size), {})
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))


def run(config: Config, name: str, slices: int, json_path: str | None, limit: int | None) -> None:
  """`vdt plan`: prints the plan, or the ranked ones of a search, and writes it as JSON."""
  if json_path and not Path(json_path).parent.is_dir():
    raise ValueError(f"--json {json_path}: there is no folder {Path(json_path).parent}")
  if json_path and Path(json_path).is_dir():
    raise ValueError(f"--json {json_path} is a folder: name a file")
  if limit:
    pairs = search(config, name, slices, limit)
    if not pairs:
      raise ValueError(f"none of {limit} plans fits {slices} x {name}: search more, or take more or larger chips")
    for each, planned in pairs:
      axes = " ".join(f"--config.mesh.{axis}={size}" for axis, size in planned["mesh"].items())
      flags = f"{axes} --config.model.remat={each.model.remat} --config.micro_batches={each.micro_batches}"
      print(f"{1e3 * planned['step_seconds']:9.1f} ms  MFU {100 * planned['mfu']:5.1f} %  {flags}")
    found = [planned for _, planned in pairs]
  else:
    print(f"compiling for {slices} x {name}: minutes for a large model, seconds the second time", file=sys.stderr)
    found = plan(config, name, slices)
    print(table(found))
  if json_path:
    Path(json_path).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  from vdt import cli

  cli.main(["plan", *sys.argv[1:]])
