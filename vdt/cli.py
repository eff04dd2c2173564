"""The command `vdt`: verbs to programs. Bad input is one line on stderr and exit code 1."""

import dataclasses
import os
import pathlib
import signal
import sys
import traceback
from typing import Any

from absl import flags

from vdt import host
from vdt.command_line import folders, pairs, parse, required

VERBS = {
  "train": "train an experiment, or go on with it: --config FILE.py[:VARIANT] --workdir DIR",
  "sample": "a checkpoint, and what you give, to videos: --workdir DIR",
  "evaluate": "a checkpoint to the experiment's metrics: --workdir DIR",
  "export": "a run's weights, for others: --workdir DIR --format orbax|safetensors|latte|vdt|diffusers|stablehlo",
  "import": "weights from elsewhere, to a run: FILE --config FILE.py[:VARIANT] --workdir DIR",
  "encode": "an experiment's clips, once, to the latents that it is trained on: --config FILE.py[:VARIANT]",
  "show-batch": "a batch of training as the model sees it, as a page: --config FILE.py[:VARIANT]",
  "plan": "what a config takes on a pod slice, and whether it fits: --config FILE.py[:VARIANT] --topology v5e:16x16",
  "sweep": "the arms of an experiment, to their end: --config FILE.py[:VARIANT] --workdir DIR",
  "launch": "one run, sent to where it can run: --config FILE.py[:VARIANT] --workdir DIR --backend slurm",
  "status": "how launched runs and sweeps stand: DIR ...",
  "logs": "what a launched run printed: DIR",
  "cancel": "ends launched runs, with all they have saved: DIR ...",
  "compare": "the arms of a sweep, or runs, to one page and tables: DIR ...",
  "curate": "a folder of video files to the clips that are worth training on: DIR --out DIR",
  "ingest": "a folder of video files to a data set: DIR --out DIR",
}
PROGRAMS = {"import": "import_weights", "show-batch": "show_batch"}
"""Verbs that are no names of functions."""
MANY = ("train", "sample", "evaluate")
"""Verbs whose processes may be several."""
EXPECTED = (ValueError, OSError, FloatingPointError, flags.Error)
"""What our own checks raise; anything else that ends a program is told with its kind."""


def main(argv: list[str] | None = None) -> None:
  """Runs one verb; ends the process with 1 for bad input, 77 and 130 for a stopped run (see `vdt.train`)."""
  argv = sys.argv[1:] if argv is None else argv
  verb, rest = (argv[0], argv[1:]) if argv else ("", [])
  if verb not in VERBS:
    if verb and verb not in ("-h", "--help", "help"):
      print(f"vdt: unknown verb {verb!r}", file=sys.stderr)
    print("usage: vdt VERB [flags]; `vdt VERB --help` lists a verb's flags")
    print("\n".join(f"  vdt {name:10} {text}" for name, text in VERBS.items()))
    sys.exit(verb not in ("-h", "--help", "help"))
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  host.keep_freed_memory()
  try:
    if verb in MANY:
      from vdt import distributed

      distributed.join()
    globals()[PROGRAMS.get(verb, verb)](rest)
  except KeyboardInterrupt:
    sys.exit(130)
  except Exception as error:
    if "VDT_TRACEBACK" in os.environ:
      traceback.print_exc()
    kind = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
    hint = "" if isinstance(error, EXPECTED) else " (VDT_TRACEBACK=1 shows where)"
    said = "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(error).split()))
    if verb in MANY:
      from vdt import distributed

      kind = "another process of this run was lost, start all of them again: " if distributed.lost(error) else kind
    print(f"vdt {verb}: {kind}{said or type(error).__name__}{hint}", file=sys.stderr)
    if verb in MANY:
      distributed.leave(error)
    sys.exit(1)


def train(rest: list[str]) -> None:
  from vdt.attempts import RESTART

  signal.signal(signal.SIGTERM, lambda *_: sys.exit(RESTART))  # until training has handlers of its own
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "where the run lives; a run that is there goes on", flag_values=values)
  config, origin = parse(rest, values)
  from vdt.train import train as program

  program(config, required(values, "workdir"), origin)


