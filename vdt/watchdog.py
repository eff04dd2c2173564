"""A run that hangs ends: where one of its processes stands still, the others would wait for it for ever."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

from vdt.attempts import RESTART

PATIENCE = 5


class Watchdog:
  """Inside, the process ends with exit code 77 (restart me) if `step` is not called for `seconds`.

  It says on stderr where each thread stood. A thread of its own looks, so what waits in a collective is ended too.
  """

  def __init__(self, seconds: float):
    self.seconds, self.over, self.since = seconds, threading.Event(), time.monotonic()
    self.thread = threading.Thread(target=self.watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    self.wait_long()  # for what comes before the first step, too
    self.thread.start()
    return self

  def __exit__(self, *_) -> None:
    self.over.set()

  def step(self) -> None:
    self.since = time.monotonic()

  def wait_long(self) -> None:
    self.since = time.monotonic() + (PATIENCE - 1) * self.seconds

  @contextlib.contextmanager
  def patient(self) -> Iterator[None]:
    """Inside, it waits PATIENCE times as long: for evals and saves, which may take longer than steps."""
    self.wait_long()
    try:
      yield
    finally:
      self.step()

  def watch(self) -> None:
    while not self.over.wait(min(self.seconds / 10, 10.0)):
      if time.monotonic() - self.since > self.seconds:
        print(
          f"no step in {self.seconds:.0f} s: this process, or one it waits for, hangs; it stood here", file=sys.stderr
        )
        faulthandler.dump_traceback(sys.__stderr__.fileno())
        os._exit(RESTART)
