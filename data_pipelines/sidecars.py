"""Captions that lie beside videos: clip.txt, clip.json, clip.mp4.txt or clip.mp4.json for clip.mp4."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

KINDS = (".txt", ".json")
LARGEST = 1 << 20  # bytes


def read_sidecars(names: dict[str, Path]) -> tuple[dict[str, dict[str, str]], dict[str, str], list[str]]:
  """Captions, and maybe labels, by video; the video of each sidecar; what is odd.

  A text file is a caption, or several, one a line; JSON is an object with `caption`, and maybe `label`, of which it is
  the same for all videos that a sidecar stands beside. What cannot be read is told, and left out.
  """
  beside: dict[str, list[str]] = {}
  for name in names:
    path = PurePosixPath(name)
    if path.suffix.lower() not in KINDS:
      for stem in {name, str(path.with_suffix(""))}:
        beside.setdefault(stem, []).append(name)
  rows: dict[str, dict[str, str]] = {}
  owners: dict[str, str] = {}
  notes = []
  for name in names:
    path = PurePosixPath(name)
    videos = beside.get(str(path.with_suffix("")), []) if path.suffix.lower() in KINDS else []
    if not videos:
      continue
    owners[name] = videos[0]
    try:
      row = _read(names[name])
    except (OSError, ValueError) as error:
      notes.append(f"{name} is beside {videos[0]}, and no caption: {error}")
      continue
    for video in videos:
      if rows.setdefault(video, row) != row:
        notes.append(f"{name} differs from another caption beside {video}: the first by name is used")
  return rows, owners, notes


def _read(path: Any) -> dict[str, str]:
  with path.open("rb") as file:
    data = file.read(LARGEST + 1)
  if len(data) > LARGEST:
    raise ValueError(f"larger than {LARGEST} bytes")
  text = data.decode("utf-8-sig")
  if path.suffix.lower() == ".txt":
    if not (lines := [" ".join(line.split()) for line in text.splitlines() if line.strip()]):
      raise ValueError("empty")
    return {"caption": "\n".join(lines)}
  found = json.loads(text)
  if not isinstance(found, dict) or not isinstance(found.get("caption"), str):
    raise ValueError('JSON has to be an object with "caption", a text')
  label = found.get("label")
  return {"caption": " ".join(found["caption"].split())} | (
    {} if label in (None, "") else {"label": " ".join(str(label).split())}
  )
