"""The account of a curation: every file and clip, what is kept, and the reason for what is not."""

import collections
import dataclasses
import hashlib
import json
from pathlib import PurePosixPath
from typing import Any

from data_pipelines import duplicates, records
from data_pipelines.filters import Limits

Clip = tuple[str, int]


def settle(
  files: list[dict[str, str]],
  store: records.Store,
  limits: Limits,
  rows: dict[str, dict[str, str]],
  owners: dict[str, str],
  notes: list[str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The kept clips, in order of file and time, and the manifest, from what the pipeline left in `store`.

  files: file and split. rows: captions, maybe labels, by file; a file without is captioned by its name. owners: the
  video of each file that is a caption.
  """
  sums = {each["file"]: each for each in store.lines("sums")}
  same: dict[str, list[dict[str, Any]]] = {}
  for each in sums.values():
    if records.usable(each):
      same.setdefault(each["sha256"], []).append(each)
  used = {sha256: records.first(group) for sha256, group in same.items()}
  found = {each.pop("sha256"): each for each in store.lines("found")}
  losers = _losers(store.lines("pairs"), used, found)
  entries, kept = [], []
  for file in files:
    known = sums[file["file"]]
    words = PurePosixPath(file["file"]).stem.replace("_", " ").replace("-", " ").split()
    row = rows.get(file["file"], {"caption": " ".join(words)})
    entry = {"file": file["file"], **{key: known[key] for key in ("sha256", "bytes", "split")}, **row}
    entries.append(entry)
    if "reason" in known:
      entry["reason"] = known["reason"]
      continue
    if used[known["sha256"]]["file"] != file["file"]:
      entry["reason"] = f"duplicate: the same content as {used[known['sha256']]['file']}"
      continue
    record = found[known["sha256"]]
    entry |= {key: value for key, value in record.items() if key != "clips"}
    if "reason" in record:
      continue
    entry["clips"] = []
    for place, clip in enumerate(record["clips"]):
      about = {key: clip[key] for key in ("start", "end", "first", "last", "measures")}
      reason, twin = limits.reason(clip), losers.get((known["sha256"], place))
      if twin:
        other = found[twin[0]]["clips"][twin[1]]
        reason = f"near-duplicate: of {used[twin[0]]['file']}, {other['start']:.2f} to {other['end']:.2f} s"
      same = {"same as": [twin[0], twin[1]]} if twin else {}
      entry["clips"].append(about | ({"reason": reason} if reason else {}) | same)
      if not reason:
        kept.append({"file": entry["file"], "sha256": entry["sha256"], **about, "split": entry["split"], **row})
  without = sorted({line["file"] for line in kept if "label" not in line})
  if kept and 0 < len(without) < len({line["file"] for line in kept}):
    notes.append(f"some kept files have a label and {len(without)} have none, such as {without[0]}: label all or none")
  settings = {"cutting": dataclasses.asdict(store.cutting), "limits": dataclasses.asdict(limits)}
  known = [[entry.get(key) for key in ("file", "sha256", "split", "caption", "label")] for entry in entries]
  count = lambda each: dict(sorted(collections.Counter(row["reason"].partition(":")[0] for row in each).items()))
  clips = [clip for entry in entries for clip in entry.get("clips", ())]
  splits = collections.Counter(line["split"] for line in kept)
  totals = {
    "files": len(entries),
    "dropped files": sum("reason" in entry for entry in entries),
    "found clips": len(clips),
    "clips": {split: splits[split] for split in ("test", "train")},
    "seconds": round(sum(line["end"] - line["start"] for line in kept), 3),
    "cuts": sum(len(entry.get("cuts", ())) for entry in entries),
  }
  manifest = {
    "fingerprint": hashlib.sha256(json.dumps([settings, known], sort_keys=True).encode()).hexdigest(),
    "settings": settings,
    "totals": totals,
    "files": count(entry for entry in entries if "reason" in entry),
    "filters": count(clip for clip in clips if "reason" in clip),
    "warnings": notes,
    "captions": owners,
    "sources": entries,
  }
  return kept, manifest


def _losers(pairs: list[Any], used: dict[str, Any], found: dict[str, Any]) -> dict[Clip, Clip]:
  """Each clip that another one is kept for.

  Kept is that of the split test, then that of more pixels, of the longer shot (in half seconds), of a file with fewer
  cuts, with more bytes a second, and the first by name.
  """

  def rank(clip: Clip) -> tuple:
    file, record = used[clip[0]], found[clip[0]]
    about = record["clips"][clip[1]]
    size = -about["measures"]["height"] * about["measures"]["width"], -round(2 * about["shot"])
    file_rank = len(record["cuts"]), -file["bytes"] / record["duration"], file["file"]
    return file["split"] != "test", *size, *file_rank, clip[1]

  return duplicates.losers(((tuple(one[:2]), tuple(other[:2])) for one, other, _ in pairs), rank)
