r"""A folder of video files becomes a TFDS data set of clips, sharded array_record, split by file.

  python -m data_pipelines.ingest FOLDER --out data/mine --size 64 --fps 8 --frames 16 --captions captions.csv

Each file's clips are kept in OUT.partial until all are done, so that a run that was cut off goes on where it was, and
gives the same records. OUT holds dataset_info.json, the shards and manifest.json, which accounts for every file of the
folder: what it gave, or why it was dropped.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import tqdm

from data_pipelines import sound, sources, video

MANIFEST = "manifest.json"
TALLEST_JPEG = 65500  # pixels


@dataclasses.dataclass(frozen=True)
class Settings:
  """Clips of `frames` frames of `size` (h, w) at `fps` frames per second; one starts every `stride` frames.

  sound: whether the sound of each clip is kept; where a file has none, it is silent. beside: sizes of other buckets; a
  file whose pictures are nearer in shape to one of them is left to it.
  """

  size: tuple[int, int] = (64, 64)
  fps: float = 8.0
  frames: int = 16
  stride: int | None = None  # None: `frames`, so that clips do not overlap
  format: str = "jpeg"
  quality: int = 95  # of jpeg
  beside: tuple[tuple[int, int], ...] = ()
  sound: bool = False

  def __post_init__(self):
    object.__setattr__(self, "fps", float(self.fps))
    if self.stride is None:
      object.__setattr__(self, "stride", self.frames)
    if min(*self.size, *sum(self.beside, ()), self.frames, self.stride) < 1 or not 0 < self.fps <= 1000:
      raise ValueError(f"size, frames and stride must be at least 1, fps above 0 and at most 1000: {self}")
    if self.format not in ("jpeg", "png") or not 1 <= self.quality <= 100:
      raise ValueError(f"format must be jpeg or png and quality 1 to 100, not {self.format} and {self.quality}")
    if self.format == "jpeg" and self.frames * self.size[0] > TALLEST_JPEG:
      raise ValueError(
        f"frames x height is {self.frames * self.size[0]}, a JPEG holds {TALLEST_JPEG}: use --format png"
      )

  def recipe(self) -> dict[str, Any]:
    """All that decides what is stored, as JSON has it."""
    fields = dataclasses.asdict(self) | {"size": list(self.size), "beside": [list(size) for size in self.beside]}
    return {name: value for name, value in fields.items() if value not in ([], False)}  # as before there were these

  def elsewhere(self, shape: float) -> tuple[int, int] | None:
    """The size of the bucket that pictures of this width over height belong to, if it is another: the nearest in shape,
    of two as near the wider one, in the set of each alike; of sizes of one shape, each has them."""
    wide = lambda size: size[1] / size[0]
    off = lambda size: (round(abs(math.log(shape / wide(size))), 9), -wide(size))
    best = min((self.size, *self.beside), key=off)
    return best if wide(best) != wide(self.size) else None

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
  clips: str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Makes the data set `out` from the videos under `directory` and returns its manifest.

  captions: a CSV or JSONL file with `file` (relative to `directory`), `caption` and optionally `label`; a file it
    does not name is captioned by its name. test_sources: a text file that names the files of the split `test`, one a
    line; without it a hash of the name sends `test_fraction` of the files there. workers: threads (None: one a core).
  clips: the clips.jsonl of a curation of `directory`: clips are made within those stretches alone, and caption, label
    and split are taken from it.

  Raises:
    FileNotFoundError: no such folder, captions file, list of test files or of clips.
    ValueError: nothing usable in the folder, a bad captions file, an unknown test file, `out` holds something else, or
      a file is not the one that was curated.
    OSError: `out` cannot be written; finished files are kept.
  """
  directory, out = Path(directory), Path(out)
  if not directory.is_dir():
    raise FileNotFoundError(f"no folder {directory}")
  if not 0 <= test_fraction < 1:
    raise ValueError(f"test_fraction must be at least 0 and below 1, not {test_fraction}")
  if out.exists() and not (out / MANIFEST).exists() and not (out.is_dir() and not any(out.iterdir())):
    raise ValueError(f"{out} is there and is not an ingested data set: choose another --out or remove it")
  if clips and (captions or test_sources):
    raise ValueError("clips come with their captions and splits: leave out --captions and --test-sources")
  names = sources.find_files(directory, skip=(out, _partial(out), captions, test_sources, clips))
  chosen = sources.read_clips(clips, names) if clips else {}
  if clips:
    names, rows, notes = {name: names[name] for name in chosen}, {name: row.row for name, row in chosen.items()}, []
    tests = {name for name, row in chosen.items() if row.split == "test"}
  else:
    rows, notes = sources.read_captions(captions, names) if captions else ({}, [])
    tests = sources.choose_tests(names, test_sources, test_fraction)
  if workers is not None and workers < 1:
    raise ValueError(f"workers must be at least 1, not {workers}")
  workers = workers or len(os.sched_getaffinity(0))
  entries = sources.make_entries(names, rows, tests, workers)
  for entry in entries:
    if clips:
      entry["spans"] = chosen[entry["file"]].spans
      if entry["sha256"] != chosen[entry["file"]].sha256:
        raise ValueError(f"{entry['file']} is not the file that {clips} was made of: curate the folder again")
  recipe = settings.recipe()
  keys = ("file", "sha256", "split", "caption", "label", *(["spans"] if clips else []))
  known = [[entry.get(key) for key in keys] for entry in entries]
  fingerprint = _digest([recipe, known])
  if (out / MANIFEST).exists():
    manifest = json.loads((out / MANIFEST).read_text())
    if manifest["fingerprint"] == fingerprint:
      print(f"{out} is already made from these files with these settings: nothing to do", file=sys.stderr)
      return manifest
    raise ValueError(f"{out} was made from other files or settings: choose another --out or remove it")
  if all("reason" in entry for entry in entries):
    sources.report(entries, notes)
    raise ValueError(f"no usable video among the {len(entries)} files of {directory}")
  try:
    with _locked(_partial(out)) as partial:
      stage = partial / _digest(recipe)[:16]
      stage.mkdir(exist_ok=True)
      _decode(names, entries, settings, stage, workers)
      sources.report(entries, notes)
      manifest = sources.make_manifest(entries, notes, recipe, fingerprint, directory)
      _assemble(entries, manifest, stage, partial / "build")
      (partial / "build" / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
      os.rename(partial / "build", out)
      shutil.rmtree(partial)
  except OSError as error:
    raise OSError(
      f"cannot write {out}: {error.strerror or error} (run the same command again: finished files are kept)"
    ) from error
  return manifest


def _partial(out: Path) -> Path:
  return out.with_name(out.name + ".partial")


def _stem(entry: dict[str, Any]) -> str:
  """What the staged clips of a file are called."""
  return entry["sha256"] + (f"-{_digest(entry['spans'])[:16]}" if "spans" in entry else "")


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
        arguments = names[entry["file"]], settings, stage / _stem(entry), entry.get("spans"), stop
        waiting[pool.submit(_stage, *arguments)] = entry
    done = concurrent.futures.as_completed(waiting)
    for future in tqdm.tqdm(done, "decoding", len(waiting), unit="file", mininterval=1):
      waiting[future].update(future.result())
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)


