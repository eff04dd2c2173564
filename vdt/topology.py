"""Pod slices without a pod: what their chips can do, and the devices that the TPU compiler takes for one."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """One chip, as docs.cloud.google.com/tpu/docs states it: bytes are of the whole chip, rates are a second's.

  peak: bfloat16 FLOP/s. link: bytes/s of one inter-chip link in one direction; the chip has two of them, one each way,
  along each of `axes` axes, which close to a ring where their length is a multiple of `ring`. dcn: bytes/s between
  slices, a chip's share of its host's. host: bytes/s to or from the host's memory (jax-ml.github.io/scaling-book,
  "TPUs"). kinds: what JAX calls it.
  """

  peak: float
  hbm: float
  bandwidth: float
  link: float
  dcn: float
  host: float
  axes: int
  ring: int
  kinds: tuple[str, ...]


CHIPS = {
  "v4": Chip(275e12, 32 * GIB, 1228e9, 50e9, 6.25e9, 15e9, 3, 4, ("TPU v4",)),
  "v5e": Chip(197e12, 16 * GIB, 819e9, 50e9, 3.125e9, 15e9, 2, 16, ("TPU v5 lite", "TPU v5e")),
  "v5p": Chip(459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, 15e9, 3, 4, ("TPU v5", "TPU v5p")),
  "v6e": Chip(918e12, 32 * GIB, 1640e9, 100e9, 12.5e9, 32e9, 2, 16, ("TPU v6 lite", "TPU v6e")),
}
MEANT = re.compile(r"(v\d+\w*):(\d+(?:x\d+)*)")


def chip_of(device: Any) -> str | None:
  """The name, in CHIPS, of the chip that a device of JAX's is; None of another machine's."""
  return next((name for name, chip in CHIPS.items() if device.device_kind in chip.kinds), None)


def options(xla: dict[str, dict[str, Any]], device: Any) -> dict[str, Any]:
  """The compiler's options for a device, of those by chip (`Config.xla`). ValueError for a chip that there is not."""
  if unknown := [name for name in xla if name not in CHIPS]:
    raise ValueError(f"config.xla is by chip, one of {', '.join(CHIPS)}, not {unknown[0]!r}")
  return xla.get(chip_of(device), {})


class Slice(NamedTuple):
  """A described pod slice, or several of one shape: its chip, its shape in chips, and the compiler's devices."""

  chip: Chip
  shape: tuple[int, ...]
  devices: list[Any]


def describe(topology: str, slices: int = 1) -> Slice:
  """`slices` slices of `topology`, say "v5e:16x16". ValueError for a name that the TPU compiler does not know."""
  known = ", ".join(f"{name}:{'x'.join('4' * chip.axes)}" for name, chip in CHIPS.items())
  parts = MEANT.fullmatch(topology)
  if not parts or parts[1] not in CHIPS:
    raise ValueError(f"unknown topology {topology!r}: write a chip and its slice's shape, like {known}")
  chip, shape = CHIPS[parts[1]], tuple(map(int, parts[2].split("x")))
  if len(shape) != chip.axes:
    raise ValueError(f"topology {topology}: slices of {parts[1]} have {chip.axes} axes, like {known}")
  if slices < 1:
    raise ValueError(f"{slices} slices: at least 1")
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError("planning needs the TPU compiler: pip install libtpu, or -e '.[tpu]'")
  options = {"chip_config_name": "megacore"} if parts[1] == "v4" else {}
  from jax.experimental import topologies

  with quiet():
    try:
      described = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **({"num_slices": slices} if slices > 1 else {}), **options
      )
    except Exception as error:
      reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
      raise ValueError(f"the TPU compiler knows no slice {topology} ({reason[:160]})") from error
  return Slice(chip, shape, list(described.devices))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Inside, the TPU compiler asks no machine for its chips, and says nothing of there being none."""
  os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
  held = os.dup(2)
  with open(os.devnull, "w") as nothing:
    os.dup2(nothing.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(held, 2)
      os.close(held)