def sample(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "the run", flag_values=values)
  flags.DEFINE_string("out", None, "folder for the videos (default: WORKDIR/samples)", flag_values=values)
  flags.DEFINE_integer("count", 8, "how many videos", lower_bound=1, flag_values=values)
  flags.DEFINE_integer("seed", 0, "sample i depends on (seed, i) alone", -(2**63), 2**63 - 1, flag_values=values)
  flags.DEFINE_integer("step", None, "the checkpoint (default: the newest)", flag_values=values)
  define_ema(values)
  texts = {
    "task": "generation, or prediction where frames are given, or another",
    "given": "a video, picture or .npy file whose frames are given where the task says",
    "image": "a picture: the first frame",
    "keyframes": "pictures at frames: 0:a.png,15:b.png",
    "video": "a video file: the first frames, --given_frames of them",
    "mask": "a picture: where it is light, the --video is made anew",
    "label": "the class, by name (default: those of held-out clips)",
    "prompt": "the text (default: those of held-out clips)",
    "prompts": "a file of texts, one a line, with --count videos of each",
    "negative": "a text to keep away from, with --guidance above 1",
    "audio": "a file with sound, that the model hears, and the MP4s too",
    "guidance": "the scale of classifier-free guidance: a number, or text=5,label=2 (default: the experiment's)",
  }
  for name, text in texts.items():
    flags.DEFINE_string(name, None, text, flag_values=values)
  flags.DEFINE_integer("given_frames", None, "how many frames are given", flag_values=values)
  flags.DEFINE_float("fps", None, "frames a second, of a model that is told, and of the files", flag_values=values)
  flags.DEFINE_integer("steps", None, "of sampling (default: the experiment's)", 1, flag_values=values)
  config, _ = parse(rest, values)
  from vdt import sample as program
  from vdt.request import Request

  ask = Request(**{field.name: values[field.name].value for field in dataclasses.fields(Request)})
  program.run(config, required(values, "workdir"), values.out, ask)


def evaluate(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "the run", flag_values=values)
  flags.DEFINE_integer("step", None, "the checkpoint (default: the newest)", flag_values=values)
  flags.DEFINE_integer("seed", 0, "of the samples", -(2**63), 2**63 - 1, flag_values=values)
  flags.DEFINE_string("json", None, "also write the figures to this file", flag_values=values)
  define_ema(values)
  config, _ = parse(rest, values)
  from vdt import evaluate as program

  program.run(config, required(values, "workdir"), values.step, values.ema, values.seed, values.json)


def export(rest: list[str]) -> None:
  on_cpu()
  from vdt import export as program

  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "the run", flag_values=values)
  flags.DEFINE_enum("format", "safetensors", program.FORMATS, "what to write", flag_values=values)
  flags.DEFINE_string("out", None, "the folder (default: WORKDIR/export/FORMAT); an export there is replaced", values)
  flags.DEFINE_integer("step", None, "the checkpoint (default: the newest)", flag_values=values)
  flags.DEFINE_string("license", "", "for the card, say apache-2.0", flag_values=values)
  flags.DEFINE_boolean("check", True, "run the other side as well, where it is installed", flag_values=values)
  define_ema(values)
  config, _ = parse(rest, values)
  named = {name: values[name].value for name in ("format", "out", "step", "ema", "license", "check")}
  named["licence"] = named.pop("license")
  program.run(config, required(values, "workdir"), **named)


def import_weights(rest: list[str]) -> None:
  on_cpu()
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "a new run's folder", flag_values=values)
  flags.DEFINE_string("weights", "", "of those in a .pt: ema or model (default: ema, if it is there)", values)
  flags.DEFINE_boolean("check", True, "run the other side as well, where it is installed", flag_values=values)
  sources = [each for each in rest[:1] if not each.startswith("-")]
  config, origin = parse(rest[len(sources) :], values)
  if not sources:
    raise ValueError("name a file or folder: vdt import FILE --config FILE.py[:VARIANT] --workdir DIR")
  from vdt import importer as program

  folder = required(values, "workdir")
  program.run(config, origin, sources[0], folder, values.weights, values.check)


def encode(rest: list[str]) -> None:
  values = flags.FlagValues()
  text = "I/N: only every N-th shard, from the I-th on; run all N, where you like (default: as Slurm's tasks, or all)"
  flags.DEFINE_string("part", None, text, flag_values=values)
  text = "megabytes of a shard, which is what a cut costs (default: as before, or 64)"
  flags.DEFINE_float("shard", None, text, 1e-3, flag_values=values)
  config, _ = parse(rest, values)
  from vdt import encode as program

  given = values.part or f"{os.environ.get('SLURM_PROCID', 0)}/{os.environ.get('SLURM_NTASKS', 1)}"
  try:
    part, parts = map(int, given.split("/"))
  except ValueError:
    raise ValueError(f"--part {given}: write I/N, say 0/4") from None
  if not 0 <= part < parts:
    raise ValueError(f"--part {given}: I is a number from 0 on, below N")
  program.run(config, part, parts, None if values.shard is None else int(values.shard * 1e6))


