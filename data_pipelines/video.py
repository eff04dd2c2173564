"""Decoding a video file: upright, square-pixel RGB frames of a chosen size at a chosen frame rate.

Everything is streamed: one decoded frame at full resolution is alive at a time. Decoding runs on one thread a file,
so that also broken files give the same frames every time. Sound is ignored.
"""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from data_pipelines import seeking

LONGEST_GAP = 60.0  # seconds; a longer hole between two frames is taken as a damaged timestamp and closed
MOST_PIXELS = 1 << 27  # of a frame; a larger one is taken as damage
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
  """Filled in while a file is decoded: its probe, frames decoded, packets that failed, seconds seen, what was odd; and
  by `frames` the width of a picture over its height, as it is shown."""

  probe: Probe | None = None
  shape: float = 0.0
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
  path: str | Path,
  fps: float,
  size: tuple[int, int],
  progress: Progress | None = None,
  start: float = 0.0,
  end: float = math.inf,
) -> Iterator[np.ndarray]:
  """Yields the frames of `path` as uint8 (h, w, 3) RGB at the times start, start + 1/fps, ... < end.

  Times are seconds after the file's first frame. Each is the frame on screen at that time (the nearest earlier one),
  by timestamps: a variable frame rate is right, a low one repeats frames. The short side is fitted to `size` = (h, w)
  after the file's rotation and pixel aspect ratio, and the centre is cropped. A later `start` is sought by the file's
  table of timestamps, and gives the frames that decoding from the beginning gives. `progress` is filled in along the
  way. Raises VideoError if nothing decodes.
  """
  if not fps > 0:
    raise ValueError(f"fps must be positive, not {fps}")
  if not 0 <= start < end:
    raise ValueError(f"start must be at least 0 and before end, not {start} and {end}")
  progress = Progress() if progress is None else progress
  due, last, picture = 0, None, None

  def show(frame: av.VideoFrame) -> np.ndarray:
    photo = None
    if progress.probe.still and progress.probe.codec == "mjpeg":  # OpenCV heeds all of EXIF's orientations
      photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    whole = upright(frame) if photo is None else photo
    progress.shape = whole.shape[1] * aspect / whole.shape[0]
    return fit(whole, size, aspect)

  with _open(path) as (container, stream), contextlib.ExitStack() as opened:
    progress.probe = _probe(container, stream)
    tolerance = _tolerance(stream)
    aspect = float(stream.sample_aspect_ratio or 1)
    timed = _sought(path, container, stream, progress, start + tolerance) if start > 0 else None
    if timed is None and start > 0:  # the container was moved in trying
      container, stream = opened.enter_context(_open(path))
    for time, frame in timed or _timed(container, stream, progress):
      while last is not None and start + due / fps < min(time, end) - tolerance:
        picture = show(last) if picture is None else picture
        yield picture
        due += 1
      if time > end - tolerance:
        return
      last, picture = frame, None
    _check_end(path, container, progress)
    while start + due / fps < min(progress.duration, end) - tolerance:
      picture = show(last) if picture is None else picture
      yield picture
      due += 1


def decoded(path: str | Path, progress: Progress) -> Iterator[tuple[float, av.VideoFrame]]:
  """Yields (seconds after the first frame, frame) of every frame of `path`; `progress` is filled in.

  Decoding is strict: damage that decoders would paint over is counted among `progress.errors`. Raises VideoError if
  nothing decodes.
  """
  with _open(path) as (container, stream):
    stream.codec_context.options |= {"err_detect": "crccheck+bitstream+buffer+explode"}
    progress.probe = _probe(container, stream)
    yield from _timed(container, stream, progress)
    _check_end(path, container, progress)


def _check_end(path: str | Path, container, progress: Progress) -> None:
  if container.format.name == "gif" and not _ends_with(path, b";"):
    progress.warnings.append(f"truncated: decoded {progress.decoded} frames, and the end is missing")
  if not progress.decoded:
    raise VideoError(path, f"nothing decodes: {progress.errors} errors, no frame")


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
  return _turn(_image(frame), frame)


