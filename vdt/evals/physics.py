"""Do objects keep existing, and do they move as they should? A tracker and fits; no ground truth is needed."""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from vdt.evals import Run, Table
from vdt.evals.controls import columns

THRESHOLD = 0.4  # colour distance to the background, [-1, 1], above which a pixel belongs to something
SPECK = 0.1  # components below this share of the clip's objects are noise
TOLERANCE = 0.5  # of the area of one object
COLOUR = 0.25  # of the contrast
NOISE = 0.05  # px: accuracy of the tracker, below which no contact is looked for


class Track(NamedTuple):
  """The objects of a clip; NaN where fewer than `objects` are seen apart.

  position: x, y in px, y down, (0, 0) the centre of the first pixel. area: px, partly covered pixels in part.
  count: components a frame; total: their area, px. clear: seen, and not beside the occluder. occluder: what is still.
  """

  position: Float[np.ndarray, "f n 2"]
  area: Float[np.ndarray, "f n"]
  colour: Float[np.ndarray, "f n c"]
  count: Float[np.ndarray, "f"]
  total: Float[np.ndarray, "f"]
  clear: Bool[np.ndarray, "f"]
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


def _line(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
  """values (n, 2) at `times` as uniform motion, evaluated at `at`; two values at least."""
  slope, start = np.polyfit(times, values, 1)
  return start + np.multiply.outer(at, slope)


def _may_hide(tracks: Track) -> Bool[np.ndarray, "f"]:
  """Frames in which the occluder may hide the object: uniform motion between clear sightings leads beside or behind."""
  clear = np.flatnonzero(tracks.clear)
  hidden = np.zeros(len(tracks.clear), bool)
  if not tracks.occluder.any() or len(clear) < 2:
    return hidden
  height, width = tracks.occluder.shape
  distance = cv2.distanceTransform((~tracks.occluder).astype(np.uint8), cv2.DIST_L2, 5)
  reach = np.sqrt(np.median(tracks.area[clear]) / np.pi) + 1.5
  for frame in np.flatnonzero(~tracks.clear):
    nearest = clear[np.argsort(np.abs(clear - frame), kind="stable")[:2]]
    x, y = _line(nearest, tracks.position[nearest, 0], np.array(frame))
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


def area_range(tracks: list[Track]) -> tuple[float, float]:
  """Total areas, px, that `intact` accepts: 5th to 95th percentile of these (real) clips' medians, +-50 % of one."""
  objects = tracks[0].area.shape[1]
  areas = [np.median(t.total[t.clear & (t.count == objects)]) for t in tracks if t.clear.any()]
  if not areas:
    raise ValueError("no object was found in the real clips: physics needs bright objects on a uniform background")
  low, high = np.quantile(areas, [0.05, 0.95])
  return float(low * (1 - TOLERANCE / objects)), float(high * (1 + TOLERANCE / objects))


class _Fit(NamedTuple):
  """Arcs of one axis: start + slope t for each piece and acceleration / 2 t^2 shared."""

  error: float  # sum of squares
  start: np.ndarray
  slope: np.ndarray
  acceleration: float
  unknowns: int


def _fit(times: np.ndarray, values: np.ndarray, breaks: list[int], curved: bool) -> _Fit:
  piece = np.searchsorted(np.array(sorted(breaks)), np.arange(len(times)), side="right")
  member = np.eye(len(breaks) + 1)[piece]
  design = np.concatenate([member, member * times[:, None]] + [times[:, None] ** 2 / 2] * curved, axis=1)
  answer = np.linalg.lstsq(design, values, rcond=None)[0]
  pieces = len(breaks) + 1
  error = float(np.square(design @ answer - values).sum())
  return _Fit(
    error, answer[:pieces], answer[pieces : 2 * pieces], float(answer[-1]) if curved else 0.0, design.shape[1]
  )


def arcs(times: np.ndarray, values: np.ndarray, low: float, high: float, curved: bool) -> tuple[_Fit, list[int]]:
  """Free flight between contacts with the walls at `low` and `high`, by least squares, and where contacts are.

  Break i is a contact between values i - 1 and i. It is only looked for where a wall is in reach, must push away
  from that wall, and the number of contacts is the one of the least Bayesian information criterion (three unknowns
  a contact: when, and a new start and slope), along a greedy path, one for 4 values at most.
  """
  steps = np.abs(np.diff(values))
  candidates = {}
  for i in range(1, len(values)):
    reach = 0.5 + 0.5 * max(steps[max(i - 2, 0) : i + 1])
    for away, gap in ((1, values[i - 1 : i + 1].min() - low), (-1, high - values[i - 1 : i + 1].max())):
      if gap <= reach:
        candidates[i] = away

  def score(fit: _Fit, breaks: list[int]) -> float:
    n = len(values)
    return n * np.log(fit.error / n + NOISE**2) + 3 * len(breaks) * np.log(n)

  breaks: list[int] = []
  path = [(_fit(times, values, breaks, curved), breaks)]
  while len(breaks) < len(values) // 4:
    trials = []
    for i in candidates.keys() - set(breaks):
      trial = sorted([*breaks, i])
      fit, at = _fit(times, values, trial, curved), trial.index(i)
      alone = min(np.diff([0, *trial, len(values)])[at : at + 2]) < 2  # one value has no slope to judge
      if alone or candidates[i] * (fit.slope[at + 1] - fit.slope[at]) > 0:
        trials.append((fit.error, trial, fit))
    if not trials:
      break
    _, breaks, fit = min(trials, key=lambda trial: trial[:2])
    path.append((fit, breaks))
  return min(path, key=lambda option: score(*option))


class Flight(NamedTuple):
  """gravity: px per frame^2, NaN if the clip leaves it open; residual: px; contacts: speeds^2 into and out of walls."""

  gravity: float
  residual: float
  contacts: list[tuple[float, float]]


def flight(position: Float[np.ndarray, "f 2"], radius: float, size: tuple[int, int], gravity: bool = True) -> Flight:
  """Fits arcs with acceleration (0, g), g shared by the clip (or 0 without `gravity`), to a track in (h, w) frames.

  residual: root mean square distance of the track to the arcs. contacts: squares of the speed normal to the wall
  before and after each. Frames at rest on the floor or the ceiling are left out of the vertical fit.
  """
  times = np.flatnonzero(~np.isnan(position[:, 0])).astype(float)
  seen = position[~np.isnan(position[:, 0])]
  squares, contacts, acceleration = [], [], float("nan")
  for axis, extent in ((0, size[1]), (1, size[0])):
    t, values, curved = times, seen[:, axis], gravity and axis == 1
    low, high = radius - 0.5, extent - 0.5 - radius
    if curved:
      steps = np.abs(np.diff(values, prepend=values[:1], append=values[-1:]))
      still = np.maximum(steps[:-1], steps[1:]) <= 0.15
      rests = still & (np.minimum(values - low, high - values) <= 0.75)
      t, values = t[~rests], values[~rests]
    if len(values) < 4:
      continue
    fit, breaks = arcs(t, values, low, high, curved)
    squares.append(fit.error / len(values))
    if curved and len(values) > fit.unknowns:
      acceleration = fit.acceleration
    bounds = [0, *breaks, len(values)]
    for k, i in enumerate(breaks):
      if min(bounds[k + 1] - bounds[k], bounds[k + 2] - bounds[k + 1]) < 3:  # fewer values fit any moment of contact
        continue
      kick = fit.slope[k + 1] - fit.slope[k]
      contact = np.clip((fit.start[k] - fit.start[k + 1]) / kick, t[i - 1], t[i])
      into, out = (fit.slope[k + j] + fit.acceleration * contact for j in (0, 1))
      contacts.append((float(into**2), float(out**2)))
  return Flight(acceleration, float(np.sqrt(sum(squares))) if len(squares) == 2 else float("nan"), contacts)


def permanence_error(tracks: Track) -> float:
  """Distance, px, of the first clear sighting behind an occluder to where uniform motion puts the object.

  The motion is fitted to the clear frames before. An object that should be in clear sight and is not until the end
  counts the diagonal of the frame. NaN if nothing passes the occluder, or fewer than 2 clear frames come before.
  """
  clear = np.flatnonzero(tracks.clear)
  gaps = np.flatnonzero(np.diff(clear) > 1)
  before = clear[: gaps[0] + 1] if len(gaps) else clear
  if not tracks.occluder.any() or len(before) < 2 or before[-1] == len(tracks.clear) - 1:
    return float("nan")
  height, width = tracks.occluder.shape
  frames = np.arange(len(tracks.clear))
  expected = _line(before, tracks.position[before, 0], frames)
  if len(gaps):
    after = clear[gaps[0] + 1]
    return float(np.linalg.norm(tracks.position[after, 0] - expected[after]))
  distance = cv2.distanceTransform((~tracks.occluder).astype(np.uint8), cv2.DIST_L2, 5)
  reach = np.sqrt(np.median(tracks.area[before]) / np.pi) + 2
  for x, y in expected[before[-1] + 1 :]:
    inside = reach <= x <= width - reach and reach <= y <= height - reach
    if inside and distance[round(y), round(x)] > reach:
      return float(np.hypot(height, width))
  return float("nan")


def momentum_error(tracks: Track, size: tuple[int, int], frames: int = 3) -> float:
  """|change of total momentum| across the closest approach of two objects, over the sum of |momenta| before.

  Areas stand for masses, and velocities are fitted to at most `frames` frames on each side. NaN if the objects never
  touch, if either side has fewer than 2 frames, or if an object is at a wall in one of them.
  """
  position, area = tracks.position, np.nanmedian(tracks.area, axis=0) if tracks.clear.any() else np.full(2, np.nan)
  if np.isnan(area).any():
    return float("nan")
  radius = np.sqrt(area / np.pi)
  gap = np.linalg.norm(position[:, 0] - position[:, 1], axis=-1)
  merged = np.isnan(gap) & (tracks.count == 1)
  gap = np.where(merged, radius.sum(), gap)
  if np.isnan(gap).all() or np.nanmin(gap) > 1.5 * radius.sum():
    return float("nan")
  nearest = np.flatnonzero(merged) if merged.any() else np.array([np.nanargmin(gap)])
  seen = np.flatnonzero(~np.isnan(position[:, 0, 0]))
  before, after = seen[seen < nearest.min()][-frames:], seen[seen > nearest.max()][:frames]
  if min(len(before), len(after)) < 2:
    return float("nan")
  edges = position[np.concatenate([before, after])]
  limit = np.array([size[1], size[0]]) - 0.5 - radius[:, None]
  if (edges < radius[:, None] - 0.25).any() or (edges > limit - 0.25).any():
    return float("nan")
  velocity = [np.polyfit(t, position[t].reshape(len(t), -1), 1)[0].reshape(2, 2) for t in (before, after)]
  momentum = [area[:, None] * v for v in velocity]
  total = np.linalg.norm(momentum[0], axis=-1).sum()
  return float(np.linalg.norm((momentum[1] - momentum[0]).sum(0)) / total) if total > 0 else float("nan")


def _middle(values: list[float]) -> float:
  values = [value for value in values if not np.isnan(value)]
  return float(np.median(values)) if values else float("nan")


@dataclasses.dataclass
class Physics:
  """Physics of bright objects on a uniform dark background; each row is left out where it does not apply.

  intact: share of clips with all objects, and nothing else, in every frame, of constant area and colour (`intact`).
  Of intact clips with one object: gravity: median fitted acceleration, px per frame^2, y down; gravity error: its
    relative distance to that of the real clips; gravity deviation: median over clips of that distance; fitted:
    share of all clips that gave a gravity; trajectory residual: median over clips of the distance to free flight,
    px; arrow of time: (in - out) / (in + out) of the kinetic energies before and after contacts with walls, summed
    over contacts: (1 - e^2) / (1 + e^2) for restitution e, negative when time runs backwards; contacts: a clip.
  With `occluder`, of all clips: permanence error: median, px (`permanence_error`); passages: share of clips with one.
  With two objects, of all clips: momentum error: median (`momentum_error`); collisions: share of clips with one.

  `gravity`: the scene has it; without, objects fly straight. Set it to False with two objects or an occluder.
  Acceptance of a trained model, one ball under gravity: intact >= 0.95, trajectory residual <= 0.35 px, gravity
  error <= 0.1. "real floor" is a disjoint part of the real clips; the other columns are the real clips corrupted.
  """

  count: int = 64
  gravity: bool = True
  objects: int = 1
  occluder: bool = False
  split: str = "test"
  every: int = 0

  def __post_init__(self):
    if self.objects not in (1, 2):
      raise ValueError(f"objects={self.objects}: physics follows 1 or 2")
    if self.gravity and (self.objects == 2 or self.occluder):
      raise ValueError("gravity is fitted to one ball in free sight: set gravity=False with 2 objects or an occluder")

  def rows(
    self, tracks: list[Track], size: tuple[int, int], accepted: tuple[float, float], reference: float = float("nan")
  ) -> dict[str, float]:
    """The rows of one column, NaN where one does not apply, from the tracks of its clips of (h, w) frames.

    accepted: `area_range` of the real clips; reference: their gravity.
    """
    good = [intact(t, *accepted) for t in tracks]
    rows = {"intact": float(np.mean(good))}
    if self.objects == 1:
      flights = [
        flight(
          np.where(t.clear[:, None], t.position[:, 0], np.nan),
          np.sqrt(np.nanmedian(t.area) / np.pi),
          size,
          self.gravity,
        )
        for t, ok in zip(tracks, good)
        if ok
      ]
      into, out = np.array([pair for one in flights for pair in one.contacts]).reshape(-1, 2).T
      if self.gravity:
        rows["gravity"] = _middle([one.gravity for one in flights])
        rows["gravity deviation"] = _middle([abs(one.gravity / reference - 1) for one in flights])
        rows["fitted"] = sum(not np.isnan(one.gravity) for one in flights) / len(tracks)
      rows["trajectory residual"] = _middle([one.residual for one in flights])
      rows["arrow of time"] = float((into - out).sum() / (into + out).sum()) if len(into) else float("nan")
      rows["contacts"] = len(into) / len(flights) if flights else float("nan")
    if self.objects == 1 and self.occluder:
      errors = [permanence_error(t) for t in tracks]
      rows["permanence error"], rows["passages"] = _middle(errors), float(np.mean(~np.isnan(errors)))
    if self.objects == 2:
      errors = [momentum_error(t, size) for t in tracks]
      rows["momentum error"], rows["collisions"] = _middle(errors), float(np.mean(~np.isnan(errors)))
    return rows

  def __call__(self, run: Run) -> Table:
    videos = columns(run, self.split, self.count, ("frozen", "jitter", "shuffled", "reversed"))
    size = videos["real"].shape[2:4]
    tracks = {c: [track(video, self.objects, self.occluder) for video in v] for c, v in videos.items()}
    accepted = area_range(tracks["real"])
    reference = self.rows(tracks["real"], size, accepted).get("gravity", float("nan"))
    table: Table = {}
    for column, clips in tracks.items():
      rows = self.rows(clips, size, accepted, reference)
      if self.gravity and column != "real":
        rows["gravity error"] = abs(rows["gravity"] / reference - 1)
      for row, value in rows.items():
        if not np.isnan(value):
          table.setdefault(row, {})[column] = value
    return table
