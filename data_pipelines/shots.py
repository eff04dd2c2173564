"""What is in a video file, from one pass over it: its shots, cut into clips; measures, pictures and hashes of each."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from data_pipelines import video

VERSION = 1  # raise it when other records are made
SIDE = 96  # pixels of the short side for cuts and motion
NARROWEST = 12  # what optical flow needs
SHARP_SIDE = 256  # of that for sharpness
GRID = 8.0  # frames a second for motion and for the comparison of clips
SPARSE = 2.0  # for sharpness, bars and pictures
THUMB = 16  # pixels of the side of a frame to compare
PICTURE = 160  # pixels of the width of a picture to look at
WINDOW = 2  # frames before and after one that the cut detector compares it with
WEIGHTS = 0.25, 0.5, 1.0, 0.0  # of hue, saturation, brightness and edges: hue is noise where it is grey
BLACK = 24  # the brightest that a bar may be, of 255
FLAT = 4.0  # standard deviation of grey levels; flatter frames look all alike


@dataclasses.dataclass(frozen=True)
class Cutting:
  """Where clips begin and end: what asks for decoding anew when it changes.

  cut_ratio, cut_content: a frame starts a shot if it differs from the one before by `cut_content` (of 255, in the mean
  of brightness, and less of saturation and hue) and `cut_ratio` times as much as those around it. longest: seconds;
  longer shots are cut in equal parts.
  """

  cut_ratio: float = 3.0
  cut_content: float = 13.0
  longest: float = 20.0

  def __post_init__(self):
    if min(self.cut_ratio, self.cut_content, self.longest) <= 0:
      raise ValueError(f"cut_ratio, cut_content and longest must be above 0: {self}")


def examine(path: str | Path, cutting: Cutting = Cutting()) -> dict[str, Any]:
  """The record of a file: what it is, `reason` if it is broken, its cuts (first frames of shots) and clips, in order.

  It is what JSON can hold. A clip has start and end (seconds after the file's first frame; the frame at `end` is not
  its own), first and last (frames, counted from 0; `last` is not its own), shot (seconds of the whole of it), measures
  (see `_measures`), pictures (JPEG), thumbs (a frame every 1/GRID s, THUMB x THUMB grey levels) and hashes (distinct
  perceptual hashes of all its frames, 16 hexadecimal digits).
  """
  progress, watched = video.Progress(), _Watched(cutting)
  found: dict[str, Any] = {"clips": []}
  try:
    for time, frame in video.decoded(path, progress):
      watched.add(time, frame)
    if progress.probe.codec == "gif":
      _check_gif(path)
  except video.VideoError as error:
    found["reason"] = error.reason
  except Exception as error:  # whatever a file does to the libraries that read it, it must not end the run for others
    found["reason"] = f"cannot be converted: {type(error).__name__}: {error}"
  if progress.probe:
    found |= {key: getattr(progress.probe, key) for key in ("codec", "fps", "sound")}
    found |= {"duration": round(progress.duration, 6), "frames": progress.decoded, "warnings": progress.warnings}
  if "reason" in found:
    return found
  if damage := [each for each in progress.warnings if each.startswith("truncated") or "corrupt" in each]:
    return found | {"reason": "damaged: " + "; ".join(damage)}
  if progress.errors:
    return found | {"reason": f"damaged: {progress.errors} errors while decoding"}
  return found | {"clips": watched.clips(progress.duration), "cuts": sorted(watched.cuts)}


def _check_gif(path: str | Path) -> None:
  """FFmpeg paints over damage in a GIF; Pillow tells of it. Raises VideoError."""
  from PIL import Image, ImageSequence

  try:
    with Image.open(path) as image:
      for picture in ImageSequence.Iterator(image):
        picture.load()
  except Exception as error:  # of many kinds
    raise video.VideoError(path, f"damaged: {error}") from None


class _Watched:
  """What is kept of the frames of a file until all are seen."""

  def __init__(self, cutting: Cutting):
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    self.cutting = cutting
    weights = ContentDetector.Components(*WEIGHTS)
    self.detector = AdaptiveDetector(cutting.cut_ratio, 1, WINDOW, cutting.cut_content, weights)
    self.cuts: set[int] = set()
    self.fed = 0
    self.times: list[float] = []
    self.hashes: list[str | None] = []
    self.bright: list[float] = []
    self.small: np.ndarray | None = None
    self.grid: list[tuple[int, np.ndarray]] = []  # the frame on screen every 1/GRID s, and its thumb
    self.flows: list[tuple[int, int, float]] = []  # two frames, how far the one moved to the other
    self.sparse: list[tuple[int, float, np.ndarray, np.ndarray, bytes]] = []
    self.grey: np.ndarray | None = None  # the last frame
    self.moved: tuple[int, np.ndarray] | None = None  # the last frame of which motion was measured
    self.shape = 0, 0
    self.flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

  def add(self, time: float, frame: av.VideoFrame) -> None:
    """Takes the next frame."""
    import imagehash
    from PIL import Image

    small = video.shrunk(frame, SIDE)
    if min(small.shape[:2]) < NARROWEST:
      raise video.VideoError("a frame", f"too narrow: {frame.width} x {frame.height} pixels")
    if self.small is not None and small.shape != self.small.shape:  # a new size within the file is a new shot
      self.cuts.add(len(self.times))
      small = cv2.resize(small, self.small.shape[1::-1], interpolation=cv2.INTER_AREA)
    if not self.times:
      turned = (small.shape[0] > small.shape[1]) != (frame.height > frame.width)
      self.shape = (frame.width, frame.height) if turned else (frame.height, frame.width)
      for _ in range(WINDOW):  # so that a cut after the first frame is seen too
        self._detect(small)
    self._fill(time)
    index, self.small = len(self.times), small
    self._detect(small)
    grey = self.grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    self.times.append(time)
    self.bright.append(float(grey.mean()) / 255)
    flat = grey.std() < FLAT
    self.hashes.append(None if flat else str(imagehash.phash(Image.fromarray(grey))))
    if self.moved is None or time >= self.times[self.moved[0]] + 1 / GRID - 1e-6:
      if self.moved is not None:
        moved = np.linalg.norm(self.flow.calc(self.moved[1], grey, None), axis=-1) / max(grey.shape)
        self.flows.append((self.moved[0], index, float(np.percentile(moved, 99))))
      self.moved = index, grey
    if not self.sparse or time >= self.times[self.sparse[-1][0]] + 1 / SPARSE - 1e-6:
      large = video.shrunk(frame, SHARP_SIDE)
      sharp = float(cv2.Laplacian(cv2.cvtColor(large, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())
      light = large.max(axis=2)
      height = min(max(1, round(PICTURE * large.shape[0] / large.shape[1])), 4 * PICTURE)
      picture = cv2.resize(large, (PICTURE, height), interpolation=cv2.INTER_AREA)[..., ::-1]
      jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
      rows, columns = (np.percentile(light, 98, axis=axis) for axis in (1, 0))
      self.sparse.append((index, sharp, rows, columns, jpeg))

  def _fill(self, time: float) -> None:
    """Puts the last frame on the grid up to `time`."""
    thumb = None
    while self.times and len(self.grid) / GRID < time - 1e-3:
      thumb = cv2.resize(self.grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA) if thumb is None else thumb
      self.grid.append((len(self.times) - 1, thumb))

  def _detect(self, small: np.ndarray) -> None:
    from scenedetect import FrameTimecode

    lit = np.maximum(small, BLACK)[..., ::-1]  # the hue of what is nearly black is noise
    for cut in self.detector.process_frame(FrameTimecode(self.fed, 25.0), lit):
      self.cuts.add(cut.frame_num - WINDOW)
    self.fed += 1

  def clips(self, duration: float) -> list[dict[str, Any]]:
    """The clips of the file that lasts `duration` seconds."""
    for _ in range(WINDOW):  # the frames that the detector holds back
      self._detect(self.small)
    self._fill(duration)
    self.cuts -= {0, len(self.times)}
    edges = [0, *sorted(self.cuts)]
    ends = [*self.times, duration]
    found = []
    for first, last in zip(edges, [*edges[1:], len(self.times)]):
      parts = int(np.ceil((ends[last] - ends[first]) / self.cutting.longest - 1e-9))
      inner = np.linspace(ends[first], ends[last], max(parts, 1) + 1)[1:-1]
      marks = [first, *(int(mark) for mark in np.searchsorted(self.times, inner)), last]
      for begin, end in zip(marks, marks[1:]):
        if begin < end:
          place = {"start": ends[begin], "end": ends[end], "first": begin, "last": end}
          found.append(place | {"shot": ends[last] - ends[first]} | self._about(begin, end))
    return found

  def _about(self, begin: int, end: int) -> dict[str, Any]:
    mine = lambda rows: [row for row in rows if begin <= row[0] < end]
    sparse = mine(self.sparse)
    chosen = [sparse[place][-1] for place in np.linspace(0, len(sparse) - 1, 3).round().astype(int)] if sparse else []
    grid = mine(self.grid)
    thumbs = b"".join(thumb.tobytes() for _, thumb in grid)
    hashes = [each for each in self.hashes[begin:end] if each]
    return {
      "measures": self._measures(begin, end, sparse),
      "pictures": [base64.b64encode(each).decode() for each in dict.fromkeys(chosen)],
      "thumbs": base64.b64encode(thumbs).decode(),
      "hashes": list(dict.fromkeys(hashes)),
    }

  def _measures(self, begin: int, end: int, sparse: list) -> dict[str, float]:
    """height, width (upright pixels); motion (of the long side, a second, of the 1 % that moves most, in the mean);
    sharpness (variance of the Laplacian at SHARP_SIDE); brightness (0 to 1); bars (the share of black at the edges).
    """
    rates = [
      share / (self.times[second] - self.times[first])
      for first, second, share in self.flows
      if begin <= first and second < end
    ]
    bars = 0.0
    if sparse:
      sizes = {(len(rows), len(columns)) for _, _, rows, columns, _ in sparse}
      if len(sizes) == 1:
        across, down = (np.max([row[place] for row in sparse], axis=0) for place in (2, 3))
        lit = [np.flatnonzero(each > BLACK) for each in (across, down)]
        if all(len(each) for each in lit):
          seen = [(each[-1] - each[0] + 1) / total for each, total in zip(lit, (len(across), len(down)))]
          bars = 1 - seen[0] * seen[1]
    return {
      "height": self.shape[0],
      "width": self.shape[1],
      "motion": round(float(np.mean(rates)) if rates else 0.0, 5),
      "sharpness": round(float(np.median([row[1] for row in sparse])) if sparse else 0.0, 2),
      "brightness": round(float(np.mean(self.bright[begin:end])), 4),
      "bars": round(float(bars), 4),
    }
