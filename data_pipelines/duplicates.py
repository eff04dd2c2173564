"""Clips that show the same: candidates by bands of perceptual hashes, compared frame by frame, one of each kept.

Copies that were re-encoded, resized, renamed or trimmed are found; mirrored, cropped or retimed ones are not.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from data_pipelines.shots import GRID, THUMB

BANDS = 2  # of a hash's 64 bits: hashes that differ in fewer bits than this have an equal band
CROWD = 64  # clips in a bucket that each is compared with, so that a picture common to many costs no square of them
LEAST = int(GRID)  # frames in common, or all of the shorter clip
PHASES = (0.0, 0.25, 0.5, 0.75)  # of a step of the grid: copies that are trimmed begin between two
ALIKE = ((3.0, 0.8), (6.0, 0.95))  # at most so far apart (grey levels), and changing so much alike (correlation)
GAINS = (0.7, 1.4)  # of contrast
STILL, STILL_APART = 1.0, 2.0  # grey levels of change below which nothing happens; then frames alone are compared


def keys(clip: dict[str, Any]) -> dict[tuple[int, int], int]:
  """(band, its bits) of all hashes of a clip, each once, with the least of the rest of a hash that has it."""
  width, found = 64 // BANDS, {}
  for value in sorted(int(each, 16) for each in clip["hashes"]):
    for band in range(BANDS):
      bits = value >> band * width & (1 << width) - 1
      found.setdefault((band, bits), value & ~(((1 << width) - 1) << band * width))
  return found


def neighbours(bucket: Iterable[tuple[int, Any]]) -> Iterator[tuple[Any, Any]]:
  """Pairs of the clips of a bucket, of (rest of the hash, clip): each with the next CROWD, in the order of the rest."""
  row = [name for _, name in sorted(bucket)]
  for place, name in enumerate(row):
    for other in row[place + 1 : place + 1 + CROWD]:
      yield min(name, other), max(name, other)


def alike(one: dict[str, Any], other: dict[str, Any], border: bool, same_file: bool) -> float | None:
  """The seconds at which `other` begins, counted from the start of `one`, if they show the same; else None.

  That is a stretch, at one offset in time, of half of the shorter clip; across the border of two splits a second is
  enough, if something moves in it. Clips of one file need movement too: a fixed camera's are otherwise all alike.
  """
  mine, theirs = (frames(each) for each in (one, other))
  shorter = min(len(mine), len(theirs))
  found = None
  for phase in PHASES:
    between = theirs if phase == 0 else (1 - phase) * theirs[:-1] + phase * theirs[1:]
    for offset in range(-len(between) + 1, len(mine)):
      begin, end = max(0, offset), min(len(mine), offset + len(between))
      half = end - begin >= (shorter - 1) / 2
      if end - begin < max(1, min(LEAST, shorter - 1)) or not (half or border):
        continue
      x, y = mine[begin:end], between[begin - offset : end - offset]
      x, y = x - x.mean(), y - y.mean()
      y = y * np.clip((x * y).sum() / ((y * y).sum() + 1e-9), *GAINS)  # brighter, or of more contrast
      distance = float(np.abs(x - y).mean())
      if distance > ALIKE[-1][0]:
        continue
      x, y = x - x.mean(axis=0), y - y.mean(axis=0)
      change = float(np.sqrt((x**2).mean())), float(np.sqrt((y**2).mean()))
      correlation = float((x * y).mean()) / (change[0] * change[1] + 1e-9)
      good = any(distance <= far and correlation >= least for far, least in ALIKE)
      if max(change) < STILL:
        good = half and not same_file and distance <= STILL_APART
      if good and (found is None or distance < found[0]):
        found = distance, (offset - phase) / GRID
  return None if found is None else found[1]


def frames(clip: dict[str, Any]) -> np.ndarray:
  """The frames that a clip is compared by, (n, THUMB * THUMB) of float32."""
  pixels = np.frombuffer(base64.b64decode(clip["thumbs"]), np.uint8)
  return pixels.reshape(-1, THUMB * THUMB).astype(np.float32)


def losers(pairs: Iterable[tuple[Any, Any]], rank: Callable[[Any], Any]) -> dict[Any, Any]:
  """Each clip that is dropped, to the kept one that it shows the same as.

  From the lowest `rank` on a clip is kept if none is that it is paired with.
  """
  others: dict[Any, list[Any]] = {}
  for one, other in pairs:
    others.setdefault(one, []).append(other)
    others.setdefault(other, []).append(one)
  dropped: dict[Any, Any] = {}
  kept: set[Any] = set()
  for name in sorted(others, key=rank):
    winners = sorted(kept.intersection(others[name]), key=rank)
    if winners:
      dropped[name] = winners[0]
    else:
      kept.add(name)
  return dropped
