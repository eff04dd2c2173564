"""What each lever does to the estimated step of the XL model: kernels, remat, micro-batches, mesh, heads.

  python -m experiments.benchmarks.levers [--json FILE] [ROW...]

`vdt plan`'s estimates of `experiments/large.py:xl` on 256 chips of v5e and 64 of v5p, four and eight clips a chip: as
it ships but for their number, then without what it has of the compiler's options, of kept parameters and of repeats
written out; and, with these as a scan, which the compiler is done with in a third of the time, with one thing changed
at a time. Prints a table and writes JSON after each row: all, or those whose names have one of ROW in them, beside what
FILE has. Compiled programs are kept with the plans: a second run, or one that was cut off, goes on where it was.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from experiments import large
from vdt import plan
from vdt.config import Config
from vdt.models import TransformerConfig, attention

RESULTS = Path(__file__).parent / "results" / "levers.json"
SLICES = {"v5e:16x16": 1024, "v5p:4x4x4": 512}  # and the batch there


def model(**fields) -> Callable[[Config], None]:
  def change(config: Config) -> None:
    config.model = dataclasses.replace(config.model, **fields)

  return change


def heads_of_72(config: Config) -> None:
  config.model = TransformerConfig.sized("XL", patch=config.model.patch, remat=config.model.remat)


def mesh(**axes) -> Callable[[Config], None]:
  def change(config: Config) -> None:
    config.mesh = dataclasses.replace(config.mesh, **axes)

  return change


def micro_batches(count: int) -> Callable[[Config], None]:
  return lambda config: setattr(config, "micro_batches", count)


def four_times_the_frames(config: Config) -> None:
  """And a quarter of the clips."""
  config.data.frames, config.data.batch_size = 4 * config.data.frames, config.data.batch_size // 4


def as_it_ships(config: Config) -> None:
  shipped = large.get_config("xl")
  config.model, config.xla = shipped.model, shipped.xla


def as_it_is(config: Config) -> None:
  pass


LEVERS = {  # what changes, and the axes whose attention has no kernel of ours
  "as it ships": (as_it_ships, ()),
  "no options of the compiler": (model(scan=False, remat="dots+params"), ()),
  "nor parameters kept": (model(scan=False), ()),
  "nor repeats written out, but a scan, as below": (as_it_is, ()),
  "attention by plain products, float32 logits in memory": (as_it_is, ("space", "time")),
  "the kernel for space alone": (as_it_is, ("time",)),
  "the kernel for time alone": (as_it_is, ("space",)),
  "remat full": (model(remat="full"), ()),
  "remat none": (model(remat="none"), ()),
  "remat offload": (model(remat="offload"), ()),
  "2 micro-batches": (micro_batches(2), ()),
  "4 micro-batches": (micro_batches(4), ()),
  "fsdp 4": (mesh(fsdp=4), ()),
  "fsdp 8": (mesh(fsdp=8), ()),
  "fsdp 64": (mesh(fsdp=64), ()),
  "sequence 2": (mesh(sequence=2), ()),
  "tensor 2, heads 10 x 128": (lambda config: (mesh(tensor=2)(config), model(width=1280, heads=10)(config)), ()),
  "heads 16 x 72": (heads_of_72, ()),
  "64 frames": (four_times_the_frames, ()),
  "64 frames, the kernel for space alone": (four_times_the_frames, ("time",)),
}


def row(topology: str, name: str) -> dict:
  """The plan of one lever, in short; or why there is none."""
  change, plain = LEVERS[name]
  config = large.get_config("xl")
  config.data.batch_size, config.xla = SLICES[topology], {}
  model(scan=True, remat="dots")(config)
  change(config)
  choose = attention.choose
  allowed = lambda axis, *args, **fields: None if axis in plain else choose(axis, *args, **fields)
  try:
    with mock.patch.object(attention, "choose", allowed):
      found = plan.plan(config, topology, sampling=False)
  except plan.TooLarge as error:
    return {"needs": error.used, "there": error.there}
  train = found["train"]
  return {
    "mfu": found["mfu"],
    "seconds": found["step_seconds"],
    "bytes": train["bytes"],
    "least_bytes": found["least_bytes"],
    "least_unfused_bytes": found["least_unfused_bytes"],
    "exposed": sum(each["exposed"] for each in train["collectives"] if each["network"] != "host") / train["seconds"],
    "hardware": found["hardware_flops"] / sum(found["model_flops"].values()),
    "peak": found["memory"]["peak"],
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--json", type=Path, default=RESULTS, help="the file to write")
  parser.add_argument(
    "rows", nargs="*", metavar="ROW", help="these alone, by parts of their names; FILE keeps the rest"
  )
  options = parser.parse_args()
  if not options.json.parent.is_dir():
    parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
  names = [name for name in LEVERS if not options.rows or any(part in name for part in options.rows)]
  if missing := [part for part in options.rows if not any(part in name for name in LEVERS)]:
    parser.error(f"no row has {missing[0]!r} in its name: they are {'; '.join(LEVERS)}")
  found: dict[str, dict] = json.loads(options.json.read_text()) if options.rows and options.json.exists() else {}
  for topology in SLICES:
    print(f"\n{topology:56} MFU  step, ms  HBM, GB  of least  unfused  exposed  FLOPs  peak, GiB")
    found.setdefault(topology, {})
    for name in names:
      found[topology][name] = each = row(topology, name)
      found[topology] = {known: found[topology][known] for known in LEVERS if known in found[topology]}
      options.json.write_text(json.dumps(found, indent=2) + "\n")
      if "needs" in each:
        print(f"{name:54} does not fit: {each['needs'] / 2**30:.1f} of {each['there'] / 2**30:.1f} GiB", flush=True)
        continue
      print(
        f"{name:54} {100 * each['mfu']:4.1f} %  {1e3 * each['seconds']:7.1f}  {each['bytes'] / 1e9:7.1f}  "
        f"{each['bytes'] / each['least_bytes']:8.1f}  {each['bytes'] / each['least_unfused_bytes']:7.2f}  "
        f"{100 * each['exposed']:5.1f} %  {each['hardware']:5.2f}  {each['peak'] / 2**30:9.1f}",
        flush=True,
      )


if __name__ == "__main__":
  main()
