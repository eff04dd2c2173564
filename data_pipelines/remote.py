"""Data sets in buckets of Google Cloud Storage, by a mirror of each on this machine.

array_record can read buckets itself, but asks for one record after the other, each by a request of its own, and does
not name it when what is there is replaced. gcsfs finds credentials as Google's tools do, and honours
STORAGE_EMULATOR_HOST.
"""

import base64
import collections
import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tqdm

BLOCK = 2**24  # bytes of a request
PATIENCE = 300.0  # seconds for which a request that fails is sent again
THREADS = 8  # files at once


class File(NamedTuple):
  """What the bucket says of an object: its path there, its size, and as hex digits its checksums, as far as known."""

  path: str
  size: int
  md5: str
  crc32c: str

  @property
  def name(self) -> str:
    return self.path.rpartition("/")[2]


@functools.cache
def local(directory: str, cache: str | None = None, mark: str = "dataset_info.json") -> str:
  """Where the data set at `directory` can be read: there, or if that is gs://..., a mirror of it in the folder `cache`.

  The mirror is named by a hash of what the bucket says of its files, so that a set that was changed is copied anew,
  beside the old one. Each file is copied once a machine, whatever the number of processes, and checked; what a killed
  process has copied is kept. The bucket is asked once a process, so that a process reads one copy. cache: by default
  the environment's VDT_CACHE, or ~/.cache/vdt. mark: the file that a whole data set has.

  Raises:
    FileNotFoundError: no such bucket or folder, or no data set in it.
    PermissionError: the bucket may not be read, or the cache not be written.
    ValueError: the set is not whole, or changed while it was copied, or its mirror has since; another scheme; no gcsfs.
    OSError: the disk is full, the bucket did not answer for PATIENCE seconds, or a file arrives damaged.
  """
  if "://" not in directory:
    return directory
  if not directory.startswith("gs://"):
    raise ValueError(f"{directory}: only local folders and gs:// are read; copy it to one of them")
  try:
    import gcsfs
    import tenacity  # noqa: F401
  except ImportError:
    raise ValueError(f"{directory} is read through gcsfs and tenacity: pip install 'vdt[gcs]'") from None
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of whatever is raised
  directory = directory.rstrip("/")
  bucket = gcsfs.GCSFileSystem()
  files = _listed(bucket, directory, mark)
  identity = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
  root = Path(cache or os.environ.get("VDT_CACHE") or "~/.cache/vdt").expanduser() / directory.removeprefix("gs://")
  mirror = root / identity
  if not mirror.exists():
    try:
      with _locked(root):
        if not mirror.exists():
          _copy(bucket, directory, files, mirror, mark)
    except OSError as error:
      if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(
          error.errno,
          f"{root} has no room for {directory} ({sum(file.size for file in files) / 1e9:.3g} GB): make some, or set "
          f"data.cache or VDT_CACHE to a folder on a larger disk; what was copied is kept",
        ) from error
      raise
  for file in files:
    if not (mirror / file.name).exists() or (mirror / file.name).stat().st_size != file.size:
      raise ValueError(f"{mirror / file.name} is not as it was copied from {directory}: remove {mirror}")
  return str(mirror)


