"""Decoding a video file: upright, square-pixel RGB frames of a chosen size at a chosen frame rate.

Everything is streamed: one decoded frame at full resolution is alive at a time. Decoding runs on one thread a file,
so that also broken files give the same frames every time. Sound is ignored.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

LONGEST_GAP = 60.0  # seconds; a longer hole between two frames is taken as a damaged timestamp and closed
SCRIPTS = {"tty", "hls", "dash", "concat", "concatf", "imf", "vapoursynth"}  # text that FFmpeg can play as a video


class VideoError(ValueError):
  """A file that cannot be used; `reason` says why, without the file's name."""

  def __init__(self, path: str | Path, reason: str):
    super().__init__(f"{path}: {reason}")
    self.reason = reason


class Probe(NamedTuple):
  """What a file's header says: codec name, pixels as stored (before rotation), frames per second, seconds, frames.

  `fps`, `duration` and `frames` are 0 where the header does not say.
  """

  codec: str
  height: int
  width: int
  fps: float
  duration: float
  frames: int
  sound: bool
  still: bool


@dataclasses.dataclass
class Progress:
  """Filled in while a file is decoded: its probe, frames decoded, packets that failed, seconds seen, what was odd."""

  probe: Probe | None = None
  decoded: int = 0
  hidden: int = 0
  errors: int = 0
  duration: float = 0.0
  warnings: list[str] = dataclasses.field(default_factory=list)


def probe(path: str | Path) -> Probe:
  """Reads the header of `path`. Raises VideoError for a file without video, OSError if it cannot be read."""
  with _open(path) as (container, stream):
    return _probe(container, stream)


def frames(
  path: str | Path, fps: float, size: tuple[int, int], progress: Progress | None = None
) -> Iterator[np.ndarray]:
  """Yields the frames of `path` as uint8 (h, w, 3) RGB at the times 0, 1/fps, 2/fps, ... s after its first frame.

  Each is the frame on screen at that time (the nearest earlier one), by timestamps: a variable frame rate is right, a
  low one repeats frames. The short side is fitted to `size` = (h, w) after the file's rotation and pixel aspect
  ratio, and the centre is cropped. `progress` is filled in along the way. Raises VideoError if nothing decodes.
  """
  if not fps > 0:
    raise ValueError(f"fps must be positive, not {fps}")
  progress = Progress() if progress is None else progress
  due, last, picture = 0, None, None

  def show(frame: av.VideoFrame) -> np.ndarray:
    photo = None
    if progress.probe.still and progress.probe.codec == "mjpeg":  # OpenCV heeds all of EXIF's orientations
      photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    return fit(upright(frame) if photo is None else photo, size, aspect)

  with _open(path) as (container, stream):
    progress.probe = _probe(container, stream)
    tolerance = _tolerance(stream)
    aspect = float(stream.sample_aspect_ratio or 1)
    for time, frame in _timed(container, stream, progress):
      while last is not None and due / fps < time - tolerance:
        picture = show(last) if picture is None else picture
        yield picture
        due += 1
      last, picture = frame, None
    if container.format.name == "gif" and not _ends_with(path, b";"):
      progress.warnings.append(f"truncated: decoded {progress.decoded} frames, and the end is missing")
    if last is None:
      raise VideoError(path, f"nothing decodes: {progress.errors} errors, no frame")
    while due / fps < progress.duration - tolerance:
      picture = show(last) if picture is None else picture
      yield picture
      due += 1


def read_clip(path: str | Path, frames: int, size: tuple[int, int], fps: float) -> np.ndarray:
  """Reads at most `frames` first frames at `fps` as ingestion does, uint8 (f, h, w, 3); a still has f = 1.

  Raises VideoError if the file is not a video.
  """
  progress = Progress()
  clip = []
  with contextlib.closing(_frames(path, fps, size, progress)) as stream:
    for picture in stream:
      clip.append(picture)
      if len(clip) == frames or progress.probe.still:
        break
  return np.stack(clip)


_frames = frames  # `frames` is a count in read_clip


def upright(frame: av.VideoFrame) -> np.ndarray:
  """A decoded frame as uint8 (h, w, 3) RGB, on white where it is transparent, turned as its display matrix asks.

  The 3 x 3 matrix is row-major 16.16 fixed point and maps (x, y) to (a x + c y, b x + d y), with a, b in its first row
  and c, d in its second (ISO/IEC 14496-12, 6.2.2). Angles are rounded to quarter turns.
  """
  if any(component.is_alpha for component in frame.format.components):
    rgba = frame.to_ndarray(format="rgba")
    image = rgba[..., :3]
    if rgba[..., 3].min() < 255:
      alpha = rgba[..., 3:].astype(np.uint16)
      image = ((image * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
  else:
    image = frame.to_ndarray(format="rgb24")
  try:
    side_data = list(frame.side_data)
  except ValueError:  # a kind that PyAV cannot name is among them, such as EXIF
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
  for data in side_data:
    if data.type.name == "DISPLAYMATRIX":
      (a, b), (c, d) = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].tolist()
      across, down = a, d
      if abs(b) > abs(a):
        image, across, down = image.transpose(1, 0, 2), c, b
      image = image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
  return np.ascontiguousarray(image)


def fit(image: np.ndarray, size: tuple[int, int], aspect: float = 1.0) -> np.ndarray:
  """Scales uint8 (h, w, 3) so that it just covers `size` = (h, w), keeping proportions, and crops the centre.

  `aspect` is the width of a pixel over its height.
  """
  height, width = image.shape[0], image.shape[1] * aspect
  scale = max(size[0] / height, size[1] / width)
  inner = max(size[0], round(height * scale)), max(size[1], round(width * scale))
  if inner != image.shape[:2]:
    image = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_AREA)
  top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
  return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def _ends_with(path: str | Path, mark: bytes) -> bool:
  with open(path, "rb") as file:
    file.seek(-len(mark), os.SEEK_END)
    return file.read() == mark


