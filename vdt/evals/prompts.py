"""Do samples show what their captions say? A judge of classical vision, that has learned the words on real clips."""

import dataclasses
import re
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, first, pixels, real_videos
from vdt.evals.tracking import Track, track

RADII, HARMONICS, ANGLES = 8, 6, 48
REACH = 2.2  # of the rings that a shape is seen by, in radii of a disc of its area
APART = 0.25  # of the frames may show no object, or several


@dataclasses.dataclass
class Prompts:
  """Rows: what a caption says, and all of it. Columns: the share of `samples` of which the judge says the same, with
  its 95 % interval `low`, `high` (Wilson 1927); of `real` clips; of samples against captions of others (`shuffled`).

  says: pairs of what is said (one of LOOKS) and the words for it; of each a caption has one. judged_by: training clips
  that the judge learns the words on. Clips of which it sees no object, or several, count as wrong. ValueError for a
  caption without one of the words, or for an unknown look.
  """

  says: tuple[tuple[str, tuple[str, ...]], ...]
  count: int = 64
  judged_by: int = 1024
  split: str = "test"
  every: int = 0

  def __post_init__(self):
    if unknown := {name for name, _ in self.says} - {*LOOKS}:
      raise ValueError(f"evals of prompts know no {', '.join(sorted(unknown))}: choose from {', '.join(LOOKS)}")

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    data, known = run.data(self.split), run.data("train")
    learned = first(known, min(self.judged_by, len(known)))
    judge = Judge.learn(pixels(learned["video"]), self.words(learned["caption"]))
    said = self.words(first(data, self.count)["caption"])
    seen = judge(run.sample(self.count, split=self.split)[:, 0])
    real = judge(real_videos(data, self.count))
    other = {name: np.roll(words, 1) for name, words in said.items()}
    right = {name: [seen[name] == said[name], real[name] == said[name], seen[name] == other[name]] for name in said}
    right["all"] = [np.all(each, 0) for each in zip(*right.values())]
    table = {}
    for name, (samples, clips, shuffled) in right.items():
      low, high = wilson(int(samples.sum()), self.count)
      shares = {"samples": samples.mean(), "low": low, "high": high, "real": clips.mean(), "shuffled": shuffled.mean()}
      table[name] = {column: float(value) for column, value in shares.items()}
    return table

  def words(self, captions: np.ndarray) -> dict[str, np.ndarray]:
    """Of each caption, the number of the first word that it has, by what is said."""
    found = {}
    for name, words in self.says:
      pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in words))
      heard = [pattern.search(caption) for caption in captions.tolist()]
      if None in heard:
        missing = captions[heard.index(None)]
        raise ValueError(f"the caption {str(missing)!r} says no {name}: one of {', '.join(words)}")
      found[name] = np.array([words.index(word.group()) for word in heard])
    return found


class Discriminant(NamedTuple):
  """Linear discriminant analysis (Fisher 1936): the class of the nearest mean, in units of the spread within."""

  means: Float[np.ndarray, "k d"]
  map: Float[np.ndarray, "d d"]

  @classmethod
  def learn(cls, features: Float[np.ndarray, "n d"], labels: np.ndarray) -> "Discriminant":
    means = np.stack([features[labels == each].mean(0) for each in range(labels.max() + 1)])
    spread = np.cov((features - means[labels]).T).reshape(features.shape[1], -1)
    spread += 1e-3 * np.trace(spread) / len(spread) * np.eye(len(spread))
    values, vectors = np.linalg.eigh(spread)
    return cls(means, vectors * np.maximum(values, 1e-12) ** -0.5)

  def __call__(self, features: Float[np.ndarray, "n d"]) -> np.ndarray:
    apart = (features[:, None] - self.means) @ self.map
    return np.square(apart).sum(-1).argmin(1)


class Judge(NamedTuple):
  """What words look like, by what is said."""

  known: dict[str, Discriminant]

  @classmethod
  def learn(cls, videos: Float[np.ndarray, "b f h w c"], words: dict[str, np.ndarray]) -> "Judge":
    """From clips in [-1, 1] and the number of each word. ValueError where none of them shows one object."""
    tracks = [track(video) for video in videos]
    clear = np.array([alone(each) for each in tracks])
    if not clear.any():
      raise ValueError(
        "no single object was found in real clips: prompts are judged by bright objects on a plain background"
      )
    rows = [(video, each) for video, each, good in zip(videos, tracks, clear) if good]
    return cls(
      {name: Discriminant.learn(np.stack([LOOKS[name](*row) for row in rows]), words[name][clear]) for name in words}
    )

  def __call__(self, videos: Float[np.ndarray, "b f h w c"]) -> dict[str, np.ndarray]:
    """The number of the word for each clip, -1 where it shows no object, or several."""
    tracks = [track(video) for video in videos]
    clear = np.array([alone(each) for each in tracks])
    found = {name: np.full(len(videos), -1) for name in self.known}
    rows = [(video, each) for video, each, good in zip(videos, tracks, clear) if good]
    for name, known in self.known.items():
      if rows:
        found[name][clear] = known(np.stack([LOOKS[name](*row) for row in rows]))
    return found


def alone(tracks: Track) -> bool:
  """Whether nearly all frames show one object."""
  return bool((tracks.count != 1).mean() <= APART)


def colour(video: Float[np.ndarray, "f h w c"], tracks: Track) -> Float[np.ndarray, " c"]:
  """The object's, against the background."""
  return np.nanmedian(tracks.colour[:, 0], axis=0)


def direction(video: Float[np.ndarray, "f h w c"], tracks: Track) -> Float[np.ndarray, "2"]:
  """Of its motion: a unit vector."""
  there = np.flatnonzero(np.isfinite(tracks.position[:, 0, 0]))
  slope = np.polyfit(there, tracks.position[there, 0], 1)[0]
  return slope / max(np.linalg.norm(slope), 1e-6)


def shape(video: Float[np.ndarray, "f h w c"], tracks: Track) -> Float[np.ndarray, " n"]:
  """How it covers rings around its centre: the mean of each, and the strength of its harmonics around it, averaged over
  frames. Turning changes nothing, nor does size: a ring's radius is in units of a disc of the same area."""
  background = np.median(video, axis=(0, 1, 2))
  angles = 2 * np.pi * np.arange(ANGLES) / ANGLES
  found = []
  for frame in np.flatnonzero(np.isfinite(tracks.position[:, 0, 0])):
    ink = (video[frame] - background) @ tracks.colour[frame, 0] / np.square(tracks.colour[frame, 0]).sum()
    radius = REACH * np.sqrt(tracks.area[frame, 0] / np.pi) * (np.arange(RADII) + 0.5) / RADII
    around = np.multiply.outer(radius, np.stack([np.cos(angles), np.sin(angles)], -1)) + tracks.position[frame, 0]
    rings = cv2.remap(ink.astype(np.float32), around.astype(np.float32), None, cv2.INTER_LINEAR)
    found.append(np.abs(np.fft.rfft(rings, axis=1))[:, : HARMONICS + 1] / ANGLES)
  return np.mean(found, axis=0).ravel()


LOOKS = {"colour": colour, "shape": shape, "direction": direction}


def wilson(right: int, count: int) -> tuple[float, float]:
  """The 95 % interval of a share."""
  z, share = 1.96, right / count
  middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
  half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
  return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))
