"""The sample sheet of a curation: one page, offline, of what was kept and of what each filter dropped."""

import hashlib
from pathlib import Path
from typing import Any

import jinja2

from data_pipelines import records

KEPT, DROPPED, FILES = 48, 24, 50  # samples of the kept, of each filter, and names of dropped files of a kind


def render(manifest: dict[str, Any], store: records.Store) -> str:
  """The page as HTML, with its pictures inside. Samples are drawn by a hash of their names."""
  clips = [
    entry | clip | {"place": place}
    for entry in manifest["sources"]
    for place, clip in enumerate(entry.get("clips", ()))
  ]
  kept = {
    split: [clip for clip in clips if "reason" not in clip and clip["split"] == split] for split in ("train", "test")
  }
  dropped = {
    kind: [clip for clip in clips if clip.get("reason", "").startswith(kind + ":")] for kind in manifest["filters"]
  }
  files = {
    kind: [entry for entry in manifest["sources"] if entry.get("reason", "").partition(":")[0] == kind]
    for kind in manifest["files"]
  }
  groups = [(f"Kept, {split}", rows, _drawn(rows, KEPT)) for split, rows in kept.items() if rows]
  groups += [(f"Dropped: {kind}", rows, _drawn(rows, DROPPED)) for kind, rows in dropped.items()]
  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
  )
  template = environment.from_string((Path(__file__).parent / "templates" / "sheet.html.j2").read_text())
  return template.render(
    manifest=manifest,
    totals=manifest["totals"],
    groups=groups,
    files=files,
    most=FILES,
    pictures=lambda sha256, place: store.load(sha256)["clips"][place]["pictures"],
  )


def _drawn(clips: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
  """At most `count` of the clips, the same ones every time, in their order."""
  draw = lambda clip: hashlib.sha256(f"{clip['file']} {clip['place']}".encode()).hexdigest()
  chosen = {(clip["file"], clip["place"]) for clip in sorted(clips, key=draw)[:count]}
  return [clip for clip in clips if (clip["file"], clip["place"]) in chosen]
