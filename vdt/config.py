"""An experiment's config and the protocols of its parts. Every part builds itself, beside its own code."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType

AXES = ("data", "fsdp", "sequence", "tensor")


@runtime_checkable
class Data(Protocol):
  """Clips by step: a pure function of (seed, step), whatever the number of hosts.

  A batch holds "video" (b f h w c), uint8 pixels or latents of another type, "label" (b,) int32 and "id" (b,) of
  strings, and may hold more: where the model reads, "caption" (b,) of strings, and `captions()` is then a list of all
  of the split, several of one clip as lines of one string, which batches then have as "captions"; where it hears,
  "sound" (b, n) int16; where it is told of the rate, "fps" (b,) float32.

  `made_by` is the fingerprint of the autoencoder whose latents they are, or "" of pixels, and `clips` the same as
  pixels, which it is itself where it holds no latents. `shapes` are those of all batches, with their shares of steps
  (`data_pipelines.reading.Shape`). `clip` reads a user's own file as the clips were read, or at another rate.
  `fingerprint` tells data sets apart, `rule` says how clips are made. `labels` names the classes; `split` may be set by
  `dataclasses.replace`. `data_pipelines.reading.Reader` has most of it for what can be read by position.
  """

  split: str
  frames: int
  size: tuple[int, int]
  batch_size: int

  @property
  def clips(self) -> Any: ...
  def made_by(self) -> str: ...
  def prepare(self) -> None: ...
  def shapes(self) -> list[Any]: ...
  def __len__(self) -> int: ...
  def batch(self, step: int) -> dict[str, np.ndarray]: ...
  def batches(self, start: int, blocks: Sequence[int] = (0,), of: int = 1) -> Iterator[dict[str, np.ndarray]]: ...
  def clip(self, path: str, fps: float | None = None) -> np.ndarray: ...
  def fingerprint(self) -> str: ...
  def rule(self) -> dict[str, Any]: ...
  def labels(self) -> list[str]: ...
  def fps(self) -> float: ...


@runtime_checkable
class Model(Protocol):
  """A network's description: `build` checks it and returns `init`, `apply` and `learn`; `flops` is a forward pass's."""

  patch: tuple[int, int, int]
  channels: int
  classes: int
  text: int
  conditions: tuple[str, ...]

  def build(self, frames: int, size: tuple[int, int], mesh_shape: dict[str, int]) -> Any: ...
  def flops(self, frames: int, size: tuple[int, int]) -> float: ...
  def flops_by_part(self, frames: int, size: tuple[int, int]) -> dict[str, float]: ...


@runtime_checkable
class Text(Protocol):
  """How captions are read: `data_pipelines.tokenizer.Pieces`, or `vdt.captions.Frozen`.

  `check` raises ValueError for a model that does not read so. `make` finds out what a run keeps of it, from the data
  set's `captions()`; `open` takes that, and returns what makes arrays of captions, whose rows have `shapes`.
  """

  def check(self, model: Any) -> None: ...
  def shapes(self, width: int) -> dict[str, tuple[tuple[int, ...], str]]: ...
  def make(self, data: Any) -> bytes: ...
  def open(self, kept: bytes, model: Any) -> Any: ...


@dataclasses.dataclass
class Mesh:
  """Devices along each axis; -1 for `data` takes all that are left. Over several slices, `data` alone spans them."""

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1

  def build(self, devices: list[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of `devices`, by default all there are. ValueError if the axes do not fit them."""
    if min(self.fsdp, self.sequence, self.tensor) < 1 or self.data == 0:
      raise ValueError(f"mesh {dataclasses.asdict(self)}: an axis has at least 1 device, or -1 for data: all the rest")
    devices = jax.devices() if devices is None else devices
    rest = self.fsdp * self.sequence * self.tensor
    data = len(devices) // rest if self.data == -1 else self.data
    if data < 1 or data * rest > len(devices):
      raise ValueError(
        f"mesh {dataclasses.asdict(self)} needs {max(data, 1) * rest} devices, there are {len(devices)}: set its axes "
        f"for these, say --config.mesh.fsdp=1"
      )
    if self.data == -1 and len(devices) % rest:
      raise ValueError(
        f"mesh {dataclasses.asdict(self)}: {len(devices)} devices do not divide by fsdp x sequence x tensor = {rest}"
      )
    count, devices = len(devices), devices[: data * rest]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and data * rest != count:
      raise ValueError(f"mesh {dataclasses.asdict(self)} leaves devices of {slices} slices unused: give them to data")
    if data % slices:
      raise ValueError(
        f"mesh.data {data} does not divide over {slices} slices, whose network carries no other axis: lower fsdp, "
        f"sequence or tensor, or take a multiple"
      )
    inner, outer = (data // slices, self.fsdp, self.sequence, self.tensor), (slices, 1, 1, 1)
    try:
      if slices == 1:
        grid = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
      else:
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError) as error:  # a part of a slice, say
      raise ValueError(f"mesh {dataclasses.asdict(self)} cannot be laid over the links of {count} devices") from error
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


