"""This machine: what it can do at most, and how the process uses its memory."""

import ctypes
import platform
import time

import jax
import jax.numpy as jnp

from vdt.topology import CHIPS, chip_of

STARTED = time.time()
"""When this process began, or nearly."""


def keep_freed_memory() -> None:
  """Lets glibc keep what is freed, in place of giving it back to the kernel and faulting it in anew.

  A training step on a CPU frees gigabytes of activations and asks for them again: kept, the gradient of a small model
  took 0.87 s in place of 2.48 (0.56 in place of 1.06 with full remat; busy machine, one run each). Call it before the
  first large allocation; other C libraries are left alone. The process keeps its largest size until it ends.
  """
  if platform.libc_ver()[0] == "glibc":
    mmap_max, trim_threshold = -4, -1  # the parameters' numbers in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


def device_peak() -> float:
  """FLOP/s of one device: the maker's figure, or the best of the float32 matrix products that a fifth of a second has.

  Small ones too, for where other work shares the device, they alone are done before it is interrupted.
  """
  if name := chip_of(jax.devices()[0]):
    return CHIPS[name].peak
  best = 0.0
  for side in (768, 1536):
    a = jnp.ones((side, side))
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    end = time.perf_counter() + 0.1
    while (start := time.perf_counter()) < end:
      jax.block_until_ready(product(a))
      best = max(best, 2 * side**3 / (time.perf_counter() - start))
  return best