def _listed(bucket: Any, directory: str, mark: str) -> list[File]:
  """The files of a data set. FileNotFoundError or ValueError if it is none, or not whole."""
  digits = lambda text: base64.b64decode(text).hex() if text else ""
  entries = _ask(directory, threading.Event(), bucket.ls, directory, detail=True, refresh=True)
  files = sorted(
    File(entry["name"], int(entry["size"]), digits(entry.get("md5Hash")), digits(entry.get("crc32c")))
    for entry in entries
    if entry["type"] == "file" and not entry["name"].endswith("/")
  )
  if mark not in {file.name for file in files}:
    raise FileNotFoundError(
      f"no data set at {directory} (there is no {mark}): make one with `vdt ingest`, or `vdt encode`, and upload its "
      f"folder, or set data.data_dir"
    )
  shards = [found.groups() for file in files if (found := re.fullmatch(r"(.+)-\d{5,}-of-(\d{5,})", file.name))]
  for (stem, whole), count in collections.Counter(shards).items():
    if count != int(whole):
      raise ValueError(f"{directory} is not whole, {stem} has {count} of {int(whole)} shards: finish its upload")
  return files


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
  """One process of this machine at a time."""
  root.mkdir(parents=True, exist_ok=True)
  with open(root / "lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"waiting for another process that copies to {root}", file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _copy(bucket: Any, directory: str, files: list[File], mirror: Path, mark: str) -> None:
  """Copies `files` beside `mirror`, which is renamed to it when all are there and the bucket has not changed since."""
  partial = mirror.with_name(mirror.name + ".partial")
  for other in mirror.parent.glob("*.partial"):
    if other != partial:  # of a set that is no longer in the bucket
      shutil.rmtree(other)
  partial.mkdir(exist_ok=True)
  there = sum(path.stat().st_size for path in partial.iterdir())
  size = sum(file.size for file in files)
  if shutil.disk_usage(partial).free < size - there:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  stop = threading.Event()
  bar = tqdm.tqdm(desc=f"copying {directory}", total=size, initial=there, unit="B", unit_scale=True, mininterval=1)
  with bar, concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    try:
      for done in concurrent.futures.as_completed(
        [pool.submit(_copy_file, bucket, file, partial / file.name, stop, bar.update) for file in files]
      ):
        done.result()
    except BaseException as error:
      stop.set()
      pool.shutdown(cancel_futures=True)
      if isinstance(error, (FileNotFoundError, Damaged)) and _listed(bucket, directory, mark) != files:
        raise ValueError(f"{directory} was changed while it was copied: start again when that is finished") from error
      raise
  if _listed(bucket, directory, mark) != files:
    raise ValueError(f"{directory} was changed while it was copied: start again when that is finished")
  os.rename(partial, mirror)


class Damaged(OSError):
  """What arrived is not what the bucket says it holds."""


def _copy_file(bucket: Any, file: File, target: Path, stop: threading.Event, progress: Callable[[int], Any]) -> None:
  """Copies an object to `target` by way of a part that is gone on with; one that is wrong in the end, once more."""
  part = target.with_name(target.name + ".part")
  for _ in range(2):
    if target.exists():
      return
    with open(part, "ab", buffering=0) as out:
      while (start := out.tell()) < file.size and not stop.is_set():
        end = min(start + BLOCK, file.size)
        block = _ask(f"gs://{file.path}", stop, bucket.cat_file, file.path, start=start, end=end)
        progress(out.write(block))
        if len(block) < end - start:  # the object has become shorter: bodies that are cut off are errors of their own
          break
      os.fsync(out.fileno())
    if stop.is_set():
      return
    if _whole(part, file):
      os.rename(part, target)
    else:
      progress(-part.stat().st_size)
      part.unlink()
  if not target.exists():
    raise Damaged(f"gs://{file.path} arrives otherwise than its checksum says, twice: upload it again")


def _whole(path: Path, file: File) -> bool:
  """Whether `path` has the size and the checksum that the bucket says."""
  if path.stat().st_size != file.size:
    return False
  with open(path, "rb") as content:
    if file.md5:
      return hashlib.file_digest(content, "md5").hexdigest() == file.md5
    if file.crc32c:  # alone, of objects that were put together from parts
      import google_crc32c

      checksum = google_crc32c.Checksum()
      for _ in checksum.consume(content, BLOCK):
        pass
      return checksum.digest().hex() == file.crc32c
  return True


def _ask(url: str, stop: threading.Event, call: Callable, *args: Any, **kwargs: Any) -> Any:
  """What `call` returns, asked again for PATIENCE seconds, at growing intervals, where it fails for the moment."""
  import google.auth.exceptions
  import tenacity
  from gcsfs.retry import HttpError, is_retriable

  retrying = tenacity.Retrying(
    retry=tenacity.retry_if_exception(
      lambda error: is_retriable(error) or isinstance(error, (ConnectionError, TimeoutError))
    ),
    stop=tenacity.stop_after_delay(PATIENCE) | tenacity.stop_when_event_set(stop),
    wait=tenacity.wait_random_exponential(max=30),
    sleep=tenacity.sleep_using_event(stop),
    reraise=True,
  )
  try:
    return retrying(call, *args, **kwargs)
  except FileNotFoundError:
    raise FileNotFoundError(f"no bucket or folder {url}: set data.data_dir to where the data set is") from None
  except Exception as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    if is_retriable(error) or isinstance(error, (ConnectionError, TimeoutError)):
      raise OSError(f"{url} could not be read for {PATIENCE:g} s ({reason}): start again to go on") from error
    denied = isinstance(error, google.auth.exceptions.GoogleAuthError) or reason.startswith("Forbidden")
    if denied or (isinstance(error, HttpError) and str(error.code) in ("401", "403")):
      raise PermissionError(
        f"{url} may not be read ({reason}): log in with `gcloud auth application-default login`, or give this "
        f"machine's service account the role Storage Object Viewer on the bucket"
      ) from error
    raise OSError(f"{url} cannot be read: {reason}") from error