@dataclasses.dataclass
class AdamW:
  """AdamW (arXiv:1711.05101) with linear warm-up over `warmup` steps and clipping of the global gradient norm.

  decay: the step at which the learning rate, falling linearly after the warm-up, is zero; 0 = it stays.
  """

  lr: float = 1e-4
  warmup: int = 1_000
  decay: int = 0
  b1: float = 0.9
  b2: float = 0.99
  weight_decay: float = 0.0
  clip: float = 1.0

  def schedule(self, step: Any) -> Any:
    """The learning rate of a step; the first is already above zero."""
    rising = (step + 1) / max(self.warmup, 1)
    falling = (self.decay - step) / max(self.decay - self.warmup, 1) if self.decay else 1.0
    return self.lr * jax.numpy.clip(jax.numpy.minimum(rising, falling), 0.0, 1.0)

  def build(self) -> optax.GradientTransformation:
    """Updates for a learning rate of 1: the training step multiplies them by `schedule` of its own step."""
    if not (self.lr > 0 and self.clip > 0 and min(self.warmup, self.decay, self.weight_decay) >= 0):
      raise ValueError(f"{self}: lr and clip are above 0, warmup, decay and weight_decay at least 0")
    return optax.chain(optax.clip_by_global_norm(self.clip), self.rule())

  def rule(self) -> optax.GradientTransformation:
    return optax.adamw(1.0, self.b1, self.b2, weight_decay=self.weight_decay)


@dataclasses.dataclass
class Muon(AdamW):
  """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for the matrices of `pattern` and of the encoder of
  text, or of an autoencoder's two halves, AdamW for all else, both with Nesterov momentum.

  A matrix is moved by its momentum with all singular values made one. `scale` is the root mean square of that step
  over `lr` (Equation 4 of arXiv:2502.16982; 0.2 is AdamW's), so the `lr` of an AdamW run is where to start.
  """

  scale: float = 0.2

  def rule(self) -> optax.GradientTransformation:
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)  # a leading axis is depth
    names = lambda path: [str(getattr(key, "key", key)) for key in path]
    inside = lambda path: names(path)[0] in ("pattern", "encoder", "decoder") and names(path)[-1] == "kernel"
    return optax.contrib.muon(
      1.0,
      adam_b1=self.b1,
      adam_b2=self.b2,
      weight_decay=self.weight_decay,
      adam_weight_decay=self.weight_decay,
      consistent_rms=self.scale,
      muon_weight_dimension_numbers=partial(jax.tree.map_with_path, lambda path, _: matrix if inside(path) else None),
    )


