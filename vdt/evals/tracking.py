"""Where the objects of a clip are in every frame, and whether they are all there: all of physics that reads pixels."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Num
from scipy.optimize import linear_sum_assignment

THRESHOLD = 0.4  # colour distance to the background, [-1, 1], above which a pixel belongs to something
SPECK = 0.1  # components below this share of the clip's objects are noise
TOLERANCE = 0.5  # of the area of one object
COLOUR = 0.25  # of the contrast
APART = 0.25  # of the frames may show no object, or several


class Track(NamedTuple):
  """The objects of a clip; NaN where fewer than `objects` are seen apart.

  position: x, y in px, y down, (0, 0) the centre of the first pixel. area: px, partly covered pixels in part.
  count: components a frame; total: their area, px. clear: seen, and not beside the occluder. occluder: what is still.
  """

  position: Float[np.ndarray, "f n 2"]
  area: Float[np.ndarray, "f n"]
  colour: Float[np.ndarray, "f n c"]
  count: Float[np.ndarray, " f"]
  total: Float[np.ndarray, " f"]
  clear: Bool[np.ndarray, " f"]
  occluder: Bool[np.ndarray, "h w"]


def _components(difference: np.ndarray, visible: np.ndarray) -> list[tuple]:
  """(position, area, colour, rim, pixels above the threshold) of each connected component of a frame, largest first."""
  core = (np.linalg.norm(difference, axis=-1) > THRESHOLD) & visible
  number, labels = cv2.connectedComponents(core.astype(np.uint8), connectivity=8)
  found = []
  for label in range(1, number):
    inside = labels == label
    values = difference[inside]
    strength = np.linalg.norm(values, axis=-1)
    colour = values[strength >= np.quantile(strength, 2 / 3)].mean(0)
    rim = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    y, x = np.nonzero(rim & visible & (~core | inside))
    cover = difference[y, x] @ colour / (colour @ colour)
    area = max(float(cover.sum()), 1e-6)
    found.append((np.array([cover @ x, cover @ y]) / area, area, colour, rim, int(inside.sum())))
  return sorted(found, key=lambda component: -component[1])


def track(video: Float[np.ndarray, "f h w c"], objects: int = 1, occluder: bool = False) -> Track:
  """Follows `objects` bright objects over a uniform background, the median colour of the clip.

  A centre is the mean of the pixels of a connected component and its rim, weighted by how much of the object's
  colour they hold. With `occluder`, what differs from the background in 90 % of the frames is no object.
  """
  difference = (video - np.median(video, axis=(0, 1, 2))).astype(np.float64)
  different = np.linalg.norm(difference, axis=-1) > THRESHOLD
  static = different.mean(0) >= 0.9 if occluder else np.zeros(different.shape[1:], bool)
  frames = [_components(frame, ~static) for frame in difference]
  largest = [frame[0][1] for frame in frames if frame]
  smallest = SPECK * np.median(largest) if largest else 0.0
  frames = [[component for component in frame if component[1] >= smallest] for frame in frames]
  length = len(video)
  position, area = np.full((length, objects, 2), np.nan), np.full((length, objects), np.nan)
  colour, clear = np.full((length, objects, video.shape[-1]), np.nan), np.zeros(length, bool)
  before = None
  for index, frame in enumerate(frames):
    if len(frame) < objects:
      continue
    frame = frame[:objects]
    if before is not None and objects > 1:  # same place and colour, in px and in units of half the contrast
      cost = [[np.linalg.norm(a[0] - b[0]) / 2 + np.linalg.norm(a[2] - b[2]) * 2 for b in frame] for a in before]
      frame = [frame[i] for i in linear_sum_assignment(np.array(cost))[1]]
    before = frame
    position[index], area[index] = [c[0] for c in frame], [c[1] for c in frame]
    colour[index] = [c[2] for c in frame]
    clear[index] = not any((component[3] & static).any() for component in frame)
  total = np.array([sum(component[1] for component in frame) for frame in frames])
  number = np.array([len(frame) for frame in frames], float)
  merged, whole = (number > 0) & (number < objects), number == objects
  if merged.any() and whole.any():  # of mixed colours: count their pixels instead
    inside = np.array([sum(component[4] for component in frame) for frame in frames], float)
    total[merged] = inside[merged] * np.median(total[whole] / inside[whole])
  return Track(
    position=position,
    area=area,
    colour=colour,
    count=number,
    total=total,
    clear=clear,
    occluder=static,
  )


def uniform_motion(
  times: Num[np.ndarray, " n"], values: Float[np.ndarray, "n 2"], at: Num[np.ndarray, "*at"]
) -> Float[np.ndarray, "*at 2"]:
  """Uniform motion fitted to `values` at `times`, evaluated at `at`; two values at least."""
  slope, start = np.polyfit(times, values, 1)
  return start + np.multiply.outer(at, slope)


def occluder_distance(occluder: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
  """Distance, px, of each pixel to the nearest one of the occluder, which must have some."""
  return cv2.distanceTransform((~occluder).astype(np.uint8), cv2.DIST_L2, 5)


def _may_hide(tracks: Track) -> Bool[np.ndarray, " f"]:
  """Frames in which the occluder may hide the object: uniform motion between clear sightings leads beside or behind."""
  clear = np.flatnonzero(tracks.clear)
  hidden = np.zeros(len(tracks.clear), bool)
  if not tracks.occluder.any() or len(clear) < 2:
    return hidden
  height, width = tracks.occluder.shape
  distance = occluder_distance(tracks.occluder)
  reach = np.sqrt(np.median(tracks.area[clear]) / np.pi) + 1.5
  for frame in np.flatnonzero(~tracks.clear):
    nearest = clear[np.argsort(np.abs(clear - frame), kind="stable")[:2]]
    x, y = uniform_motion(nearest, tracks.position[nearest, 0], np.array(frame))
    hidden[frame] = distance[int(np.clip(round(y), 0, height - 1)), int(np.clip(round(x), 0, width - 1))] <= reach
  return hidden


def intact(tracks: Track, low: float, high: float) -> bool:
  """All objects in every frame, and nothing else, of constant colour and area.

  The total area of a frame must lie in [low, high] (see `area_range`) and within +-50 % of one object of the clip's
  own median. Objects that touch may merge to one component. Where an occluder may hide the object, less may be seen.
  """
  objects = tracks.area.shape[1]
  hidden = _may_hide(tracks)
  whole = tracks.clear & (tracks.count == objects)
  if not whole.any():
    return False
  median = np.median(tracks.total[whole])
  enough = tracks.total >= max(low, median * (1 - TOLERANCE / objects))
  few = tracks.total <= min(high, median * (1 + TOLERANCE / objects))
  usual = np.median(tracks.colour[whole], axis=0)
  change = np.linalg.norm(tracks.colour[whole] - usual, axis=-1) / np.linalg.norm(usual, axis=-1)
  present = enough & (tracks.count >= 1)
  return bool((present | hidden).all() and few.all() and (tracks.count <= objects).all() and change.max() <= COLOUR)


def alone(tracks: Track) -> bool:
  """Whether nearly all frames show one object."""
  return bool((tracks.count != 1).mean() <= APART)


def area_range(tracks: list[Track]) -> tuple[float, float]:
  """Total areas, px, that `intact` accepts: 5th to 95th percentile of these (real) clips' medians, +-50 % of one."""
  objects = tracks[0].area.shape[1]
  areas = [np.median(t.total[t.clear & (t.count == objects)]) for t in tracks if t.clear.any()]
  if not areas:
    raise ValueError("no object was found in the real clips: physics needs bright objects on a uniform background")
  low, high = np.quantile(areas, [0.05, 0.95])
  return float(low * (1 - TOLERANCE / objects)), float(high * (1 + TOLERANCE / objects))
