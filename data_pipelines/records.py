"""What the workers of a curation do with a file and with pairs of clips, and where they keep what they found.

All of it is a function of the file's content and the settings, so that work that is done twice gives the same.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from data_pipelines import duplicates, shots
from data_pipelines.filters import Limits

HEAVY = ("thumbs", "hashes", "pictures")


def put(path: Any, text: str) -> None:
  """Writes a file so that it is there whole or not at all."""
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  temporary.write_text(text)
  temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class Store:
  """A folder of records, one for each content and settings of cutting; made with `at`."""

  folder: str
  cutting: shots.Cutting

  @classmethod
  def at(cls, root: Any, cutting: shots.Cutting) -> "Store":
    settings = [shots.VERSION, dataclasses.asdict(cutting)]
    folder = root / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    remote = "://" in str(folder)
    return cls(str(folder) if remote else os.path.abspath(folder), cutting)

  def path(self, sha256: str) -> Any:
    return epath.Path(self.folder) / f"{sha256}.json"

  def load(self, sha256: str) -> dict[str, Any]:
    """The record of a content; the last ones are kept."""
    return _load(os.fspath(self.path(sha256)))

  def prefix(self, kind: str) -> str:
    return f"{self.folder}/{kind}"

  def lines(self, kind: str) -> list[Any]:
    """What the pipeline has written of a kind, in one order, whatever the number of workers."""
    texts = (path.read_text() for path in epath.Path(self.folder).glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for line in sorted(line for text in texts for line in text.splitlines())]

  def clear(self, *kinds: str) -> None:
    """Removes what the pipeline has written of these kinds."""
    for path in (path for kind in kinds for path in epath.Path(self.folder).glob(f"{kind}-*.jsonl")):
      path.unlink()

  def sweep(self) -> None:
    """Removes what killed runs have left half done."""
    for path in epath.Path(self.folder).glob("*.tmp"):
      path.unlink()
    for path in epath.Path(self.folder).glob("beam-temp-*"):
      path.rmtree()


@functools.lru_cache(maxsize=64)
def _load(path: str) -> dict[str, Any]:
  return json.loads(epath.Path(path).read_text())


def checksum(file: dict[str, Any]) -> dict[str, Any]:
  """A file with its sha256 and bytes, or the reason why it has none."""
  path = epath.Path(os.fsdecode(file["path"]))
  found: dict[str, Any] = {"sha256": None, "bytes": 0}
  try:
    if not ("://" in str(path) or os.path.isfile(path)):  # a pipe would be waited for
      return file | found | {"reason": "unreadable: not a regular file"}
    with path.open("rb") as stream:
      digest = hashlib.sha256()
      while block := stream.read(1 << 20):
        digest.update(block)
        found["bytes"] += len(block)
  except OSError as error:
    return file | found | {"reason": f"unreadable: {error.strerror or error}"}
  found["sha256"] = digest.hexdigest()
  return file | found | ({} if found["bytes"] else {"reason": "empty file"})


def line(row: Any) -> str:
  """A row as JSON, without the path of a file, which may be no text."""
  return json.dumps({key: value for key, value in row.items() if key != "path"} if isinstance(row, dict) else row)


def usable(file: dict[str, Any]) -> bool:
  return "reason" not in file


def first(files: Iterable[dict[str, Any]]) -> dict[str, Any]:
  """The one of several files of equal content that is used: of the split test, then with a caption, then by name."""
  return min(files, key=lambda file: (file["split"] != "test", not file["captioned"], file["file"]))


def examine(group: tuple[str, Iterable[dict[str, Any]]], store: Store) -> tuple[str, str]:
  """Makes the record of a content where there is none yet. Returns (sha256, split of the file that is used)."""
  sha256, file = group[0], first(group[1])
  if not store.path(sha256).exists():
    with _local(os.fsdecode(file["path"])) as path:
      put(store.path(sha256), json.dumps(shots.examine(path, store.cutting)))
  return sha256, file["split"]


def lean(examined: tuple[str, str], store: Store) -> dict[str, Any]:
  """A record without what clips are compared by, and without pictures."""
  sha256, _ = examined
  record = store.load(sha256)
  clips = [{key: value for key, value in clip.items() if key not in HEAVY} for clip in record["clips"]]
  return record | {"sha256": sha256, "clips": clips}


def bands(examined: tuple[str, str], store: Store, limits: Limits) -> Iterator[tuple[Any, Any]]:
  """The bands of the clips that are within the limits: ((place, bits), (rest of the hash, clip)).

  A clip is (sha256, place in its file, split).
  """
  sha256, split = examined
  for place, clip in enumerate(store.load(sha256)["clips"]):
    if limits.reason(clip) is None:
      for band, rest in duplicates.keys(clip).items():
        yield band, (rest, (sha256, place, split))


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
  """A file as one of this machine's, copied if it is not."""
  if "://" not in path:
    yield path
    return
  with tempfile.NamedTemporaryFile(suffix=os.path.splitext(path)[1]) as copy:
    with epath.Path(path).open("rb") as stream:
      shutil.copyfileobj(stream, copy)
    copy.flush()
    yield copy.name


def candidates(bucket: tuple[Any, Iterable[Any]]) -> Iterator[tuple[Any, Any]]:
  yield from duplicates.neighbours(bucket[1])


def compare(group: tuple[Any, Iterable[Any]], store: Store) -> Iterator[list[Any]]:
  """Yields [clip, clip, seconds from the start of the first to that of the second] for those that show the same."""
  one, others = group
  mine = store.load(one[0])["clips"][one[1]]
  for other in sorted(others):
    theirs = store.load(other[0])["clips"][other[1]]
    start = duplicates.alike(mine, theirs, border=one[2] != other[2], same_file=one[0] == other[0])
    if start is not None:
      yield [list(one), list(other), start]
