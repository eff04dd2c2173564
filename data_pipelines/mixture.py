"""Several data sets as one: mixed row by row, or, where their shapes differ, batch by batch; and each record of them
once. No state but the step."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.reading import Batch, Reader, Shape, share

PERIOD = 1024
"""Positions, or steps, after which the order of data sets repeats: shares are multiples of 1 / PERIOD."""


def schedule(weights: Sequence[float]) -> np.ndarray:
  """Which of several each position of a period belongs to: in shares of `weights`, as evenly spread as can be.

  ValueError for a weight that is negative, or that gives none of a period.
  """
  if not weights or min(weights) < 0 or not sum(weights) > 0:
    raise ValueError(f"weights {tuple(weights)}: at least 0 each, and above 0 together")
  exact = np.array(weights, float) * PERIOD / sum(weights)
  counts = np.floor(exact).astype(int)
  counts[np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]] += 1
  if not all(counts):
    raise ValueError(f"weights {tuple(weights)}: each is at least 1 / {PERIOD} of all, or left out")
  due = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
  return np.repeat(np.arange(len(counts)), counts)[np.argsort(due, kind="stable")]


def called(part: Any) -> str:
  """A data set, for people."""
  return getattr(part, "name", type(part).__name__)


class Turns:
  """Whose turn a position is, and how many it has had before: both in O(1)."""

  def __init__(self, weights: Sequence[float]):
    self.order = schedule(weights)
    taken = self.order[:, None] == np.arange(len(weights))
    self.before = taken.cumsum(0) - taken  # of each, in this period
    self.each = taken.sum(0)

  @property
  def shares(self) -> np.ndarray:
    return self.each / PERIOD

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whose, their ordinal) of each position."""
    whole, rest = np.divmod(positions, PERIOD)
    whose = self.order[rest]
    return whose, whole * self.each[whose] + self.before[rest, whose]


@dataclasses.dataclass
class Several:
  """What a `Mixture` and `Buckets` have in common: `parts`, whose split is this one's, and their names of labels.

  weights: their shares of rows, or of steps; as many as parts, or none for equal ones. Held-out splits are those of the
  first part alone. seed: of all parts, each with its own number added.
  """

  parts: tuple[Any, ...]
  weights: tuple[float, ...] = ()
  split: str = "train"
  seed: int = 0

  @property
  def frames(self) -> int:
    """The first part's, as is `size`: what is sampled, and held out."""
    return self.parts[0].frames

  @property
  def size(self) -> tuple[int, int]:
    return tuple(self.parts[0].size)

  @functools.cached_property
  def members(self) -> list[Any]:
    chosen = self.parts if self.split == "train" else self.parts[:1]
    return [
      dataclasses.replace(part, split=self.split, seed=self.seed + part.seed + number)
      for number, part in enumerate(chosen)
    ]

  @functools.cached_property
  def turns(self) -> Turns:
    weights = self.weights or (1.0,) * len(self.parts)
    return Turns(weights if self.split == "train" else weights[:1])

  def prepare(self) -> None:
    """ValueError where the parts do not go together, and as theirs."""
    if not self.parts or len(self.weights) not in (0, len(self.parts)):
      raise ValueError(f"{len(self.parts)} data sets with {len(self.weights)} weights: as many, or none")
    _ = self.turns
    for number, part in enumerate(self.members):
      part.prepare()
      if not len(part):
        raise ValueError(f"{called(part)}, data set {number} of {len(self.members)}, has no clips: leave it out")
    self.made_by()

  @property
  def clips(self) -> Any:
    """The same, as pixels."""
    return dataclasses.replace(self, parts=tuple(part.clips for part in self.parts)) if self.made_by() else self

  def each(self) -> "Chain":
    """Every record of the parts that have the first one's shape, once an epoch: for what counts them."""
    alike = tuple(part for part in self.parts if (part.frames, *part.size) == (self.frames, *self.size))
    return Chain(alike, split=self.split, seed=self.seed, batch_size=self.batch_size)

  @property
  def first_share(self) -> float:
    return min(part.first_share for part in self.parts)

  def made_by(self) -> str:
    """ValueError for parts of several autoencoders, or of pixels and latents."""
    found = {part.made_by() for part in self.parts}
    if len(found) > 1:
      raise ValueError(f"data sets of several autoencoders, or of none: {', '.join(sorted(map(repr, found)))}")
    return found.pop()

  def standard(self) -> tuple[np.ndarray, np.ndarray]:
    """Of latents: the first part's. ValueError where another's are not the same, which a decoder could not tell."""
    found = [part.standard() for part in self.parts]
    if any(not np.array_equal(a, b) for each in found[1:] for a, b in zip(each, found[0])):
      raise ValueError("latents of a mixture are standardised unlike: encode them anew, together, by this experiment")
    return found[0]

  def captions(self) -> list[str]:
    """Of all members."""
    return [caption for member in self.members for caption in member.captions()]

  def labels(self) -> list[str]:
    """Those of all parts, whatever the split, each once: a label's number is the same in all of them."""
    return list(dict.fromkeys(label for part in self.parts for label in part.labels()))

  @functools.cached_property
  def numbers(self) -> list[np.ndarray]:
    """Of each part, its labels' numbers among all."""
    names = self.labels()
    return [np.array([names.index(label) for label in part.labels()], np.int32) for part in self.members]

  def named(self, number: int, batch: Batch) -> Batch:
    """A part's batch with the labels of all."""
    return {**batch, "label": self.numbers[number][batch["label"]]}

  def joined(self, whose: np.ndarray, ordinals: np.ndarray) -> Batch:
    """Rows (n, ...), each the record at an ordinal of one of the members: what all of these have."""
    parts = [self.named(each, self.members[each].read(ordinals[whose == each])) for each in np.unique(whose)]
    back = np.argsort(np.argsort(whose, kind="stable"), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[back] for name in self.names}

  @functools.cached_property
  def names(self) -> list[str]:
    """What all members' batches have."""
    first, *others = (part.read(np.arange(1)) for part in self.members)
    return [name for name in first if all(name in other for other in others)]

  def fingerprint(self) -> str:
    """Of one data set alone, as of held-out splits, its own."""
    parts = [part.fingerprint() for part in self.members]
    if len(parts) == 1:
      return parts[0]
    return hashlib.sha256(repr((parts, self.turns.each.tolist())).encode()).hexdigest()[:16]

  def rule(self) -> dict[str, Any]:
    parts = [part.rule() for part in self.members]
    return parts[0] if len(parts) == 1 else {"parts": parts, "shares": self.turns.shares.tolist()}

  def fps(self) -> float:
    return self.members[0].fps()

  def clip(self, path: str, fps: float | None = None) -> np.ndarray:
    return self.members[0].clip(path, fps)

  def __len__(self) -> int:
    return sum(map(len, self.members))