@dataclasses.dataclass
class Config:
  """One experiment. `diffusion` and `sampler` are what is trained and what is shown of it, for an autoencoder those of
  `vdt.reconstruction`. `save_every`, `log_every` and evals' `every` are in steps. The `keep`
  newest checkpoints are retained, and that of the least value of `best`, a column of evals made in training, or of the
  greatest of "-COLUMN".

  text: how captions are read (`Text`), None: not at all. sound: how sound is heard (`data_pipelines.sound.LogMel`),
  None: not at all. cond_drop: how often all conditions are dropped in training, and each of several by itself, for
  guidance. ema: the decay of the average weights, warmed up as min(ema, (1 + step) / (10 + step)). averages: relative
  lengths of power-function averages that every save stores for good, from which `--ema` makes one of any length, say
  (0.05, 0.1). micro_batches: the parts in which a batch is worked off, one after the other, to need less memory; noise
  and times stay the batch's. init_from: a workdir whose average weights start this run. freeze: a regular expression,
  of the paths of parameters that stay as they are, say "^(?!.*attention/1/)" for all but each block's second attention.
  autoencoder: where that of the data's latents is, as `vdt.autoencoder.load` takes it; "" of pixels. spike: a step
  whose loss or gradient norm is so many times its median over the last 20 logged steps is recorded with its clips; 0:
  none is. roll_back: after one, the run goes back to its newest regular save and leaves out the steps since. profile:
  "A:B" traces the steps after A, up to B. hang_after: seconds without a finished step after which a process ends
  itself, to be restarted. topology: the pod slice that the experiment is meant for, which `vdt plan` checks it on, say
  "v5e:16x16". xla: the compiler's options for the training step, by chip, as {"v5e": {"xla_...": True}}, with the names
  that they have in LIBTPU_INIT_ARGS.
  """

  steps: int
  data: Data
  model: Model
  diffusion: Any
  tasks: Any
  sampler: Any
  text: Any = None
  sound: Any = None
  optimizer: AdamW = dataclasses.field(default_factory=AdamW)
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  evals: dict[str, Any] = dataclasses.field(default_factory=dict)
  seed: int = 0
  ema: float = 0.9999
  averages: tuple[float, ...] = ()
  cond_drop: float = 0.1
  micro_batches: int = 1
  log_every: int = 50
  save_every: int = 1_000
  keep: int = 3
  best: str = ""
  init_from: str = ""
  freeze: str = ""
  autoencoder: str = ""
  profile: str = ""
  spike: float = 0.0
  roll_back: bool = False
  hang_after: float = 3600.0
  topology: str = ""
  xla: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

  def build(self) -> tuple[jax.sharding.Mesh, Any]:
    """The mesh and the network, with the data made ready. ValueError names a field that cannot be, and what would."""
    self.check()
    self.prepare()
    return self.layout()

  def check(self) -> None:
    """ValueError for fields that cannot be, on whatever devices and data."""
    for part in (self.diffusion, self.tasks, self.sampler, *self.evals.values()):
      dataclasses.replace(part)  # made anew, it checks what was set from the command line
    if self.steps < 1 or self.log_every < 1 or self.save_every < 1 or self.keep < 1:
      raise ValueError("steps, log_every, save_every and keep must be at least 1")
    name, _, column = self.best.removeprefix("-").partition("/")
    if self.best and not (column and name in self.evals and self.evals[name].every):
      made = [name for name, each in self.evals.items() if each.every]
      raise ValueError(
        f"config.best {self.best!r} is of no eval that is made in training, those of which every is above 0: "
        f"{', '.join(made) or 'none'}; name a column of one, say loss/generation/mean"
      )
    if not (0 <= self.cond_drop <= 1 and 0 <= self.ema < 1):
      raise ValueError(f"cond_drop {self.cond_drop} is a share, ema {self.ema} a decay: at least 0, and below 1")
    if not self.hang_after > 0:
      raise ValueError(f"hang_after is {self.hang_after}: seconds, above 0")
    if not (self.spike > 1 or (self.spike == 0 and not self.roll_back)):
      raise ValueError(f"spike is {self.spike}: above 1, say 5; or 0 for none, without roll_back")
    if getattr(self.model, "variance", False) != self.diffusion.variance:
      raise ValueError(
        f"model.variance is {not self.diffusion.variance}, diffusion.variance {self.diffusion.variance}: set both, or "
        f"neither"
      )
    self.sampler.check(self.diffusion)
    conditions = getattr(self.model, "conditions", ())
    if wrong := [name for name, _ in getattr(self.sampler, "guidance", ()) if name not in conditions]:
      raise ValueError(f"sampler.guidance of {wrong[0]!r}: this model has {', '.join(conditions) or 'none'}")
    if not getattr(self.model, "given", True) and self.tasks.completion:
      raise ValueError("tasks.completion with model.given False: nothing would tell the network where the hole is")
    if self.text:
      self.text.check(self.model)
    if self.sound:
      self.sound.check(self.model)
    elif getattr(self.model, "sound", 0):
      raise ValueError(
        f"model.sound is {self.model.sound}, config.sound None: set it, to LogMel() say, or leave out sound in "
        f"model.pattern"
      )
    named = lambda each, kinds: (
      isinstance(each, dict) and all(isinstance(name, str) and isinstance(value, kinds) for name, value in each.items())
    )
    if not (named(self.xla, dict) and all(named(each, (bool, int, float, str)) for each in self.xla.values())):
      raise ValueError(f'config.xla is {self.xla!r}: options by chip, as {{"v5e": {{"xla_...": True}}}}')
    if self.data.batch_size < 1:
      raise ValueError(f"data.batch_size is {self.data.batch_size}: at least 1")
    try:
      re.compile(self.freeze)
    except re.error as error:
      raise ValueError(f"config.freeze {self.freeze!r} is no regular expression: {error}") from None
    if self.profile:
      try:
        first, last = (int(part) for part in self.profile.split(":"))
      except ValueError:
        raise ValueError(f'config.profile is {self.profile!r}: write it as "FIRST:LAST" steps, say 100:103') from None
      if not 0 <= first < last:
        raise ValueError(f"config.profile {self.profile!r} traces no step: FIRST must be less than LAST")
    if 0 < self.optimizer.decay < self.steps:
      raise ValueError(
        f"optimizer.decay {self.optimizer.decay} is less than steps {self.steps}: the rest would train at a rate of 0; "
        f"set both"
      )
    for name, each in self.evals.items():
      if each.every < 0 or each.clips < 1:
        raise ValueError(f"evals.{name} has every {each.every} and {each.clips} clips: at least 0 and 1")

  def prepare(self) -> None:
    """Makes the data ready. ValueError where the evals or the model ask for more than is there."""
    self.data.prepare()
    dataclasses.replace(self.data, split="test").prepare()  # the report shows it
    for part in getattr(self.data, "members", [self.data]):
      self.check_batch(part, part.batch(0))
    for name, each in self.evals.items():
      held_out = dataclasses.replace(self.data, split=each.split)
      held_out.prepare()
      if untold := set(getattr(each, "conditions", ())) - set(self.model.conditions):
        raise ValueError(f"evals.{name} needs a model that is told {', '.join(untold)}: set it in model")
      if hasattr(each, "prepare"):
        each.prepare(held_out.clips)
      sampled, clips = getattr(each, "sampled", True), held_out.clips
      drawn = clips is not held_out and getattr(each, "given_frames", None)
      if each.split == "train" and sampled and (drawn or clips.each() is not clips):
        raise ValueError(
          f"evals.{name} samples by clips of the training split, which mixtures, and where frames are given latents, "
          f"draw otherwise than they are scored by: take a split that is held out"
        )
      if each.clips > len(held_out):
        raise ValueError(
          f"evals.{name} needs {each.clips} clips, split {each.split!r} has {len(held_out)}: lower evals.{name}.count, "
          f"or hold out more"
        )
    if self.model.classes and self.model.classes < len(self.data.labels()):
      raise ValueError(
        f"the data set has {len(self.data.labels())} labels, model.classes is {self.model.classes}: raise it, or set "
        f"0 for none"
      )

  def check_batch(self, data: Data, batch: dict[str, np.ndarray]) -> None:
    """ValueError for a batch without what the model is told of."""
    if (there := batch["video"].shape[-1]) != self.model.channels:
      raise ValueError(f"model.channels is {self.model.channels}, the data has {there}: set it")
    called = f"{type(data).__name__} {getattr(data, 'name', '')}".strip()
    if self.text and not ("caption" in batch and hasattr(data, "captions")):
      raise ValueError(
        f"the model reads captions, {called} has none: give its batches a caption and it captions(), or leave out "
        f"config.text, and text in model.pattern"
      )
    if self.sound and "sound" not in batch:
      raise ValueError(
        f"the model hears, batches of {called} have no sound: ingest it with --sound, read it with strides (1,), or "
        f"leave out config.sound, and sound in model.pattern"
      )
    if "fps" in self.model.conditions and "fps" not in batch:
      raise ValueError(f"the model is told the frame rate, batches of {called} have no fps: set model.fps to False")

  def layout(self, devices: list[Any] | None = None) -> tuple[jax.sharding.Mesh, Any]:
    """The mesh of `devices`, by default all there are, and the network on it. ValueError where they do not fit."""
    mesh = self.mesh.build(devices)
    if devices is None and (
      idle := set(range(jax.process_count())) - {each.process_index for each in mesh.devices.flat}
    ):
      raise ValueError(
        f"mesh {dataclasses.asdict(self.mesh)} has no device of process {', '.join(map(str, sorted(idle)))}: take all "
        f"{len(jax.devices())} devices, or start fewer processes"
      )
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    networks = []
    for shape in self.data.shapes():
      if self.micro_batches < 1 or shape.batch_size % (parts * self.micro_batches):
        raise ValueError(
          f"data.batch_size {shape.batch_size} is not a multiple of mesh.data x mesh.fsdp = {parts} times "
          f"micro_batches = {self.micro_batches}, which is at least 1"
        )
      networks.append(self.model.build(shape.frames, shape.size, dict(mesh.shape)))
    return mesh, networks[0]