def shrunk(frame: av.VideoFrame, side: int) -> np.ndarray:
  """A decoded frame as `upright` gives it, scaled down first: at most `side` pixels the short side, 8 times that the
  long one.
  """
  scale = min(side / min(frame.height, frame.width), 8 * side / max(frame.height, frame.width))
  if scale >= 1:
    return upright(frame)
  size = {"width": max(1, round(frame.width * scale)), "height": max(1, round(frame.height * scale))}
  return _turn(_image(frame.reformat(**size, interpolation="AREA")), frame)


def _image(frame: av.VideoFrame) -> np.ndarray:
  if not any(component.is_alpha for component in frame.format.components):
    return frame.to_ndarray(format="rgb24")
  rgba = frame.to_ndarray(format="rgba")
  image = rgba[..., :3]
  if rgba[..., 3].min() < 255:
    alpha = rgba[..., 3:].astype(np.uint16)
    image = ((image * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
  return image


def _turn(image: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
  """`image` turned as the display matrix of `frame` asks."""
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
def opened(path: str | Path, kind: str = "video"):
  """The container of `path`, which may not name other files to open (playlists). VideoError, which calls it not a
  readable `kind`, or OSError."""

  def refuse(url, flags, options):
    raise OSError("a playlist, which is not let open other files")

  with open(path, "rb") as file:
    if not file.read(1):
      raise VideoError(path, "empty file")
    file.seek(0)
    try:
      container = av.open(file, metadata_errors="replace", io_open=refuse)
    except (av.error.FFmpegError, OSError) as error:
      raise VideoError(path, f"not a readable {kind}: {error.strerror or error}") from None
    with container:
      yield container


def pictures(container: av.container.InputContainer) -> list[av.VideoStream]:
  """Its video streams, but for covers."""
  covers = av.stream.Disposition.attached_pic
  return [stream for stream in container.streams.video if not stream.disposition & covers]


@contextlib.contextmanager
def _open(path: str | Path):
  """The container of `path` and its video stream."""
  with opened(path) as container:
    streams = pictures(container)
    if container.format.name in SCRIPTS or not streams:
      raise VideoError(path, f"no video stream: it is {container.format.long_name}")
    stream = streams[0]
    if stream.codec_context is None:
      raise VideoError(path, "no decoder: its video stream has an unknown codec")
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
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


@functools.lru_cache(maxsize=16)
def _table(path: str | Path, *version: int) -> seeking.Table | None:
  with _open(path) as (container, stream):
    return seeking.table(container, stream, LONGEST_GAP)


def _sought(path, container, stream, progress: Progress, start: float) -> Iterator[tuple[float, av.VideoFrame]] | None:
  """What `_timed` yields, from the key frame before `start` on; None where only decoding all before it is right."""
  status = os.stat(path)
  table = _table(path, status.st_mtime_ns, status.st_size)
  if table is None:
    return None
  begin = next(_decode(container, stream, Progress()), None)
  if begin is None or begin.pts != table.first:
    return None
  wanted = table.first + start / float(stream.time_base)
  place = bisect.bisect_right(table.shown, wanted) - 1
  try:
    container.seek(table.places[max(place, 0)], stream=stream)
  except (av.error.FFmpegError, OSError):
    return None
  found = _stamped(container, stream, progress, table.first)
  head = next(found, None)
  if head is None or head[0] > start or progress.errors:
    progress.decoded = progress.errors = 0
    return None
  return itertools.chain([head], found)


def _stamped(container, stream, progress: Progress, first: int) -> Iterator[tuple[float, av.VideoFrame]]:
  """Yields (seconds after the frame at tick `first`, frame) of what decodes from here on."""
  interval, previous = 1 / (progress.probe.fps or 25), -math.inf
  for frame in _decode(container, stream, progress):
    time = -math.inf if frame.pts is None else float((frame.pts - first) * stream.time_base)
    if time > previous:
      held = float(frame.duration * stream.time_base) if frame.duration and frame.duration > 0 else interval
      progress.decoded += 1
      progress.duration = time + (held if held <= LONGEST_GAP else interval)
      previous = time
      yield time, frame


def _decode(container, stream, progress: Progress) -> Iterator[av.VideoFrame]:
  """Yields what decodes; a packet that fails is counted and passed over."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except StopIteration:
      return
    except (av.error.FFmpegError, OSError, IndexError):  # it breaks off here; the decoder may still hold frames
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
