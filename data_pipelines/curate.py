r"""A folder of videos to the clips of it that are worth training on: an Apache Beam pipeline.

  python -m data_pipelines.curate FOLDER --out DIR
  python -m data_pipelines.ingest FOLDER --clips DIR/clips.jsonl --out data/mine

Each file is decoded once, small, and its record (shots, measures, hashes) is kept in DIR/records under the hash of its
content: a run that was cut off goes on where it was, other limits or more files decode nothing anew. No video is
written. DIR holds clips.jsonl (a kept clip a line), manifest.json (every file and clip, with the reason for each that
was dropped) and sheet.html (samples of both). Flags that are not listed here go to Beam: --runner DataflowRunner.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines import account, records, sheet, shots, sidecars, sources
from data_pipelines.filters import Limits

RUNNER = "FnApiRunner"  # in this process; DirectRunner first looks for a binary to download
KINDS = ("sums", "found", "pairs")
LOCAL = ("FnApiRunner", "DirectRunner")


def curate(
  directory: str | os.PathLike,
  out: str | os.PathLike,
  cutting: shots.Cutting = shots.Cutting(),
  limits: Limits = Limits(),
  captions: str | os.PathLike | None = None,
  test_sources: str | os.PathLike | None = None,
  test_fraction: float = 0.1,
  beam_flags: tuple[str, ...] = (),
) -> dict[str, Any]:
  """Chooses clips from the videos under `directory`, writes `out`, and returns its manifest. One run at a time.

  Both may lie in a bucket. captions, test_sources, test_fraction: as of `ingest`; captions may also lie beside the
  videos (see `sidecars`). beam_flags: for Beam's PipelineOptions.

  Raises:
    FileNotFoundError: no such folder, captions file or list of test files.
    ValueError: no files, a bad captions file, an unknown test file or flag, `out` holds something else, or the extra
      `curation` is not installed.
    OSError: `out` cannot be written; finished files are kept.
  """
  beam, options = _beam(list(beam_flags))
  directory, out = epath.Path(directory), epath.Path(out)
  if not directory.is_dir():
    raise FileNotFoundError(f"no folder {directory}")
  if not 0 <= test_fraction < 1:
    raise ValueError(f"test_fraction must be at least 0 and below 1, not {test_fraction}")
  if out.exists() and not (out.is_dir() and ((out / "records").exists() or not any(out.iterdir()))):
    raise ValueError(f"{out} is there and was not made by curation: choose another --out or remove it")
  names = _find(directory, (out, captions, test_sources))
  beside, owners, notes = sidecars.read_sidecars(names)
  videos = {name: path for name, path in names.items() if name not in owners}
  if not videos:
    raise ValueError(f"no files in {directory} but captions")
  rows, odd = sources.read_captions(captions, videos) if captions else ({}, [])
  tests = sources.choose_tests(videos, test_sources, test_fraction)
  where = lambda path: os.fsencode(str(path) if "://" in str(path) else os.path.abspath(path))
  split = lambda name: "test" if name in tests else "train"
  captions_of = beside | rows
  files = [
    {"file": name, "path": where(path), "split": split(name), "captioned": name in captions_of}
    for name, path in videos.items()
  ]
  try:
    store = records.Store.at(out / "records", cutting)
    store.clear(*KINDS)
    with beam.Pipeline(options=options) as pipeline:
      build(beam, pipeline, files, store, limits)
    kept, manifest = account.settle(files, store, limits, captions_of, owners, notes + odd)
    records.put(out / "clips.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
    records.put(out / "sheet.html", sheet.render(manifest, store))
    records.put(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    store.clear(*KINDS)
    store.sweep()
  except (OSError, RuntimeError) as error:
    worker = re.search(r"OSError: \[Errno \d+\] ([\w ]+)", str(error))  # Beam tells of a worker's in one of its own
    if isinstance(error, RuntimeError) and not worker:
      raise
    said = worker[1] if worker else error.strerror or error
    raise OSError(f"cannot write {out}: {said} (run the same command again: finished files are kept)") from error
  return manifest


def build(beam: Any, pipeline: Any, files: list[dict[str, Any]], store: records.Store, limits: Limits) -> None:
  """The pipeline: files are examined where their content is new; clips that may show the same meet, and are compared.

  files: file, path (bytes), split and captioned. Leaves KINDS of text behind in `store`: what each file is, what is in
  each content, and which clips show the same.
  """

  def write(rows: Any, kind: str) -> None:
    texts = rows | f"{kind} as text" >> beam.Map(records.line)
    _ = texts | f"write {kind}" >> beam.io.WriteToText(store.prefix(kind), ".jsonl")

  sums = (
    pipeline | "files" >> beam.Create(files) | "spread" >> beam.Reshuffle() | "checksum" >> beam.Map(records.checksum)
  )
  examined = (
    sums
    | "readable" >> beam.Filter(records.usable)
    | "by content" >> beam.GroupBy(_content)
    | "examine" >> beam.Map(functools.partial(records.examine, store=store))
  )
  pairs = (
    examined
    | "bands" >> beam.FlatMap(functools.partial(records.bands, store=store, limits=limits))
    | "by band" >> beam.GroupByKey()
    | "candidates" >> beam.FlatMap(records.candidates)
    | "each once" >> beam.Distinct()
    | "by first" >> beam.GroupByKey()
    | "compare" >> beam.FlatMap(functools.partial(records.compare, store=store))
  )
  write(sums, "sums")
  write(examined | "lean" >> beam.Map(functools.partial(records.lean, store=store)), "found")
  write(pairs, "pairs")


def _content(file: dict[str, Any]) -> str:
  return file["sha256"]


def _find(directory: Any, skip: tuple) -> dict[str, Any]:
  """Every file under the folder by its relative name, sorted."""
  if "://" not in str(directory):
    return sources.find_files(Path(directory), skip)
  left_out = [str(each) for each in skip if each]
  found = {}
  for root, _, files in directory.walk():
    for path in (root / file for file in files):
      if not any(str(path) == each or str(path).startswith(each.rstrip("/") + "/") for each in left_out):
        found[str(path.relative_to(directory))] = path
  if not found:
    raise ValueError(f"no files in {directory}")
  return dict(sorted(found.items()))


def _beam(flags: list[str]) -> tuple[Any, Any]:
  """Beam and its options of `flags`. ValueError without the extra, and for flags that nobody knows."""
  try:
    logging.disable(logging.WARNING)  # it warns of clients that are needed nowhere here
    import apache_beam as beam
    import imagehash  # noqa: F401
    import scenedetect  # noqa: F401
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ValueError(f"curation needs {error.name}: pip install 'vdt[curation]'") from None
  finally:
    logging.disable(logging.NOTSET)
  parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
  for kind in PipelineOptions.__subclasses__():
    kind._add_argparse_args(parser)
  own = [action.option_strings[-1] for action in _parser()._actions if action.option_strings]
  runner = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
  runner.add_argument("--runner", default=RUNNER)
  local = runner.parse_known_args(flags)[0].runner in LOCAL
  for flag in (each.partition("=")[0] for each in parser.parse_known_args(flags)[1]):
    close = difflib.get_close_matches(flag, own, 1, 0.8)
    if close or local:  # another runner may have flags of its own
      raise ValueError(f"unknown flag {flag}" + (f"; did you mean {close[0]}?" if close else ""))
  if not any(flag.partition("=")[0] == "--runner" for flag in flags):
    flags = [f"--runner={RUNNER}", *flags]
  return beam, PipelineOptions(flags)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="curate",
    allow_abbrev=False,
    description="Chooses the clips of a folder of videos that are worth training on.",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="\n\n".join(map(inspect.getdoc, (shots.Cutting, Limits)))
    + "\n\nAll other flags go to Apache Beam: --runner, --project, --direct_num_workers, ...",
  )
  parser.add_argument("directory", help="the folder, searched recursively")
  parser.add_argument("--out", required=True, help="the folder of the result; a curation that is there goes on")
  for kind in (shots.Cutting, Limits):
    for field in dataclasses.fields(kind):
      flag = "--" + field.name.replace("_", "-")
      parser.add_argument(flag, type=field.type, default=field.default, help=f"default {field.default:g}")
  parser.add_argument(
    "--captions", help="CSV or JSONL with file, caption and maybe label; else files beside the videos"
  )
  tests = parser.add_mutually_exclusive_group()
  tests.add_argument("--test-sources", help="text file naming the files of the split test, one a line")
  tests.add_argument(
    "--test-fraction", type=float, default=0.1, help="of the files, by a hash of the name (default 0.1)"
  )
  return parser


def main(argv: list[str] | None = None) -> None:
  args, flags = _parser().parse_known_args(argv)
  if stray := [
    flag for flag, before in zip(flags, ["", *flags]) if not flag.startswith("-") and not before.startswith("--")
  ]:
    raise ValueError(f"unexpected argument {stray[0]!r}")
  cutting, limits = (
    kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})
    for kind in (shots.Cutting, Limits)
  )
  options = args.captions, args.test_sources, args.test_fraction, tuple(flags)
  manifest = curate(args.directory, args.out, cutting, limits, *options)
  totals = manifest["totals"]
  for note in manifest["warnings"]:
    print(f"warning: {note}", file=sys.stderr)
  for kind, count in (manifest["files"] | manifest["filters"]).items():
    print(f"  {kind}: {count} {'files' if kind in manifest['files'] else 'clips'} dropped", file=sys.stderr)
  clips = ", ".join(f"{count} {split}" for split, count in totals["clips"].items())
  print(f"{args.out}: {clips} clips, {totals['seconds']:.0f} s, of {totals['files']} files (sheet.html shows samples)")


if __name__ == "__main__":
  from data_pipelines import curate as module  # so that workers find its functions under this name, not __main__

  try:
    module.main()
  except (ValueError, OSError) as error:
    sys.exit(f"curate: {error}")
  except KeyboardInterrupt:
    print("interrupted: run the same command again to go on", file=sys.stderr)
    sys.exit(130)
