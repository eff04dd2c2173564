"""Records by position: the global batch of a step is a pure function of (seed, step), and read ahead.

Reading has no state but the step: nothing is saved, and a run goes on exactly on any number of hosts.
"""

import abc
import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.shuffle import permute

Batch = dict[str, np.ndarray]


class Shape(NamedTuple):
  """What some steps have: their share of all, and the batch_size, frames and (height, width) of their batches."""

  share: float
  batch_size: int
  frames: int
  size: tuple[int, int]


def captioned(captions: np.ndarray, split: str, seed: int, positions: np.ndarray) -> Batch:
  """ "caption" (n,) and "captions" (n,) of clips, whose captions are lines: in training one is drawn, keyed by the
  position, elsewhere it is the first."""
  lines = [text.split("\n") for text in captions.tolist()]
  draw = lambda count, position: int(np.random.default_rng([seed, int(position), 1]).integers(count))
  chosen = [each[draw(len(each), p) if split == "train" and len(each) > 1 else 0] for each, p in zip(lines, positions)]
  return {"caption": np.array(chosen), "captions": captions}


class Reader(abc.ABC):
  """What turns positions into records gets batches from this. A data set of your own derives from it, defines `read`,
  and has what `vdt.config.Data` lists beside.

  Every random choice must be keyed by (seed, position), never by the host, the step or a generator that lives on.
  prefetch: batches that are read before they are asked for; readers: so many are read at once.
  """

  batch_size: int
  frames: int
  size: tuple[int, int]
  prefetch: int = 2
  readers: int = 2

  @abc.abstractmethod
  def read(self, positions: np.ndarray) -> Batch:
    """Records (n, ...) at global positions (n,) int64, of a stream without end."""

  def shapes(self) -> list[Shape]:
    """Of all batches."""
    return [Shape(1.0, self.batch_size, self.frames, tuple(self.size))]

  @property
  def clips(self) -> "Reader":
    """The same records, in the same order, as pixels."""
    return self

  def each(self) -> "Reader":
    """Every record once an epoch: a mixture's shares may have it otherwise."""
    return self

  @property
  def first_share(self) -> float:
    """The time that the first frame stands for, of that of each other: a causal autoencoder's first latent is of one
    picture, the others of several."""
    return 1.0

  def made_by(self) -> str:
    """The fingerprint of the autoencoder whose latents these are; "" of pixels."""
    return ""

  def batch(self, step: int) -> Batch:
    """The global batch of a step."""
    return self.read(step * self.batch_size + np.arange(self.batch_size))

  def batches(self, start: int, blocks: Sequence[int] = (0,), of: int = 1) -> Iterator[Batch]:
    """The rows of some `blocks`, of so many equal ones, of the batches from step `start` on, for ever: what one host
    needs. ValueError if the blocks do not divide a batch, or nothing is to be read ahead."""
    if min(self.prefetch, self.readers) < 1:
      raise ValueError(f"data.prefetch is {self.prefetch}, data.readers {self.readers}: at least 1")
    size = share(self.batch_size, of)
    rows = np.concatenate([block * size + np.arange(size) for block in blocks])
    own = lambda step: self.read(step * self.batch_size + rows)
    return self.ahead()(own, start, self.prefetch, self.readers)

  def ahead(self) -> Callable[..., Iterator[Batch]]:
    """`by_tf_data`, or `by_threads` where there is nothing to do but copy."""
    return by_tf_data


def share(batch_size: int, of: int) -> int:
  """The rows of each of so many blocks of a batch. ValueError if they do not divide it."""
  if batch_size % of:
    raise ValueError(f"data.batch_size {batch_size} is not a multiple of the {of} blocks that it is read in")
  return batch_size // of


def by_tf_data(read: Callable[[int], Batch], start: int, prefetch: int, readers: int) -> Iterator[Batch]:
  """`read(start)`, `read(start + 1)`, ... in this order, by tf.data's threads: `readers` at once, `prefetch` ahead.

  Each is the bytes that `read` returns, in new memory.
  """
  import tensorflow as tf

  found = read(start)
  example = packed(found)
  names, types = list(example), [tf.as_dtype(value.dtype) for value in example.values()]
  text = [name for name, value in found.items() if value.dtype.kind == "U"]

  def arrays(step: np.ndarray) -> list[np.ndarray]:
    batch = packed(read(int(step)))
    return [batch[name] for name in names]

  load = lambda step: tf.numpy_function(arrays, [step], types, stateful=False)
  options = tf.data.Options()
  options.threading.private_threadpool_size = readers
  options.autotune.enabled = False  # there is nothing to tune, and its thread holds up the end for as long as it sleeps
  steps = tf.data.Dataset.range(start, 2**40).map(load, num_parallel_calls=readers, deterministic=True)
  for values in steps.prefetch(prefetch).with_options(options).as_numpy_iterator():
    batch = dict(zip(names, values))
    yield batch | {name: np.strings.decode(batch[name].view(f"S{batch[name].shape[1]}")[:, 0]) for name in text}


def by_threads(read: Callable[[int], Batch], start: int, prefetch: int, readers: int) -> Iterator[Batch]:
  """As `by_tf_data`, whose handing over of a batch costs as much as copying 8 MB does: for what is only copied."""
  pool = concurrent.futures.ThreadPoolExecutor(readers)
  try:
    waiting = collections.deque(pool.submit(read, step) for step in range(start, start + prefetch))
    for step in itertools.count(start + prefetch):
      batch = waiting.popleft().result()
      waiting.append(pool.submit(read, step))
      yield batch
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def packed(batch: Batch) -> Batch:
  """Text as bytes (n, width) of UTF-8, which tf.data hands over as one array and not string by string."""
  encoded = {name: np.strings.encode(value) for name, value in batch.items() if value.dtype.kind == "U"}
  width = lambda value: max(value.dtype.itemsize, 1)
  return batch | {
    name: value.astype(f"S{width(value)}")[:, None].view(np.uint8).reshape(len(value), -1)
    for name, value in encoded.items()
  }


def shuffled(positions: np.ndarray, count: int, seed: int) -> np.ndarray:
  """The record at each position of a stream that goes through `count` records again and again, each time anew shuffled.

  The last batch of one epoch runs into the next.
  """
  epochs, index = positions // count, np.empty_like(positions)
  for epoch in np.unique(epochs):
    chosen = epochs == epoch
    index[chosen] = permute(positions[chosen] % count, count, seed, int(epoch))
  return index
