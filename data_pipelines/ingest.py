r"""A folder of video files becomes a TFDS data set of clips, sharded array_record, split by file.

  python -m data_pipelines.ingest FOLDER --out data/mine --size 64 --fps 8 --frames 16 --captions captions.csv

Each file's clips are kept in OUT.partial until all are done, so that a run that was cut off goes on where it was, and
gives the same bytes. OUT holds dataset_info.json, the shards and manifest.json, which accounts for every file of the
folder: what it gave, or why it was dropped.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import av
import cv2
import numpy as np
import tqdm

from data_pipelines import video

MANIFEST = "manifest.json"
MOST_CLASSES = 1000  # more distinct captions than this are no classes
TALLEST_JPEG = 65500  # pixels


@dataclasses.dataclass(frozen=True)
class Settings:
  """Clips of `frames` frames of `size` (h, w) at `fps` frames per second; one starts every `stride` frames."""

  size: tuple[int, int] = (64, 64)
  fps: float = 8.0
  frames: int = 16
  stride: int | None = None  # None: `frames`, so that clips do not overlap
  format: str = "jpeg"
  quality: int = 95  # of jpeg

  def __post_init__(self):
    object.__setattr__(self, "fps", float(self.fps))
    if self.stride is None:
      object.__setattr__(self, "stride", self.frames)
    if min(*self.size, self.frames, self.stride) < 1 or not 0 < self.fps <= 1000:
      raise ValueError(f"size, frames and stride must be at least 1, fps above 0 and at most 1000: {self}")
    if self.format not in ("jpeg", "png") or not 1 <= self.quality <= 100:
      raise ValueError(f"format must be jpeg or png and quality 1 to 100, not {self.format} and {self.quality}")
    if self.format == "jpeg" and self.frames * self.size[0] > TALLEST_JPEG:
      raise ValueError(
        f"frames x height is {self.frames * self.size[0]}, a JPEG holds {TALLEST_JPEG}: use --format png"
      )

  def encode(self, clip: np.ndarray) -> bytes:
    """uint8 (f, h, w, 3) RGB as one tall image of f*h rows."""
    tall = clip.reshape(-1, self.size[1], 3)[..., ::-1]
    options = [cv2.IMWRITE_JPEG_QUALITY, self.quality] if self.format == "jpeg" else []
    return cv2.imencode("." + self.format, tall, options)[1].tobytes()


def ingest(
  directory: str | os.PathLike,
  out: str | os.PathLike,
  settings: Settings = Settings(),
  captions: str | os.PathLike | None = None,
  test_sources: str | os.PathLike | None = None,
  test_fraction: float = 0.1,
  workers: int | None = None,
) -> dict[str, Any]:
  """Makes the data set `out` from the videos under `directory` and returns its manifest.

  captions: a CSV or JSONL file with `file` (relative to `directory`), `caption` and optionally `label`; a file it
    does not name is captioned by its name. test_sources: a text file that names the files of the split `test`, one a
    line; without it a hash of the name sends `test_fraction` of the files there. workers: threads (None: one a core).

  Raises:
    FileNotFoundError: no such folder, captions file or list of test files.
    ValueError: nothing usable in the folder, a bad captions file, an unknown test file, `out` holds something else.
    OSError: `out` cannot be written; finished files are kept.
  """
  directory, out = Path(directory), Path(out)
  if not directory.is_dir():
    raise FileNotFoundError(f"no folder {directory}")
  if not 0 <= test_fraction < 1:
    raise ValueError(f"test_fraction must be at least 0 and below 1, not {test_fraction}")
  if out.exists() and not (out / MANIFEST).exists() and not (out.is_dir() and not any(out.iterdir())):
    raise ValueError(f"{out} is there and is not an ingested data set: choose another --out or remove it")
  names = _files(directory, skip=(out, _partial(out), captions, test_sources))
  rows, notes = _captions(captions, names) if captions else ({}, [])
  tests = _tests(test_sources, names) if test_sources else {n for n in names if _unit(n) < test_fraction}
  labelled = any("label" in row for row in rows.values())
  workers = workers or len(os.sched_getaffinity(0))
  entries = _entries(names, rows, tests, labelled, workers)
  recipe = dataclasses.asdict(settings) | {"size": list(settings.size)}
  known = [[entry.get(key) for key in ("file", "sha256", "split", "caption", "label")] for entry in entries]
  fingerprint = _digest([recipe, known])
  if (out / MANIFEST).exists():
    manifest = json.loads((out / MANIFEST).read_text())
    if manifest["fingerprint"] == fingerprint:
      _say(f"{out} is already made from these files with these settings: nothing to do")
      return manifest
    raise ValueError(f"{out} was made from other files or settings: choose another --out or remove it")
  if all("reason" in entry for entry in entries):
    _report(entries, notes)
    raise ValueError(f"no usable video among the {len(entries)} files of {directory}")
  try:
    with _locked(_partial(out)) as partial:
      stage = partial / _digest(recipe)[:16]
      stage.mkdir(exist_ok=True)
      _decode(names, entries, settings, stage, workers)
      _report(entries, notes)
      manifest = _manifest(entries, notes, recipe, fingerprint, directory)
      _assemble(entries, manifest, stage, partial / "build")
      (partial / "build" / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
      os.rename(partial / "build", out)
      shutil.rmtree(partial)
  except OSError as error:
    raise OSError(
      f"cannot write {out}: {error.strerror or error} (run the same command again: finished files are kept)"
    ) from error
  return manifest


def dataset_dir(out: str | os.PathLike) -> Path:
  """The directory for `tfds.builder_from_directory`: `out` itself."""
  return Path(out)


def _partial(out: Path) -> Path:
  return out.with_name(out.name + ".partial")


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _unit(name: str) -> float:
  """A number in [0, 1) that only depends on the name."""
  return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def _files(directory: Path, skip: tuple) -> dict[str, Path]:
  """Every file under the folder by its relative name, sorted, without what this program reads or writes there."""

  def fail(error: OSError):
    raise error

  skipped = {Path(path).absolute() for path in skip if path}
  found = {}
  for root, folders, files in os.walk(directory, onerror=fail):
    folders[:] = [folder for folder in folders if (Path(root) / folder).absolute() not in skipped]
    links = [folder for folder in folders if (Path(root) / folder).is_symlink()]  # not followed, but accounted for
    for path in (Path(root) / file for file in files + links):
      if path.absolute() not in skipped:
        name = os.fsencode(path.relative_to(directory)).decode(errors="backslashreplace")
        found[name] = path
  if not found:
    raise ValueError(f"no files in {directory}")
  return dict(sorted(found.items()))


def _captions(path: str | os.PathLike, names: dict[str, Path]) -> tuple[dict[str, dict[str, str]], list[str]]:
  """The rows of a captions file by file name, and what is odd about them."""
  try:
    text = Path(path).read_text(encoding="utf-8-sig")
    if Path(path).suffix in (".jsonl", ".json"):
      lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
      lines = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
  except FileNotFoundError:
    raise FileNotFoundError(f"no captions file {path}") from None
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(f"cannot read the captions of {path} as CSV or JSONL: {error}") from None
  rows = {}
  for number, line in enumerate(lines, 1):
    if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in ("file", "caption")):
      raise ValueError(f"{path}, entry {number}: needs the columns file and caption, both text")
    name = str(PurePosixPath(line["file"].strip()))
    row = {"caption": line["caption"].strip()}
    if line.get("label") not in (None, ""):
      row["label"] = _line(str(line["label"]))
    if rows.setdefault(name, row) != row:
      raise ValueError(f"{path}, entry {number}: {name} was captioned before, differently")
  unlabelled = [name for name, row in rows.items() if "label" not in row]
  if 0 < len(unlabelled) < len(rows):
    raise ValueError(f"{path}: label every file or none; without a label: {_some(unlabelled)}")
  missing = [name for name in rows if name not in names]
  if len(missing) == len(rows):
    raise ValueError(f"{path} names none of the files of the folder (its names are relative to the folder)")
  return rows, [f"{len(missing)} captions are for files that do not exist: {_some(missing)}"] if missing else []


def _tests(path: str | os.PathLike, names: dict[str, Path]) -> set[str]:
  """The names listed in a text file, one relative path or file name a line."""
  try:
    listed = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
  except FileNotFoundError:
    raise FileNotFoundError(f"no list of test files {path}") from None
  except (OSError, ValueError) as error:
    raise ValueError(f"cannot read the list of test files {path}: {error}") from None
  found = {each: {name for name in names if each in (name, PurePosixPath(name).name)} for each in listed}
  unknown = [each for each in listed if not found[each]]
  if unknown:
    raise ValueError(f"{path} names files that are not in the folder: {_some(unknown)}")
  return set().union(*found.values())


def _line(text: str) -> str:
  """Text as the name of a class: TFDS keeps one a line, and drops empty ones."""
  return " ".join(text.split()) or "(none)"


def _some(names: list[str]) -> str:
  return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _entries(names, rows, tests, labelled, workers) -> list[dict[str, Any]]:
  """What is known of each file before it is decoded; those with a `reason` are dropped."""

  def checksum(path: Path) -> tuple[str | None, int, str | None]:
    if not path.is_file():
      return None, 0, "unreadable: not a regular file"
    try:
      with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size, None
    except OSError as error:
      return None, 0, f"unreadable: {error.strerror}"

  first, entries = {}, []
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    sums = tqdm.tqdm(pool.map(checksum, names.values()), "checksums", len(names), unit="file", mininterval=1)
    for name, (sha256, size, reason) in zip(names, sums):
      words = PurePosixPath(name).stem.replace("_", " ").replace("-", " ").split()
      row = rows.get(name, {"caption": " ".join(words)})
      entry = {"file": name, "sha256": sha256, "bytes": size, "split": "test" if name in tests else "train", **row}
      if not reason and not size:
        reason = "empty file"
      elif not reason and labelled and "label" not in row:
        reason = "no label: the captions file labels others, not this one"
      elif not reason and first.setdefault(sha256, name) != name:
        reason = f"duplicate: the same content as {first[sha256]}"
      entries.append(entry | {"reason": reason} if reason else entry)
  return entries


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[Path]:
  """The directory of unfinished work, for this process alone."""
  partial.mkdir(parents=True, exist_ok=True)
  with open(partial / "lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f"another process is working in {partial}: wait for it or choose another --out") from None
    yield partial


def _decode(names: dict[str, Path], entries: list[dict], settings: Settings, stage: Path, workers: int) -> None:
  """Stages the clips of every file that is not dropped, and adds what was found out to its entry."""
  stop = threading.Event()
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    waiting = {}
    for entry in entries:
      if "reason" not in entry:
        arguments = names[entry["file"]], settings, stage / entry["sha256"], stop
        waiting[pool.submit(_stage, *arguments)] = entry
    done = concurrent.futures.as_completed(waiting)
    for future in tqdm.tqdm(done, "decoding", len(waiting), unit="file", mininterval=1):
      waiting[future].update(future.result())
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)


def _stage(path: Path, settings: Settings, target: Path, stop: threading.Event) -> dict[str, Any]:
  """Writes the clips of a file one after the other to TARGET.clips, then their lengths and its facts to TARGET.json.

  The second file appears last and at once: where it exists, the work is done, and only read.
  """
  record, clips = target.with_suffix(".json"), target.with_suffix(".clips")
  if record.exists():
    return json.loads(record.read_text())
  progress, lengths, count = video.Progress(), [], 0
  window = collections.deque(maxlen=settings.frames)
  found = {}
  with open(clips, "wb") as file:
    try:
      for picture in video.frames(path, settings.fps, settings.size, progress):
        if stop.is_set():
          raise InterruptedError("stopped")
        window.append(picture)
        count += 1
        start = count - settings.frames
        if start >= 0 and start % settings.stride == 0:
          lengths.append(file.write(settings.encode(np.stack(window))))
    except (ValueError, av.error.FFmpegError, cv2.error) as error:
      found["reason"] = error.reason if isinstance(error, video.VideoError) else f"cannot be converted: {error}"
  if not lengths:
    found.setdefault("reason", f"too short: {count} frames at {settings.fps:g} fps, a clip has {settings.frames}")
  elif "reason" in found:
    progress.warnings.append(found.pop("reason"))
  if progress.probe:
    found |= {key: getattr(progress.probe, key) for key in ("codec", "height", "width", "fps")}
    found |= {"duration": round(progress.duration, 6), "decoded": progress.decoded}
  found |= {"warnings": progress.warnings, "clips": len(lengths), "lengths": lengths}
  temporary = target.with_suffix(".tmp")
  temporary.write_text(json.dumps(found))
  os.replace(temporary, record)
  return found


def _report(entries: list[dict], notes: list[str]) -> None:
  for note in notes:
    _say(f"warning: {note}")
  for entry in entries:
    if "reason" in entry:
      _say(f"dropped {entry['file']}: {entry['reason']}")
    for warning in entry.get("warnings", ()):
      _say(f"warning: {entry['file']}: {warning}")


def _manifest(entries, notes, recipe, fingerprint, directory) -> dict[str, Any]:
  """The account of all files. Names of classes are decided here, from the files that gave clips."""
  used = [entry for entry in entries if "reason" not in entry]
  if not used:
    raise ValueError(f"no usable video among the {len(entries)} files of {directory}")
  clips = collections.Counter()
  for entry in used:
    clips[entry["split"]] += entry["clips"]
  if not clips["train"]:
    raise ValueError("every usable file is in the split test: name fewer in --test-sources or lower --test-fraction")
  if not clips["test"]:
    notes.append("no file is in the split test: name some in --test-sources or raise --test-fraction")
    _say(f"warning: {notes[-1]}")
  single = "label" not in used[0] and len({_line(entry["caption"]) for entry in used}) > MOST_CLASSES
  for entry in used:
    entry["label"] = "video" if single else entry.get("label", _line(entry["caption"]))
  reasons = collections.Counter(entry["reason"].partition(":")[0] for entry in entries if "reason" in entry)
  return {
    "fingerprint": fingerprint,
    "settings": recipe,
    "totals": {"files": len(entries), "used": len(used), "dropped": len(entries) - len(used), "clips": dict(clips)},
    "reasons": dict(sorted(reasons.items())),
    "warnings": notes,
    "labels": sorted({entry["label"] for entry in used}),
    "sources": [{key: value for key, value in entry.items() if key != "lengths"} for entry in entries],
  }


def _assemble(entries: list[dict], manifest: dict, stage: Path, build: Path) -> None:
  """Writes the staged clips as a TFDS data set to the directory `build`."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import tensorflow_datasets as tfds

  from data_pipelines.simulated import LocalInfo

  settings = manifest["settings"]
  frames, (height, width) = settings["frames"], settings["size"]
  volume = sum(sum(entry.get("lengths", ())) for entry in entries)
  shutil.rmtree(build, ignore_errors=True)
  if shutil.disk_usage(stage).free < 2 * volume:  # TFDS shuffles in files beside the result
    raise OSError(f"{2 * volume / 1e6:.0f} MB must be free to assemble the data set")

  class Ingested(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Clips of a folder of video files; manifest.json beside this tells what each file gave."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      features = {
        "video": tfds.features.Image(shape=(frames * height, width, 3), encoding_format=settings["format"]),
        "caption": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=manifest["labels"]),
        "id": tfds.features.Text(),
        "fps": np.float32,
      }
      return LocalInfo(
        builder=self,
        description=self.__doc__,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(**settings, fingerprint=manifest["fingerprint"]),
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in sorted(manifest["totals"]["clips"])}

    def _generate_examples(self, split: str):
      for entry in entries:
        if "reason" in entry or entry["split"] != split:
          continue
        with open(stage / f"{entry['sha256']}.clips", "rb") as file:
          for index, length in enumerate(entry["lengths"]):
            name = f"{entry['file']}#{index}"
            clip = {"video": io.BytesIO(file.read(length)), "id": name, "fps": settings["fps"]}
            yield name, clip | {"caption": entry["caption"], "label": entry["label"]}

  root = build.with_name("tfds")
  shutil.rmtree(root, ignore_errors=True)
  builder = Ingested(data_dir=os.fspath(root), file_format="array_record")
  tfds.disable_progress_bar()
  with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(
      download_dir=downloads, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
  os.rename(builder.data_dir, build)


def _size(text: str) -> tuple[int, int]:
  sides = [int(side) for side in text.split("x")]
  if len(sides) not in (1, 2):
    raise ValueError(text)
  return sides[0], sides[-1]


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="ingest", description="Makes a data set of clips from a folder of videos.")
  parser.add_argument("directory", help="the folder, searched recursively")
  parser.add_argument("--out", required=True, help="the directory of the data set, which must not exist yet")
  parser.add_argument("--size", type=_size, default=(64, 64), help="pixels: a side, or HEIGHTxWIDTH (default 64)")
  parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the clips (default 8)")
  parser.add_argument("--frames", type=int, default=16, help="frames in a clip (default 16)")
  parser.add_argument("--stride", type=int, help="frames between the starts of clips (default: --frames)")
  parser.add_argument("--format", choices=("jpeg", "png"), default="jpeg", help="of the stored clips (default jpeg)")
  parser.add_argument("--quality", type=int, default=95, help="of jpeg, 1 to 100 (default 95)")
  parser.add_argument("--captions", help="CSV or JSONL with file, caption and maybe label; else file names are used")
  tests = parser.add_mutually_exclusive_group()
  tests.add_argument("--test-sources", help="text file naming the files of the split test, one a line")
  tests.add_argument(
    "--test-fraction", type=float, default=0.1, help="of the files, by a hash of the name (default 0.1)"
  )
  parser.add_argument("--workers", type=int, help="threads (default: one a core)")
  args = parser.parse_args(argv)
  settings = Settings(args.size, args.fps, args.frames, args.stride, args.format, args.quality)
  manifest = ingest(
    args.directory, args.out, settings, args.captions, args.test_sources, args.test_fraction, args.workers
  )
  totals = manifest["totals"]
  clips = ", ".join(f"{count} {split}" for split, count in sorted(totals["clips"].items()))
  print(f"{args.out}: {clips} clips from {totals['used']} files; {totals['dropped']} dropped ({MANIFEST} says why)")


if __name__ == "__main__":
  from data_pipelines import ingest as module  # so that TFDS notes this name, not __main__

  try:
    module.main()
  except (ValueError, OSError) as error:
    sys.exit(f"ingest: {error}")
  except KeyboardInterrupt:
    _say("interrupted: run the same command again to go on")
    sys.exit(130)
