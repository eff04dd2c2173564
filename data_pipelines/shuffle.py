"""A stateless shuffle: the i-th element of the permutation of an epoch, without the permutation."""

import numpy as np

ROUNDS = 6


def permute(index: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
  """Where each `index` (int64, in [0, count)) goes in the permutation of [0, count) named by (seed, epoch).

  A Feistel network on the smallest even number of bits that holds `count`, walked until it falls inside (Black and
  Rogaway, "Ciphers with arbitrary finite domains", 2002), its round keys from NumPy's SeedSequence. O(1) in `count`.
  """
  half = max(int(count - 1).bit_length() + 1, 2) // 2
  mask = np.uint64((1 << half) - 1)
  keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)

  def network(x: np.ndarray) -> np.ndarray:
    left, right = x >> np.uint64(half), x & mask
    for key in keys:
      left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half)) | right

  x = network(np.asarray(index, np.uint64))
  while (outside := x >= count).any():
    x[outside] = network(x[outside])
  return x.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
  """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
