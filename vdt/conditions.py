"""What a model is told of a video beside its frames: arrays of a batch by name, and those of what is not told."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from vdt import distributed, files, workdirs
from vdt.config import Config

Arrays = dict[str, Any]
KEPT = "text.model"
"""What a run keeps of how it reads captions."""


def shapes(config: Config, frames: int = 0) -> dict[str, tuple[tuple[int, ...], str]]:
  """The shape and the type of a row of each array. frames: of a video, by default the data's."""
  plain = {"label": ((), "int32"), "fps": ((), "float32"), "size": ((2,), "float32")}
  found = {name: plain[name] for name in config.model.conditions if name in plain}
  found |= config.text.shapes(config.model.text) if config.text else {}
  return found | ({"sound": ((frames or config.data.frames, config.sound.width), "float32")} if config.sound else {})


def absent(config: Config, count: int) -> Arrays:
  """What tells nothing: all arrays, dropped."""
  arrays = {name: np.ones((count, *shape), dtype) for name, (shape, dtype) in shapes(config).items()}
  arrays |= {name: 0 * arrays[name] for name in ("label", "text", "sound") if name in arrays}
  return arrays | {"null": {name: np.ones(count, bool) for name in config.model.conditions}}


@dataclasses.dataclass(frozen=True)
class Conditions:
  """The conditions of a run's model. read: captions to arrays by name, where it reads."""

  config: Config
  read: Callable[[Sequence[str]], Arrays] | None = None

  def arrays(self, batch: dict[str, np.ndarray]) -> Arrays:
    """Of a data set's batch, which has "caption" where the model reads, "sound" where it hears, and "fps" where it is
    told."""
    found = {name: batch[name] for name in ("label", "fps") if name in self.config.model.conditions}
    if "size" in self.config.model.conditions:
      found["size"] = np.tile(np.array(batch["video"].shape[2:4], np.float32), (len(batch["video"]), 1))
    if self.config.sound:
      first = getattr(self.config.data, "first_share", 1.0)
      found["sound"] = self.config.sound(batch["sound"], batch["video"].shape[1], first)
    return found | (self.read(batch["caption"].tolist()) if self.read else {})

  def told(self, batch: dict[str, np.ndarray]) -> Arrays:
    """As `arrays`, with nothing dropped."""
    kept = np.zeros(len(batch["video"]), bool)
    return self.arrays(batch) | {"null": dict.fromkeys(self.config.model.conditions, kept)}


def begun(config: Config) -> Conditions:
  """Those of a run of `config` that begins, without a folder."""
  if not config.text:
    return Conditions(config)
  return Conditions(config, config.text.open(config.text.make(config.data), config.model))


def of(config: Config, workdir: str, new: bool = False) -> Conditions:
  """Those of the run in `workdir`. new: it may be a run that begins, which finds out how it reads, and keeps that.

  FileNotFoundError where the run has not kept it, ValueError where that does not go with the model.
  """
  if not config.text:
    if new and "text" in config.model.conditions and distributed.first():
      print("the model could read, and config.text is None: it is trained without captions", file=sys.stderr)
    return Conditions(config)
  path = epath.Path(workdir) / KEPT
  lasting = not new or workdirs.saved(path.parent)  # a start that saved nothing may be corrected
  there = bool(lasting) and path.exists()
  if new:
    distributed.barrier("text.model is looked for")
  if not there:
    if not new or lasting:
      raise FileNotFoundError(f"{path} is missing, by which this run reads captions: copy the whole workdir")
    content = config.text.make(config.data)
    config.text.open(content, config.model)
    if distributed.first():
      files.rewrite(path, content)
    distributed.barrier("text.model is written")
  elif new and hasattr(config.text, "prepare"):
    config.text.prepare(config.data)
  try:
    return Conditions(config, config.text.open(path.read_bytes(), config.model))
  except ValueError as error:
    raise ValueError(f"{path}, by which this run reads captions: {error}") from error
