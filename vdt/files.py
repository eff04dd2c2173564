"""Files that are there whole or not at all, on disks and in buckets."""

import contextlib
import os
import pathlib
import uuid
from typing import Any

from etils import epath


def put(path: str | pathlib.Path, content: Any, over: bool = True) -> None:
  """Writes a file that appears whole or not at all, whoever else writes the same; over: also if it is there already.

  OSError where it cannot be written.
  """
  path = pathlib.Path(path)
  new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(new, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    if over:
      os.replace(new, path)
    else:
      with contextlib.suppress(FileExistsError):
        os.link(new, path)
  except OSError as error:
    raise OSError(
      f"{path.parent} cannot be written ({error.strerror or error}): run the same command again, what is whole is kept"
    ) from error
  finally:
    new.unlink(missing_ok=True)


def rewrite(path: epath.Path, content: str | bytes) -> None:
  """Puts a new file in the place of `path` in one step: a process killed here leaves the old one or the new one."""
  content = content.encode() if isinstance(content, str) else content
  if remote(path):  # an object is there whole, or not at all
    path.write_bytes(content)
    return
  new = path.with_name(path.name + ".new")
  new.write_bytes(content)
  new.replace(path)


def append(path: epath.Path, text: str) -> None:
  """Adds to the end of a file. An object in a bucket cannot grow, and is written anew."""
  if remote(path):
    path.write_text((path.read_text() if path.exists() else "") + text)
    return
  with path.open("a") as file:
    file.write(text)


def remote(path: str | os.PathLike) -> bool:
  """Whether it is in a bucket (gs://...)."""
  return "://" in os.fspath(path)