@dataclasses.dataclass
class Mixture(Several, Reader):
  """Rows of several data sets of one shape, in shares of `weights`: row p of the stream is the next of its data set.

  Each part is read in its own order, again and again: a small one comes round more often. batch_size: of the mixture,
  the parts' own do not matter.
  """

  batch_size: int = 0
  prefetch: int = 2
  readers: int = 2

  def prepare(self) -> None:
    super().prepare()
    shapes = {(part.frames, *part.size) for part in self.parts}
    if len(shapes) > 1:
      raise ValueError(
        f"a mixture of clips of (frames, height, width) {', '.join(map(str, sorted(shapes)))}: take one shape, or "
        f"Buckets"
      )
    for name in self.names:
      if len(rows := {member.read(np.arange(1))[name].shape[1:] for member in self.members}) > 1:
        raise ValueError(
          f"batches of a mixture are alike, {name} is {' and '.join(map(str, sorted(rows)))}: ingest its parts alike, "
          f"sounds at one frame rate"
        )

  def ahead(self) -> Callable[..., Iterator[Batch]]:
    return self.parts[0].ahead()

  def read(self, positions: np.ndarray) -> Batch:
    whose, ordinals = self.turns(positions)
    return self.joined(whose, ordinals)


@dataclasses.dataclass
class Buckets(Several):
  """Batches of several data sets of unlike shapes, say clips and single pictures: each step is of one of them.

  All hosts take the same one, in shares of `weights`, and each has its own batch_size; a step is compiled once for each
  shape, before the first of them. `batch_size` is the first part's.
  """

  @property
  def batch_size(self) -> int:
    return self.parts[0].batch_size

  def shapes(self) -> list[Shape]:
    parts = zip(self.turns.shares, self.members)
    return [Shape(float(part), each.batch_size, each.frames, tuple(each.size)) for part, each in parts]

  def firsts(self) -> list[int]:
    """For each of `shapes`, the first step that has it."""
    return [int((self.turns.order == number).argmax()) for number in range(len(self.members))]

  def census(self) -> list[str]:
    """A line for each bucket: how many clips it has, how often its turn is, and what was left out, and why."""
    lines = []
    for part, shape in zip(self.members, self.shapes()):
      left = getattr(part, "dropped", dict)()
      without = "; ".join(f"{count} {reason}" for reason, count in left.items())
      video = " x ".join(map(str, (shape.frames, *shape.size)))
      turns = f"{shape.share:.1%} of steps, {shape.batch_size} each"
      lines.append(
        f"{video}: {len(part)} clips of {called(part)}, {turns}" + (f"; files without: {without}" if left else "")
      )
    return lines

  def batch(self, step: int) -> Batch:
    whose, ordinal = (int(value[0]) for value in self.turns(np.array([step])))
    return self.named(whose, self.members[whose].batch(ordinal))

  def batches(self, start: int, blocks: Sequence[int] = (0,), of: int = 1) -> Iterator[Batch]:
    """As `Reader.batches`: each bucket is read ahead by itself, from where it is at `start`."""
    for part in self.members:
      share(part.batch_size, of)
    streams: dict[int, Iterator[Batch]] = {}
    step = start
    while True:
      whose, ordinal = (int(value[0]) for value in self.turns(np.array([step])))
      if whose not in streams:
        streams[whose] = self.members[whose].batches(ordinal, blocks, of)
      yield self.named(whose, next(streams[whose]))
      step += 1


@dataclasses.dataclass
class Chain(Several, Reader):
  """Each record of all parts once an epoch, one part after the other, whatever their shares."""

  batch_size: int = 0

  def read(self, positions: np.ndarray) -> Batch:
    ends = np.cumsum([len(part) for part in self.members])
    epoch, rest = np.divmod(positions, ends[-1])
    whose = np.searchsorted(ends, rest, side="right")
    sizes = np.diff(ends, prepend=0)
    return self.joined(whose, rest - (ends - sizes)[whose] + epoch * sizes[whose])
