"""The account of the files of a folder: names, checksums, captions, splits, and what each gave or why it was dropped.

An entry is a dict for one file: file, sha256, bytes, split, caption, maybe label, and `reason` where it is dropped.
Decoding adds what it found out; the manifest is made of all entries.
"""

import collections
import concurrent.futures
import csv
import hashlib
import io
import json
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tqdm

MOST_CLASSES = 1000  # more distinct captions than this are no classes


def find_files(directory: Path, skip: tuple) -> dict[str, Path]:
  """Every file under the folder by its relative name, sorted, without the paths in `skip` (None is none), and without
  data sets that were made of it.

  Raises:
    ValueError: the folder holds no files.
    OSError: a folder cannot be listed.
  """

  def fail(error: OSError):
    raise error

  skipped = {Path(path).absolute() for path in skip if path}
  found = {}
  for root, folders, files in os.walk(directory, onerror=fail):
    if "dataset_info.json" in files and Path(root) != directory:
      folders.clear()
      continue
    folders[:] = [folder for folder in folders if (Path(root) / folder).absolute() not in skipped]
    links = [folder for folder in folders if (Path(root) / folder).is_symlink()]  # not followed, but accounted for
    for path in (Path(root) / file for file in files + links):
      if path.absolute() not in skipped:
        name = os.fsencode(path.relative_to(directory)).decode(errors="backslashreplace")
        found[name] = path
  if not found:
    raise ValueError(f"no files in {directory}")
  return dict(sorted(found.items()))


def read_captions(path: str | os.PathLike, names: dict[str, Path]) -> tuple[dict[str, dict[str, str]], list[str]]:
  """The rows of a CSV or JSONL file (`caption`, maybe `label`) by file name, and what is odd about them. A file of
  several rows has so many captions, one a line.

  Raises:
    FileNotFoundError: no such captions file.
    ValueError: it cannot be read as CSV or JSONL, a row without file or caption, two labels for one file, labels for
      some rows only, or no row for any file in `names`.
  """
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
  rows: dict[str, dict[str, str]] = {}
  for number, line in enumerate(lines, 1):
    if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in ("file", "caption")):
      raise ValueError(f"{path}, entry {number}: needs the columns file and caption, both text")
    name = str(PurePosixPath(line["file"].strip()))
    caption, label = " ".join(line["caption"].split()), line.get("label")
    row = {"caption": caption} | ({} if label in (None, "") else {"label": _line(str(label))})
    known = rows.setdefault(name, row)
    if known.get("label") != row.get("label"):
      raise ValueError(f"{path}, entry {number}: {name} was labelled before, differently")
    if caption and caption not in known["caption"].split("\n"):
      known["caption"] = f"{known['caption']}\n{caption}" if known["caption"] else caption
  unlabelled = [name for name, row in rows.items() if "label" not in row]
  if 0 < len(unlabelled) < len(rows):
    raise ValueError(f"{path}: label every file or none; without a label: {_some(unlabelled)}")
  missing = [name for name in rows if name not in names]
  if len(missing) == len(rows):
    raise ValueError(f"{path} names none of the files of the folder (its names are relative to the folder)")
  return rows, [f"{len(missing)} captions are for files that do not exist: {_some(missing)}"] if missing else []


class Chosen(NamedTuple):
  """What a curation chose of a file: its checksum, split, `caption` and maybe `label`, and stretches in seconds."""

  sha256: str
  split: str
  row: dict[str, str]
  spans: list[list[float]]


def read_clips(path: str | os.PathLike, names: dict[str, Path]) -> dict[str, Chosen]:
  """The clips.jsonl of a curation, by file.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is no list of clips, names files that are not in `names`, or has labels for some of them only.
  """
  found: dict[str, Chosen] = {}
  try:
    for line in Path(path).read_text().splitlines():
      clip = json.loads(line)
      row = {key: clip[key] for key in ("caption", "label") if key in clip}
      fresh = Chosen(clip["sha256"], clip["split"], row, [])
      chosen = found.setdefault(clip["file"], fresh)
      if chosen[:3] != fresh[:3] or not 0 <= clip["start"] < clip["end"]:
        raise ValueError(f"{clip['file']} has clips of several splits or captions, or that end before they start")
      chosen.spans.append([clip["start"], clip["end"]])
  except FileNotFoundError:
    raise FileNotFoundError(f"no list of clips {path}") from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is no clips.jsonl of `vdt curate`: {error}") from None
  if not found:
    raise ValueError(f"{path} names no clips: curation kept none")
  if missing := [name for name in found if name not in names]:
    raise ValueError(f"{path} names files that are not in the folder: {_some(missing)}")
  unlabelled = [name for name, chosen in found.items() if "label" not in chosen.row]
  if 0 < len(unlabelled) < len(found):
    raise ValueError(f"{path}: label every file or none, and curate again; without a label: {_some(unlabelled)}")
  return dict(sorted(found.items()))


def choose_tests(names: dict[str, Path], listed: str | os.PathLike | None, fraction: float) -> set[str]:
  """The files of the split `test`: those that the text file `listed` names, else `fraction` of all by a hash.

  A fraction above 0 of two files or more is at least one file.

  Raises:
    FileNotFoundError: no such list.
    ValueError: the list cannot be read, or names files that are not in the folder.
  """
  if listed:
    return _listed(listed, names)
  chosen = {name for name in names if _unit(name) < fraction}
  return chosen or ({min(names, key=_unit)} if fraction > 0 and len(names) > 1 else set())


def _listed(path: str | os.PathLike, names: dict[str, Path]) -> set[str]:
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


def _unit(name: str) -> float:
  """A number in [0, 1) that only depends on the name."""
  return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def make_entries(
  names: dict[str, Path], rows: dict[str, dict[str, str]], tests: set[str], workers: int
) -> list[dict[str, Any]]:
  """What is known of each file before it is decoded; those with a `reason` are dropped.

  rows: as of `read_captions`, {} without a captions file; tests: as of `choose_tests`; workers: threads.
  """

  def checksum(path: Path) -> tuple[str | None, int, str | None]:
    if not path.is_file():
      return None, 0, "unreadable: not a regular file"
    try:
      with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size, None
    except OSError as error:
      return None, 0, f"unreadable: {error.strerror}"

  labelled = any("label" in row for row in rows.values())
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


def report(entries: list[dict[str, Any]], notes: list[str]) -> None:
  """Tells the user on stderr what was dropped, and what is odd."""
  for note in notes:
    _say(f"warning: {note}")
  for entry in entries:
    if "reason" in entry:
      _say(f"dropped {entry['file']}: {entry['reason']}")
    for warning in entry.get("warnings", ()):
      _say(f"warning: {entry['file']}: {warning}")


def make_manifest(
  entries: list[dict[str, Any]], notes: list[str], recipe: dict[str, Any], fingerprint: str, directory: Path
) -> dict[str, Any]:
  """The account of all files. Names of classes are decided here, from the files that gave clips.

  Adds a `label` to each entry that is used, and a warning to `notes` where no file is in the split test.

  Raises:
    ValueError: no file is usable, or all usable ones are in the split test.
  """
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
  named = [_line(entry["caption"].partition("\n")[0]) for entry in used]
  single = "label" not in used[0] and len({*named}) > MOST_CLASSES
  for entry, name in zip(used, named):
    entry["label"] = "video" if single else entry.get("label", name)
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


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def _line(text: str) -> str:
  """Text as the name of a class: TFDS keeps one a line, and drops empty ones."""
  return " ".join(text.split()) or "(none)"


def _some(names: list[str]) -> str:
  return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