def _stage(
  path: Path, settings: Settings, target: Path, spans: list[list[float]] | None, stop: threading.Event
) -> dict[str, Any]:
  """Writes the clips of a file one after the other to TARGET.clips, then their lengths and its facts to TARGET.json.

  The second file appears last and at once: where it exists, the work is done, and only read. spans: the stretches that
  clips are made within, in seconds; None is the whole file.
  """
  record, clips = target.with_suffix(".json"), target.with_suffix(".clips")
  if record.exists():
    return json.loads(record.read_text())
  progress, lengths, longest, found, warnings = video.Progress(), [], 0, {}, []
  decoded, heard = 0, None
  if settings.sound:
    try:
      heard = sound.track(path)
      warnings += ["silent: it has no sound track"] if heard is None else []
    except (ValueError, OSError) as error:
      warnings.append(f"silent: {error}")
    heard = np.zeros(0, np.int16) if heard is None else heard
  with open(clips, "wb") as file:
    for begin, end in spans or [(0.0, math.inf)]:
      progress, count = video.Progress(), 0
      window = collections.deque(maxlen=settings.frames)
      try:
        for picture in _pictures(path, settings, progress, begin, end):
          if stop.is_set():
            raise InterruptedError("stopped")
          if other := settings.elsewhere(progress.shape):
            raise video.VideoError(path, f"another bucket: its shape is nearer to {other[0]}x{other[1]}")
          window.append(picture)
          count += 1
          start = count - settings.frames
          if start >= 0 and start % settings.stride == 0:
            lengths.append(file.write(settings.encode(np.stack(window))))
            if settings.sound:
              length = sound.samples(settings.frames, settings.fps)
              file.write(sound.cut(heard, begin + start / settings.fps, length).tobytes())
      except (ValueError, av.error.FFmpegError, cv2.error) as error:
        found["reason"] = error.reason if isinstance(error, video.VideoError) else f"cannot be converted: {error}"
      longest, decoded = max(longest, count), decoded + progress.decoded
      warnings += [warning for warning in progress.warnings if warning not in warnings]
  if not lengths:
    found.setdefault("reason", f"too short: {longest} frames at {settings.fps:g} fps, a clip has {settings.frames}")
  elif "reason" in found:
    warnings.append(found.pop("reason"))
  if progress.probe:
    found |= {key: getattr(progress.probe, key) for key in ("codec", "height", "width", "fps")}
    found |= {"duration": round(progress.duration, 6), "decoded": decoded}
  found |= {"warnings": warnings, "clips": len(lengths), "lengths": lengths}
  temporary = target.with_suffix(".tmp")
  temporary.write_text(json.dumps(found))
  os.replace(temporary, record)
  return found