def show_batch(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_integer("step", 0, "of training", lower_bound=0, flag_values=values)
  flags.DEFINE_integer("count", 8, "how many rows", lower_bound=1, flag_values=values)
  flags.DEFINE_string("out", "batch.html", "the page", flag_values=values)
  flags.DEFINE_string("workdir", None, "a run, whose experiment it is, in the place of --config", flag_values=values)
  config, _ = parse(rest, values)
  from vdt import show as program

  program.run(config, values.step, values.out, values.count)


def on_cpu() -> None:
  """Arrays are only moved, and compared at full precision: no accelerator is needed, or claimed."""
  import jax

  jax.config.update("jax_platforms", "cpu")


def define_ema(values: flags.FlagValues) -> None:
  text = "relative length of an average made of those that config.averages kept (default: the run's own, config.ema)"
  flags.DEFINE_float("ema", None, text, flag_values=values)


def plan(rest: list[str]) -> None:
  os.environ["JAX_PLATFORMS"] = "cpu"  # whatever chips this machine has, the plan is for others
  values = flags.FlagValues()
  flags.DEFINE_string("topology", None, "chip and shape of a slice (default: the config's)", flag_values=values)
  flags.DEFINE_integer("slices", 1, "how many slices", lower_bound=1, flag_values=values)
  flags.DEFINE_string("json", None, "also write the plan to this file", flag_values=values)
  flags.DEFINE_integer("search", None, "try that many meshes, remats and micro-batches", 1, flag_values=values)
  config, _ = parse(rest, values)
  from vdt import plan as program

  name = values.topology or config.topology
  if not name:
    raise ValueError("name a slice with --topology, say v5e:16x16, or in the config's topology")
  program.run(config, name, values.slices, values.json, values.search)


def sweep(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "where the arms' workdirs lie; what is done there is not done again", values)
  flags.DEFINE_string("arms", "sweep", "the experiment's function that yields the arms", values)
  flags.DEFINE_integer("workers", 1, "how many arms at once, on this machine", 1, flag_values=values)
  flags.DEFINE_string("halving", None, "METRIC:STEPS:FACTOR: stop arms that are not among the best then", values)
  define_backend(values)
  _, origin = parse(rest, values)
  from vdt import halving, launch
  from vdt import sweep as program

  given, place = pairs(origin), backend(values, values.workers)
  path = given["config"].partition(":")[0]

  def resolve(changes: dict[str, Any]) -> tuple[Any, list[str]]:
    own = program.flags(changes)
    if twice := given.keys() & own.keys():
      raise ValueError(f"--{min(twice)} is given, and changed by an arm as well: leave it out")
    named = {**given, **own}
    if "variant" in changes:
      named["config"] = f"{path}:{changes['variant']}"
    config, flags_of = parse([f"--{name}={value}" for name, value in named.items()], flags.FlagValues())
    return config, launch.portable(flags_of) if place.far else flags_of

  options = {"halving": halving.parse(values.halving)} if values.halving else {}
  folder = pathlib.Path(required(values, "workdir")).absolute()
  plans = program.lay(folder, program.load(path, values.arms), resolve, not place.far, **options)
  launch.send(folder, plans, place)


def launch(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "the run's folder, or that of its records, if it runs far away", values)
  flags.DEFINE_integer("processes", 1, "of how many processes", 1, flag_values=values)
  define_backend(values)
  config, origin = parse(rest, values)
  from vdt import launch as program
  from vdt import sweep

  place = backend(values, 1)
  origin = program.portable(origin) if place.far else origin
  folder = pathlib.Path(required(values, "workdir")).absolute()
  program.send(folder, [sweep.lay_one(folder, config, origin, values.processes, not place.far)], place)


def define_backend(values: flags.FlagValues) -> None:
  names = ["local", "slurm", "gke", "tpu-vm"]
  flags.DEFINE_enum("backend", "local", names, "where to run; tpu-vm prints the commands", flag_values=values)
  flags.DEFINE_string("slurm", "", "sbatch's options: partition=main,time=120,cpus_per_task=4", flag_values=values)
  flags.DEFINE_string("gke", "", "image=...,queue=...,spot=true, and more of vdt.gke.Cluster", flag_values=values)
  flags.DEFINE_string("remote", "", "a folder in a bucket for the workdirs of GKE and TPU VMs", flag_values=values)
  flags.DEFINE_string("topology", "", "the slice of each run (default: the config's)", flag_values=values)
  flags.DEFINE_integer("slices", 1, "how many slices a run takes", lower_bound=1, flag_values=values)
  flags.DEFINE_string("zone", "", "of TPU VMs", flag_values=values)
  flags.DEFINE_boolean("dry_run", False, "print what would be submitted", flag_values=values)


def backend(values: flags.FlagValues, workers: int) -> Any:
  from vdt import gke
  from vdt.launch import Backend

  def options(name: str) -> dict[str, str]:
    parts = [part.partition("=") for part in values[name].value.split(",") if part]
    if wrong := [key for key, equals, _ in parts if not equals]:
      raise ValueError(f"--{name} has {wrong[0]!r}: write NAME=VALUE,NAME=VALUE")
    return {key.strip().replace("-", "_"): value for key, _, value in parts}

  cluster, kinds = options("gke"), {field.name: field.type for field in dataclasses.fields(gke.Cluster)}
  for key, value in cluster.items():
    if key not in kinds:
      raise ValueError(f"--gke has no {key!r}: choose from {', '.join(kinds)}")
    try:
      cluster[key] = {"true": True, "false": False}[value] if kinds[key] is bool else kinds[key](value)
    except (KeyError, ValueError):
      raise ValueError(f"--gke {key}={value}: a {kinds[key].__name__}") from None
  return Backend(
    values.backend,
    workers,
    options("slurm"),
    gke.Cluster(**{"image": "", **cluster}),
    values.remote,
    values.topology,
    values.slices,
    values.zone,
    values.dry_run,
  )


def status(rest: list[str]) -> None:
  from vdt import launch

  print(launch.table(folders(rest)))


def logs(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_integer("lines", 40, "how many of the last ones", 1, flag_values=values)
  flags.DEFINE_string("arm", None, "one arm of a sweep, as status names it (default: all)", flag_values=values)
  named = folders(rest, values)
  from vdt import launch

  print(launch.logs(named, values.arm, values.lines))


def cancel(rest: list[str]) -> None:
  values = flags.FlagValues()
  flags.DEFINE_string("arm", None, "one arm of a sweep, as status names it (default: all)", flag_values=values)
  named = folders(rest, values)
  from vdt import launch

  for name, folder in launch.jobs(named, values.arm).items():
    print(f"{name}: {launch.cancel(folder)}")


def compare(rest: list[str]) -> None:
  values = flags.FlagValues()
  text = (
    "the arm that others are compared with (default: the first), or PATTERN:ARM for those so called; may be repeated"
  )
  flags.DEFINE_multi_string("base", [], text, flag_values=values)
  kinds = ["steps", "flops", "hours", "share"]
  flags.DEFINE_enum("align", "steps", kinds, "at equal what; share: each at its own end", flag_values=values)
  flags.DEFINE_string("out", None, "folder for the page and the tables (default: the first one)", flag_values=values)
  text = "lines of the evals' cards in which arms may differ, by commas: those that the sweep varies"
  flags.DEFINE_list("allow", [], text, flag_values=values)
  text = "the figures of vdt evaluate, in the place of those of training"
  flags.DEFINE_boolean("evaluated", False, text, flag_values=values)
  named = folders(rest, values)
  from vdt import compare as program
  from vdt import workdirs

  named = list(dict.fromkeys(workdirs.absolute(str(folder)) for folder in named))
  out = workdirs.absolute(values.out or str(named[0]))
  program.run(named, values.base, values.align, out, tuple(values.allow), values.evaluated)


def curate(rest: list[str]) -> None:
  from data_pipelines import curate as program

  run(program, rest)


def ingest(rest: list[str]) -> None:
  from data_pipelines import ingest as program

  run(program, rest)


def run(program: Any, rest: list[str]) -> None:
  """A program of data_pipelines, which has flags of its own."""
  try:
    program.main(rest)
  except SystemExit as ended:  # argparse has said what is wrong, and means 2
    sys.exit(1 if ended.code else 0)


if __name__ == "__main__":
  main()
