"""Programs for described pod slices: compiled by the TPU compiler once, kept, and priced."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from vdt import files, roofline
from vdt.topology import GIB, Slice

CACHE = Path("~/.cache/vdt/plans")
OUT_OF_MEMORY = re.compile(
  r"\(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)|Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm"
)
OPTION = re.compile(r"No such compile option: .*|Failed to parse .* into flag .*|.*Please disable it with .*")
PEAK = "its peak is above what is there"


class TooLarge(ValueError):
  """A program that needs more memory than a chip has; bytes of a chip: those of its temporaries, those there."""

  def __init__(self, text: str, used: float, there: float):
    super().__init__(text)
    self.used, self.there = used, there


class Refused(ValueError):
  """A program that the TPU compiler makes nothing of, for another reason than its memory."""


@contextlib.contextmanager
def unkept() -> Iterator[None]:
  """Keeps what is compiled out of JAX's own cache, from which programs for described chips cannot be read again."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, float("inf"))
  try:
    yield
  finally:
    jax.config.update(name, before)


def program(
  lowered: Any, where: Slice, name: str, slices: int, options: dict[str, Any] | None = None
) -> dict[str, Any]:
  """Memory and cost of a lowered program on a chip, from the compiler, or from the cache where it was asked before.

  options: of the compiler; ValueError for one that it does not know. TooLarge, with what the compiler said, or PEAK,
  where it needs more memory than a chip has. Refused where the compiler fails otherwise.
  """
  told = [lowered.as_text(), name, str(slices), *(metadata.version(each) for each in ("jax", "jaxlib", "libtpu"))]
  told += [str(where.devices), *(os.environ.get(flags, "") for flags in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"))]
  told += [json.dumps(options, sort_keys=True)] if options else []
  folder = CACHE.expanduser() / hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:32]
  said, module = folder / "said.json", folder / "module.gz"
  if not said.exists():
    found, made = compile_for(lowered, options)
    files.put(module, gzip.compress(made))
    files.put(said, json.dumps(found).encode())
  found = json.loads(said.read_text())
  if "needs" in found:
    raise TooLarge(found["said"], float(found["needs"]), float(found["there"]))
  if found["peak"] > where.chip.hbm:
    raise TooLarge(PEAK, float(found["peak"]), float(where.chip.hbm))
  cost = roofline.price(gzip.decompress(module.read_bytes()), where)
  return {
    **found,
    "activations": cost.kept,
    "seconds": cost.seconds,
    "flops": cost.flops,
    "bytes": cost.bytes,
    "operands": cost.operands,
    "bound": dict(cost.bound),
    "collectives": [
      {"kind": kind, "network": network, **dataclasses.asdict(traffic)}
      for (kind, network), traffic in sorted(cost.traffic.items())
    ],
    "top": {place: row.tolist() for place, row in sorted(cost.top.items(), key=lambda item: -item[1][0])[:40]},
  }


def compile_for(lowered: Any, options: dict[str, Any] | None) -> tuple[dict[str, Any], bytes]:
  """The memory of a compiled program, and its module, serialised; or in short why the compiler makes nothing of it."""
  try:
    with unkept():
      compiled = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if found := OUT_OF_MEMORY.search(str(error)):
      used, used_in, there, there_in = filter(None, found.groups())
      unit = {"K": 2**10, "M": 2**20, "G": GIB}
      return {"said": str(error), "needs": float(used) * unit[used_in], "there": float(there) * unit[there_in]}, b""
    if found := OPTION.search(str(error)):
      raise ValueError(f"config.xla: {found.group()}") from None
    reason = str(error).splitlines()[0][:200]
    raise Refused(f"the TPU compiler makes nothing of this ({reason}): try another mesh, say mesh.fsdp") from error
  memory = compiled.memory_analysis()
  sizes = {
    "arguments": memory.argument_size_in_bytes,
    "peak": memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes,
    "host": memory.host_temp_size_in_bytes,
  }
  return sizes, roofline.module_of(compiled)
