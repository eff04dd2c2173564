"""Sound beside clips, of one channel: a file's track, the sound of impacts, and what a model hears of either."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import av
import numpy as np

from data_pipelines import video

RATE = 16_000
"""Samples a second."""
FULL = 2**15
LOWEST, HIGHEST = 60.0, 7_600.0  # Hz, of the mel bands
JITTER = 0.05
QUIET = 1e-5  # energy beside which no difference is heard


def samples(frames: int, fps: float) -> int:
  """How many there are in a clip."""
  return round(frames / fps * RATE)


def impacts(contact: np.ndarray, fps: float, pitch: np.ndarray) -> np.ndarray:
  """The sound (n,) int16 of bodies that begin to touch something: each time a sine of `pitch` (objects,) Hz, that dies
  away in a fiftieth of a second.

  contact: (f, objects), whether each touched something in the step to that frame; it is heard in the middle of it.
  """
  frames, objects = contact.shape
  made = np.zeros(samples(frames, fps) + RATE)
  time = np.arange(RATE // 5) / RATE
  for body in range(objects):
    hit = np.sin(2 * np.pi * pitch[body] * time) * np.exp(-50 * time)
    for frame in np.flatnonzero(contact[1:, body] & ~contact[:-1, body]) + 1:
      start = round((frame - 0.5) / fps * RATE)
      made[start : start + len(hit)] += 0.5 * hit
  return stored(made[: samples(frames, fps)])


def stored(wave: np.ndarray) -> np.ndarray:
  """A wave in [-1, 1] as int16, clipped."""
  return np.clip(np.round(wave * FULL), -FULL, FULL - 1).astype(np.int16)


def track(path: str | Path) -> np.ndarray | None:
  """The first sound track (n,) int16 of a file, from the time of its first picture on, where it has pictures; None
  without a track. What does not decode is silent.

  ValueError for a file that is not readable, or of whose sound nothing decodes. OSError if it cannot be read.
  """
  resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
  pieces: list[tuple[float | None, np.ndarray]] = []

  def keep(frame: av.AudioFrame | None) -> None:
    for made in resampler.resample(frame):
      pieces.append((None if made.pts is None else float(made.pts * made.time_base), made.to_ndarray()[0]))

  with video.opened(path, "sound") as container:
    if not container.streams.audio:
      return None
    stream, shown = container.streams.audio[0], video.pictures(container)
    begin = float((shown[0].start_time or 0) * shown[0].time_base) if shown else None
    if stream.codec_context is None:
      raise ValueError(f"{path}: there is no decoder of its sound")
    with contextlib.suppress(av.error.FFmpegError, OSError, IndexError):  # the file ends here
      for packet in container.demux(stream):
        with contextlib.suppress(av.error.FFmpegError, ValueError):  # a broken one, or of another format
          for frame in packet.decode():
            keep(frame)
    if not pieces:
      raise ValueError(f"{path}: nothing of its sound decodes")
    keep(None)
  return joined(pieces, begin)


def joined(pieces: list[tuple[float | None, np.ndarray]], begin: float | None) -> np.ndarray:
  """One track of pieces, from `begin` on, or from the first: each after the one before, but for gaps of more than
  `JITTER` seconds between their times, to which containers round them.

  Times that go back, or leap by more than `video.LONGEST_GAP`, are damaged, as they are of pictures: what has them goes
  on where the piece before ended, and so does all after it.
  """
  place, placed, late = 0, [], 0
  begin = (pieces[0][0] or 0.0) if begin is None else begin
  for number, (time, piece) in enumerate(pieces):
    due = place if time is None else round((time - begin) * RATE) + late
    gap = due - place
    if abs(gap) > video.LONGEST_GAP * RATE or (number and gap < -JITTER * RATE):
      late -= gap
    elif number == 0 or gap > JITTER * RATE:
      place = due
    placed.append((place, piece))
    place += len(piece)
  made = np.zeros(max(0, *(place + len(piece) for place, piece in placed)), np.int16)
  for place, piece in placed:
    made[max(place, 0) : max(place + len(piece), 0)] = piece[max(-place, 0) :]
  return made


def cut(track: np.ndarray, start: float, count: int) -> np.ndarray:
  """`count` samples from a second on; silence where there are none."""
  place = round(start * RATE)
  found = track[place : place + count]
  return np.pad(found, (0, count - len(found)))


@functools.cache
def mel_bands(count: int, size: int) -> np.ndarray:
  """What each frequency of a transform of `size` gives to each of so many bands: (size / 2 + 1, count)."""
  import tensorflow as tf

  return tf.signal.linear_to_mel_weight_matrix(count, size // 2 + 1, RATE, LOWEST, HIGHEST).numpy()


@dataclasses.dataclass
class LogMel:
  """What a model hears of each frame: the logarithm of the energy in `bands` mel bands, at `windows` times in a frame.

  A window is two steps long (Hann); the bands are those of `tf.signal`, from 60 to 7,600 Hz. Silence is about -1.3,
  full volume above 1.
  """

  bands: int = 16
  windows: int = 4

  @property
  def width(self) -> int:
    """Numbers a frame."""
    return self.bands * self.windows

  @property
  def rate(self) -> int:
    """Samples a second, of what it takes."""
    return RATE

  def read(self, path: str | Path, frames: int, fps: float) -> np.ndarray:
    """A file's sound (n,) int16 for a clip, silent after its end. ValueError where it has none, OSError if it cannot be
    read."""
    if (found := track(path)) is None:
      raise ValueError(f"{path} has no sound track")
    return cut(found, 0.0, samples(frames, fps))

  def check(self, model: Any) -> None:
    """ValueError for a model that does not hear so."""
    if min(self.bands, self.windows) < 1:
      raise ValueError(f"sound.bands is {self.bands}, sound.windows {self.windows}: at least 1")
    if getattr(model, "sound", 0) != self.width:
      raise ValueError(
        f"sound has {self.bands} bands x {self.windows} windows = {self.width} numbers a frame, model.sound is "
        f"{getattr(model, 'sound', 0)}: set it, and sound in model.pattern"
      )

  def __call__(self, sound: np.ndarray, frames: int, first: float = 1.0) -> np.ndarray:
    """(b, n) int16 of clips of so many frames to (b, frames, width) float32. first: the time of the first frame, of
    that of each other; before it there is silence."""
    count, step = frames * self.windows, sound.shape[1] / ((frames - 1 + first) * self.windows)
    length = max(round(2 * step), 2)
    before = round((1 - first) * self.windows * step)
    size = 2 ** max(int(np.ceil(np.log2(length))), 9)  # low bands are narrow
    starts = np.round((np.arange(count) + 0.5) * step - length / 2).astype(int)
    padded = np.pad(sound.astype(np.float32) / FULL, ((0, 0), (before + length, length)))
    parts = padded[:, starts[:, None] + np.arange(length) + length] * np.hanning(length).astype(np.float32)
    energy = np.square(np.abs(np.fft.rfft(parts, size))) / length
    heard = np.log(energy.astype(np.float32) @ mel_bands(self.bands, size) + QUIET) / 5 + 1
    return heard.reshape(len(sound), frames, self.width)