@contextlib.contextmanager
def _open(path: str | Path):
  """The container of `path` and its video stream. A file may not name other files to open (playlists)."""

  def refuse(url, flags, options):
    raise OSError("a playlist, which is not let open other files")

  with open(path, "rb") as file:
    if not file.read(1):
      raise VideoError(path, "empty file")
    file.seek(0)
    try:
      container = av.open(file, metadata_errors="replace", io_open=refuse)
    except (av.error.FFmpegError, OSError) as error:
      raise VideoError(path, f"not a readable video: {error.strerror or error}") from None
    with container:
      covers = av.stream.Disposition.attached_pic
      streams = [stream for stream in container.streams.video if not stream.disposition & covers]
      if container.format.name in SCRIPTS or not streams:
        raise VideoError(path, f"no video stream: it is {container.format.long_name}")
      stream = streams[0]
      if stream.codec_context is None:
        raise VideoError(path, "no decoder: its video stream has an unknown codec")
      stream.thread_type, stream.codec_context.thread_count = "NONE", 1
      yield container, stream


def _probe(container: av.container.InputContainer, stream: av.VideoStream) -> Probe:
  context = stream.codec_context
  rate = float(stream.average_rate or stream.guessed_rate or 0)
  tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska
  if stream.duration:
    duration = float(stream.duration * stream.time_base)
  elif tag:
    duration = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
  else:
    alone = len(container.streams) == 1  # otherwise the sound may be the longer one
    duration = (container.duration or 0) / av.time_base if alone else 0.0
  count = stream.frames or round(duration * rate)
  still = container.format.name.endswith("_pipe") or container.format.name == "image2"
  sound = len(container.streams.audio) > 0
  return Probe(context.name, context.height, context.width, rate, duration, count, sound, still)


def _tolerance(stream: av.VideoStream) -> float:
  """Seconds that a frame may be late, as containers round timestamps to ticks: Matroska to 1 ms, GIF to 10 ms.

  Half a tick, twice if the start is rounded too; and at most an eighth of the mean distance between frames, since the
  ticks of AVI and some MP4 are whole frames.
  """
  rate = float(stream.average_rate or stream.guessed_rate or 25)
  rounding = float(stream.time_base) * (1 if stream.start_time else 0.5)
  return 1e-6 + min(rounding, 1 / (8 * rate))


def _timed(container, stream, progress: Progress) -> Iterator[tuple[float, av.VideoFrame]]:
  """Yields (seconds after the first frame, frame); the seconds strictly increase, whatever the file says."""
  interval = 1 / (progress.probe.fps or 25)
  start, previous, held = None, None, interval
  corrupt = repaired = closed = 0
  for frame in _decode(container, stream, progress):
    ticks = frame.dts if container.format.name == "avi" else frame.pts  # AVI keeps no presentation times
    stamp = None if ticks is None else float(ticks * stream.time_base)
    if start is None:
      start = stamp or 0.0
      time = 0.0
    elif stamp is None or stamp - start <= previous:
      time, repaired = previous + interval, repaired + (stamp is not None)
    elif stamp - start - previous > LONGEST_GAP:
      time, closed = previous + interval, closed + 1
      start = stamp - time
    else:
      time = stamp - start
    held = float(frame.duration * stream.time_base) if frame.duration and frame.duration > 0 else interval
    progress.decoded += 1
    progress.duration = time + (held if held <= LONGEST_GAP else interval)
    corrupt += frame.is_corrupt
    previous = time
    yield time, frame
  if corrupt:
    progress.warnings.append(f"{corrupt} frames are marked as corrupt")
  if repaired:
    progress.warnings.append(f"{repaired} timestamps that go back, set one frame after the last")
  if closed:
    progress.warnings.append(f"{closed} gaps of more than {LONGEST_GAP:g} s between frames, closed")
  if progress.errors:
    progress.warnings.append(f"{progress.errors} errors while decoding")
  if stream.frames:
    expected = stream.frames - progress.hidden
  elif 0 < progress.duration < 0.95 * progress.probe.duration - interval:
    expected = round(progress.decoded * progress.probe.duration / progress.duration)
  else:
    expected = 0
  if progress.decoded < expected:
    progress.warnings.append(f"truncated: decoded {progress.decoded} of {expected} frames")


def _decode(container, stream, progress: Progress) -> Iterator[av.VideoFrame]:
  """Yields what decodes; a packet that fails is counted and passed over."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except StopIteration:
      return
    except (av.error.FFmpegError, OSError):  # the file breaks off here; the decoder may still hold frames
      progress.errors += 1
      with contextlib.suppress(av.error.FFmpegError):
        yield from stream.codec_context.decode(None)
      return
    progress.hidden += packet.is_discard
    try:
      decoded = packet.decode()
    except av.error.EOFError:
      return
    except av.error.FFmpegError:
      progress.errors += 1
      continue
    yield from decoded