RATES = ("optimizer.lr", "optimizer.warmup", "optimizer.decay")
RESUMABLE = (
  "steps",
  "autoencoder",
  "text.path",
  "text.folder",
  "mesh",
  "micro_batches",
  "model.remat",
  "model.scan",
  "evals",
  "sampler",
  "diffusion.spacing",
  "log_every",
  "save_every",
  "keep",
  "best",
  "profile",
  "spike",
  "roll_back",
  "hang_after",
  "topology",
  "xla",
  *RATES,
)
"""Fields that a run may change when it is resumed; with any other it would be another run."""
LOCAL = ("prefetch", "readers", "cache")
"""Fields of `data`, and of what it is made of, that say how this machine reads: a run may change them too."""


def resumable(name: str) -> bool:
  """Whether a dotted field is one of those."""
  parts = name.split(".")
  return name in RESUMABLE or parts[0] in RESUMABLE or (parts[0] == "data" and parts[-1] in LOCAL)


def to_dict(config: Any) -> Any:
  """A config as JSON-able data: each dataclass becomes a dict with its class under "_"."""
  if dataclasses.is_dataclass(config):
    fields = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"_": type(config).__name__, **fields}
  if isinstance(config, dict):
    return {key: to_dict(value) for key, value in config.items()}
  if isinstance(config, (tuple, list)):
    return [to_dict(value) for value in config]
  return config


def filled(old: dict, config: Any) -> dict:
  """A stored config with the defaults of the fields that `config`'s dataclasses have got since."""
  found = dict(old)
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name not in old and field.default is not dataclasses.MISSING:
      found[field.name] = to_dict(field.default)
    elif field.name not in old and field.default_factory is not dataclasses.MISSING:
      found[field.name] = to_dict(field.default_factory())
    elif dataclasses.is_dataclass(value) and isinstance(old.get(field.name), dict):
      found[field.name] = filled(old[field.name], value)
    elif isinstance(value, (tuple, list)) and len(stored := old.get(field.name) or ()) == len(value):
      pairs = zip(stored, value)
      found[field.name] = [filled(one, new) if dataclasses.is_dataclass(new) else one for one, new in pairs]
  return found


def differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
  """Dotted field to (old, new) wherever two configs, as `to_dict` gives them, differ."""
  found = {}
  for key in sorted({*old, *new}):
    a, b = old.get(key), new.get(key)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b) and dict in map(type, a):
      a, b = ({str(number): value for number, value in enumerate(each)} for each in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
      found |= differences(a, b, f"{prefix}{key}.")
    elif a != b:
      found[f"{prefix}{key}"] = (a, b)
  return found
