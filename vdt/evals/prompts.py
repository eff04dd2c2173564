"""Do samples show what their captions say? A judge of classical vision, that has learned the words on real clips."""

import dataclasses
import re
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int

from vdt.evals import Run, Table, card, first, nth_caption, pixels, real_videos
from vdt.evals.statistics import wilson
from vdt.evals.tracking import Track, alone, track

RADII, HARMONICS, ANGLES = 8, 6, 48
REACH = 2.2  # of the rings that a shape is seen by, in radii of a disc of its area
GRAIN = 8  # pixels, of a side


@dataclasses.dataclass
class Prompts:
  """Rows: what a caption says, and all of it. Columns: the share of `samples` of which the judge says the same, with
  its 95 % interval `low`, `high` (Wilson 1927), as swapped ones have it too; of `real` clips; of samples against
  captions of others (`shuffled`); and of samples that were made with the `swapped` of the next clip, "video" (what is
  given) or "caption", against their own captions; and where frames are given, of the last of these, held still
  (`copy`).

  says: what is said, the words for it, of which a caption has one, and what that looks like, one of LOOKS, which may be
  left out where it has the same name; of a clip's first caption. caption: the model reads this one, from 0. judged_by:
  training clips that the judge learns the words on. task, given_frames: "generation", or "prediction" or "first_frame"
  and so many frames that are given, and not judged. Where a look follows an object, clips of which none is seen, or
  several, count as wrong. Intervals take clips as independent: of one film there should be one. ValueError for a
  caption without one of the words, or for an unknown look.
  """

  says: tuple[tuple, ...]
  count: int = 64
  judged_by: int = 1024
  split: str = "test"
  every: int = 0
  task: str = "generation"
  given_frames: int | None = None
  swapped: tuple[str, ...] = ()
  caption: int = 0

  def __post_init__(self):
    if unknown := {*self.looks.values()} - {*LOOKS}:
      raise ValueError(f"evals of prompts know no {', '.join(sorted(unknown))}: choose from {', '.join(LOOKS)}")
    if unknown := {*self.swapped} - {"caption", "video"}:
      raise ValueError(f"evals of prompts swap no {', '.join(sorted(unknown))}: choose from caption, video")
    count = self.given_frames or 0
    if not {"generation": not count, "prediction": count, "first_frame": count == 1}.get(self.task):
      raise ValueError(
        f"evals of prompts with task {self.task!r} and given_frames {self.given_frames}: take generation without, "
        f"prediction with some, or first_frame with 1"
      )

  @property
  def looks(self) -> dict[str, str]:
    return {name: (*look, name)[0] for name, _, *look in self.says}

  @property
  def clips(self) -> int:
    return self.count

  def prepare(self, data: Any) -> None:
    """Before training: ValueError for captions that say too little, also those that the judge learns of, or clips of
    which nothing is left to judge."""
    if (self.given_frames or 0) >= data.frames:
      raise ValueError(f"given_frames={self.given_frames} of {data.frames} frames: give fewer")
    captions = np.array(data.captions())
    nth_caption(captions, self.caption)
    for told in (captions, np.array(dataclasses.replace(data, split="train").captions())):
      self.words(nth_caption(told, 0))

  def __call__(self, run: Run) -> Table:
    data, known = run.data(self.split), run.data("train")
    learned = first(known, min(self.judged_by, len(known)))
    how = dict(task=self.task, split=self.split, given_frames=self.given_frames)
    given = int(run.given(1, **how).max((0, 2, 3, 4)).sum()) if self.given_frames else 0  # whole patches
    rest = slice(given, None)
    judge = Judge.learn(pixels(learned["video"])[:, rest], self.words(first_captions(learned)), self.looks)
    said = self.words(first_captions(first(data, self.count)))
    how["caption"] = self.caption
    seen = judge(run.sample(self.count, **how)[:, 0, rest])
    videos = real_videos(data, self.count)
    real = judge(videos[:, rest])
    other = {name: np.roll(words, -1) for name, words in said.items()}
    made = {"samples": (seen, said), "real": (real, said), "shuffled": (seen, other)}
    if given:
      made["copy"] = judge(np.repeat(videos[:, given - 1, None], data.frames, axis=1)[:, rest]), said
    for what in self.swapped:
      made[f"other {what}"] = judge(run.sample(self.count, **how, swapped=(what,))[:, 0, rest]), said
    right = {name: {column: one[name] == two[name] for column, (one, two) in made.items()} for name in said}
    right["all"] = {column: np.all([row[column] for row in right.values()], 0) for column in made}
    table = {}
    for name, row in right.items():
      table[name] = {}
      for column, each in row.items():
        low, high = wilson(int(each.sum()), self.count)
        table[name][column] = float(each.mean())
        if column == "samples" or column.startswith("other"):
          before = "" if column == "samples" else f"{column}, "
          table[name] |= {f"{before}low": low, f"{before}high": high}
    return table

  def card(self, run: Run) -> dict[str, Any]:
    """Also what the judge learns of."""
    known = run.data("train")
    said = known.fingerprint() if hasattr(known, "fingerprint") else "not said"
    which = f"the first {min(self.judged_by, len(known))} of {len(known)}, seed {getattr(known, 'seed', 0)}"
    return card(self, run) | {"judge's clips": f"train, {said}, {which}"}

  def words(self, captions: np.ndarray) -> dict[str, np.ndarray]:
    """Of each caption, the number of the first word that it has, by what is said."""
    found = {}
    for name, words, *_ in self.says:
      pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in words))
      heard = [pattern.search(caption) for caption in captions.tolist()]
      if None in heard:
        missing = captions[heard.index(None)]
        raise ValueError(f"the caption {str(missing)!r} says no {name}: one of {', '.join(words)}")
      found[name] = np.array([words.index(word.group()) for word in heard])
    return found


