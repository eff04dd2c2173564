"""Do objects keep existing, and do they move as they should? Fits to what is tracked; no ground truth is needed."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table
from vdt.evals.controls import ALL, check_task, columns
from vdt.evals.tracking import Track, area_range, intact, occluder_distance, track, uniform_motion

NOISE = 0.05  # px: accuracy of the tracker, below which no contact is looked for


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
  expected = uniform_motion(before, tracks.position[before, 0], frames)
  if len(gaps):
    after = clear[gaps[0] + 1]
    return float(np.linalg.norm(tracks.position[after, 0] - expected[after]))
  distance = occluder_distance(tracks.occluder)
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

  task, given_frames: of the samples: "prediction" goes on with clips of `split`, so that one eval each of "test",
  "combinatorial" and "ood" says apart what holds in the world that was seen, in new combinations, and outside of it.
  `gravity`: the scene has it; without, objects fly straight. Set it to False with two objects or an occluder.
  Acceptance of a trained model, one ball under gravity: intact >= 0.95, trajectory residual <= 0.35 px, gravity
  error <= 0.1. The other columns are those of `controls.columns`.
  """

  count: int = 64
  gravity: bool = True
  objects: int = 1
  occluder: bool = False
  split: str = "test"
  every: int = 0
  task: str = "generation"
  given_frames: int | None = None

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

  def prepare(self, data: Any) -> None:
    """ValueError for samples that cannot be."""
    check_task(self.task, self.given_frames, data.frames)

  @property
  def clips(self) -> int:
    return 2 * self.count

  def __call__(self, run: Run) -> Table:
    tracks, size = {}, (0, 0)
    for column, videos in columns(run, self.split, self.count, ALL, self.task, self.given_frames):
      tracks[column] = [track(video, self.objects, self.occluder) for video in videos]
      size = videos.shape[2:4]
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