def _pictures(
  path: Path, settings: Settings, progress: video.Progress, begin: float, end: float
) -> Iterator[np.ndarray]:
  """The frames of a file between two times; what fails in reading it is its own fault, not that of the disk."""
  try:
    yield from video.frames(path, settings.fps, settings.size, progress, begin, end)
  except OSError as error:
    if isinstance(error, av.error.FFmpegError):
      raise
    raise video.VideoError(path, f"cannot be read: {error.strerror or error}") from error


def _assemble(entries: list[dict], manifest: dict, stage: Path, build: Path) -> None:
  """Writes the staged clips as a TFDS data set to the directory `build`."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import tensorflow_datasets as tfds

  from data_pipelines.simulated import LocalInfo

  settings = manifest["settings"]
  frames, (height, width) = settings["frames"], settings["size"]
  kept = sound.samples(frames, settings["fps"]) if settings.get("sound") else 0
  volume = sum(length + 2 * kept for entry in entries for length in entry.get("lengths", ()))
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
      if kept:
        features["sound"] = tfds.features.Tensor(shape=(kept,), dtype=np.int16, encoding="bytes")
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
        with open(stage / f"{_stem(entry)}.clips", "rb") as file:
          for index, length in enumerate(entry["lengths"]):
            name = f"{entry['file']}#{index}"
            clip = {"video": io.BytesIO(file.read(length)), "id": name, "fps": settings["fps"]}
            if kept:
              clip["sound"] = np.frombuffer(file.read(2 * kept), np.int16)
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
  parser.add_argument(
    "--beside",
    type=lambda text: tuple(map(_size, text.split(","))),
    default=(),
    help="HEIGHTxWIDTH,... of other buckets: files that are nearer to one of these in shape are left to it",
  )
  parser.add_argument("--sound", action="store_true", help="keep the sound of each clip, 16,000 samples a second")
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
  parser.add_argument(
    "--clips", help="the clips.jsonl that `curate` made of the folder; it has captions and splits too"
  )
  parser.add_argument("--workers", type=int, help="threads (default: one a core)")
  args = parser.parse_args(argv)
  settings = Settings(args.size, args.fps, args.frames, args.stride, args.format, args.quality, args.beside, args.sound)
  chosen = args.captions, args.test_sources, args.test_fraction, args.workers, args.clips
  manifest = ingest(args.directory, args.out, settings, *chosen)
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
    print("interrupted: run the same command again to go on", file=sys.stderr)
    sys.exit(130)