def first_captions(batch: dict[str, np.ndarray]) -> np.ndarray:
  """The first caption (b,) of each clip of a batch, whichever of them is read."""
  return nth_caption(batch.get("captions", batch["caption"]), 0)


class Discriminant(NamedTuple):
  """Linear discriminant analysis (Fisher 1936): the class of the nearest mean, in units of the spread within; of those
  that it was shown."""

  labels: Int[np.ndarray, " k"]
  means: Float[np.ndarray, "k d"]
  map: Float[np.ndarray, "d d"]

  @classmethod
  def learn(cls, features: Float[np.ndarray, "n d"], labels: np.ndarray) -> "Discriminant":
    there, which = np.unique(labels, return_inverse=True)
    means = np.stack([features[labels == each].mean(0) for each in there])
    spread = np.cov((features - means[which]).T).reshape(features.shape[1], -1)
    spread += 1e-3 * np.trace(spread) / len(spread) * np.eye(len(spread))
    values, vectors = np.linalg.eigh(spread)
    return cls(there, means, vectors * np.maximum(values, 1e-12) ** -0.5)

  def __call__(self, features: Float[np.ndarray, "n d"]) -> np.ndarray:
    apart = (features[:, None] - self.means) @ self.map
    return self.labels[np.square(apart).sum(-1).argmin(1)]


class Judge(NamedTuple):
  """What words look like, by what is said, and which of LOOKS that is."""

  known: dict[str, Discriminant]
  looks: dict[str, str]

  @classmethod
  def learn(
    cls, videos: Float[np.ndarray, "b f h w c"], words: dict[str, np.ndarray], looks: dict[str, str]
  ) -> "Judge":
    """From clips in [-1, 1] and the number of each word. ValueError where none of them shows one object."""
    clear, rows = followed(videos, looks)
    if not rows:
      raise ValueError(
        "no single object was found in real clips: these looks are of bright objects on a plain background"
      )
    seen = {look: np.stack([LOOKS[look](*row) for row in rows]) for look in {*looks.values()}}
    return cls({name: Discriminant.learn(seen[look], words[name][clear]) for name, look in looks.items()}, looks)

  def __call__(self, videos: Float[np.ndarray, "b f h w c"]) -> dict[str, np.ndarray]:
    """The number of the word for each clip, -1 where it shows no object, or several, and a look follows one."""
    clear, rows = followed(videos, self.looks)
    found = {name: np.full(len(videos), -1) for name in self.known}
    for name, known in self.known.items():
      if rows:
        found[name][clear] = known(np.stack([LOOKS[self.looks[name]](*row) for row in rows]))
    return found


def followed(videos: Float[np.ndarray, "b f h w c"], looks: dict[str, str]) -> tuple[np.ndarray, list[tuple]]:
  """Which clips can be judged (b,), and each of them with its track, if some look follows an object."""
  if {*looks.values()} == {"appearance"}:
    return np.ones(len(videos), bool), [(video, None) for video in videos]
  tracks = [track(video) for video in videos]
  clear = np.array([alone(each) for each in tracks])
  return clear, [(video, each) for video, each, good in zip(videos, tracks, clear) if good]


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


def appearance(video: Float[np.ndarray, "f h w c"], tracks: Track | None) -> Float[np.ndarray, " n"]:
  """All of it, small: the mean of the frames, and how much they differ."""
  small = np.stack([cv2.resize(frame, (GRAIN, GRAIN), interpolation=cv2.INTER_AREA) for frame in video])
  return np.concatenate([small.mean(0).ravel(), small.std(0).ravel()])


LOOKS = {"colour": colour, "shape": shape, "direction": direction, "appearance": appearance}
