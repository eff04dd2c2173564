"""Captioned physics videos with their ground truth: each clip is a pure function of (seed, scene, split, index).

A scene is drawn in shares of the frame and of the clip, so it looks alike at any size and rate. Units as in `physics`.

Scenes: `bouncing` one ball under gravity between walls; `tumbling` one or two balls and boxes, the same way;
`collisions` two bodies meet without gravity or walls; `occlusion` a body passes behind a bar; `sprites` a shape
drifts and turns; `drifting` a larger one keeps upright; `mixed` one of those but bouncing and drifting.

Splits: `test` is drawn like `train`; each clip of `combinatorial` has a pair of words in HELD_OUT, which no clip of
another split has; `ood` is faster (and falls faster) than anything in train.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np

from data_pipelines.physics import COLOURS, SPRITES, Body, World, area, move, render

SPLITS = ("train", "test", "combinatorial", "ood")
TOWARDS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
HELD_OUT = {
  *(("red", "left"), ("blue", "right"), ("green", "up"), ("yellow", "down")),
  *(("green", "box"), ("red", "ring"), ("yellow", "star"), ("magenta", "triangle"), ("cyan", "cross")),
}


class Scene(NamedTuple):
  """What a scene is drawn from; `slow`, `fast` and `beyond` (split ood) are shares of the frame crossed in a clip."""

  objects: int
  colours: tuple[str, ...]
  shapes: tuple[str, ...]
  directions: tuple[str, ...] = ("left", "right")
  slow: tuple[float, float] = (0.13, 0.26)
  fast: tuple[float, float] = (0.37, 0.55)
  beyond: tuple[float, float] = (0.63, 0.70)
  radius: tuple[float, float] = (0.085, 0.12)
  elasticity: float = 0.7
  friction: float = 0.0
  turning: bool = True  # of a sprite

  @property
  def labels(self) -> list[str]:
    """Names of the classes: "colour shape", or the colour alone where there is only one shape."""
    if len(self.shapes) == 1:
      return list(self.colours)
    return [f"{colour} {shape}" for colour in self.colours for shape in self.shapes]


SCENES = {
  "bouncing": Scene(1, tuple(COLOURS)[:4], ("ball",), radius=(0.125, 0.155)),
  "tumbling": Scene(2, tuple(COLOURS), ("ball", "box"), friction=0.4),
  "collisions": Scene(
    2, tuple(COLOURS), ("ball", "box"), slow=(0.3, 0.4), fast=(0.55, 0.7), beyond=(0.8, 0.9), elasticity=0.95
  ),
  "occlusion": Scene(
    1, tuple(COLOURS), ("ball", "box"), slow=(0.48, 0.55), fast=(0.64, 0.72), beyond=(0.8, 0.84), radius=(0.07, 0.09)
  ),
  "sprites": Scene(1, tuple(COLOURS), SPRITES, tuple(TOWARDS), radius=(0.11, 0.15)),
  "drifting": Scene(
    *(1, tuple(COLOURS), SPRITES, tuple(TOWARDS), (0.13, 0.22), (0.32, 0.45), (0.5, 0.56)),
    radius=(0.18, 0.22),
    turning=False,
  ),
  "mixed": Scene(2, tuple(COLOURS), ("ball", "box", *SPRITES), tuple(TOWARDS)),
}
MIXED = ("tumbling", "collisions", "occlusion", "sprites")


class Clip(NamedTuple):
  """A video (f, h, w, 3) uint8 RGB, its caption, the name of its class, and the truth about its bodies.

  truth: `positions` (f, objects, 2) of the centres in pixels; `radius` (objects,) of the circle around the shape;
  `mass` (objects,), the area in px^2; `visible` (f, objects), the share of the area that shows; `contact`
  (f, objects), whether it touched something in the step to this frame; `gravity` in px/frame^2. Where a scene has
  fewer bodies than objects, positions, radius and mass are NaN, visible is 0 and contact false.
  """

  video: np.ndarray
  caption: str
  label: str
  truth: dict[str, np.ndarray]


def simulate(scene: str, split: str, index: int, *, frames: int, size: int, seed: int) -> Clip:
  """Clip `index` of a split, always the same for the same arguments.

  Raises:
    ValueError: an unknown scene or split, or fewer than 2 frames.
  """
  if scene not in SCENES:
    raise ValueError(f"unknown scene {scene!r}: choose one of {', '.join(SCENES)}")
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
  if frames < 2:
    raise ValueError(f"a clip needs at least 2 frames, got {frames}")
  key = [seed, zlib.crc32(scene.encode()), SPLITS.index(split), index]
  rng = np.random.default_rng(np.random.SeedSequence(key))
  part = str(rng.choice(MIXED)) if scene == "mixed" else scene
  world = DRAW[part](rng, SCENES[part], split, frames, size)
  positions, angles, contact = move(world, frames, size)
  video, visible = render(world, positions, angles, size)

  caption = world.bodies[0].describe() + world.ending
  if world.walls:
    bounces = [" and bounces" if touched else "" for touched in contact.any(0)]
    caption = " while ".join(body.describe() + end for body, end in zip(world.bodies, bounces))

  objects = SCENES[scene].objects
  truth = {
    "positions": np.full((frames, objects, 2), np.nan, np.float32),
    "radius": np.full(objects, np.nan, np.float32),
    "mass": np.full(objects, np.nan, np.float32),
    "visible": np.zeros((frames, objects), np.float32),
    "contact": np.zeros((frames, objects), bool),
    "gravity": np.float32(world.gravity),
  }
  n = len(world.bodies)
  truth["positions"][:, :n] = positions
  truth["radius"][:n] = [body.radius for body in world.bodies]
  truth["mass"][:n] = [area(body) for body in world.bodies]
  truth["visible"][:, :n] = visible
  truth["contact"][:, :n] = contact
  first = world.bodies[0]
  label = first.colour if len(SCENES[scene].shapes) == 1 else f"{first.colour} {first.shape}"
  return Clip(video, caption, label, truth)


def gravity(split: str, frames: int, size: int) -> float:
  """0.35 px/frame^2 for 8 frames of 16 x 16: a fall from rest crosses 54 % of the frame in any clip; ood 80 %."""
  return 0.35 * (size / 16) * (7 / (frames - 1)) ** 2 * (1.5 if split == "ood" else 1.0)


def held_out(colour: str, *words: str) -> bool:
  """Whether a body described by these words belongs to the split combinatorial."""
  return any((colour, word) in HELD_OUT for word in words)


def draw_words(rng: np.random.Generator, scene: Scene, split: str, directions: tuple[str, ...] = ()):
  """What a split allows to be said of one body, (colour, shape, direction, fast), and the share it crosses."""
  while True:
    colour, shape = str(rng.choice(scene.colours)), str(rng.choice(scene.shapes))
    direction = str(rng.choice(directions or scene.directions))
    if held_out(colour, shape, direction) == (split == "combinatorial"):
      break
  fast = split == "ood" or bool(rng.random() < 0.5)
  crossed = rng.uniform(*(scene.beyond if split == "ood" else scene.fast if fast else scene.slow))
  return (colour, shape, direction, fast), crossed


def draw_start(rng: np.random.Generator, travel: np.ndarray, radius: float, size: int) -> np.ndarray:
  """A start from which a body that travels so far in the clip stays inside the frame, where that can be had."""
  low = radius + np.maximum(-travel, 0)
  high = size - radius - np.maximum(travel, 0)
  return rng.uniform(np.minimum(low, high), np.maximum(low, high))


def draw_thrown(rng: np.random.Generator, scene: Scene, split: str, frames: int, size: int) -> Body:
  """A body thrown so that it lands after the clip (two in three) or within it; one in ten may meet a wall."""
  words, crossed = draw_words(rng, scene, split)
  steps, g = frames - 1, gravity(split, frames, size)
  radius = rng.uniform(*scene.radius) * size
  lands = rng.random() < 0.33
  while True:
    height = rng.uniform(radius, size - 2 * radius)
    after = steps * (rng.uniform(0.25, 0.95) if lands else rng.uniform(1.05, 1.7))
    down = (size - radius - height) / after - g * after / 2
    highest = height - min(down, 0) ** 2 / (2 * g)
    if highest > radius and abs(down) < 0.85 * size / steps:
      break
  across = TOWARDS[words[2]][0] * crossed * size
  anywhere = rng.random() < 0.1
  start = draw_start(rng, np.array([0.0 if anywhere else across, 0.0]), radius, size)
  position, velocity = np.array([start[0], height]), np.array([across / steps, down])
  return Body(*words, radius, position, velocity, angle=rng.uniform(0, math.pi / 2))


def draw_bouncing(rng: np.random.Generator, scene: Scene, split: str, frames: int, size: int) -> World:
  bodies = [first := draw_thrown(rng, scene, split, frames, size)]
  if scene.objects == 2 and rng.random() < 0.5:
    while len(bodies) == 1:
      other = draw_thrown(rng, scene, "train" if split == "combinatorial" else split, frames, size)
      apart = np.linalg.norm(other.position - first.position) > 1.1 * (other.radius + first.radius)
      if apart and other.colour != first.colour:
        bodies.append(other)
  return World(bodies, gravity(split, frames, size), scene.elasticity, scene.friction, walls=True)


def draw_collisions(rng: np.random.Generator, scene: Scene, split: str, frames: int, size: int) -> World:
  """Two bodies that touch at 35 to 45 % of the clip, near the middle; the second stands or comes slowly."""
  words, crossed = draw_words(rng, scene, split)
  back = {"left": "right", "right": "left"}[words[2]]
  other = words
  while other[0] == words[0]:
    other, _ = draw_words(rng, scene, "train", (back,))
  steps, sign = frames - 1, TOWARDS[words[2]][0]
  radii = rng.uniform(*scene.radius, 2) * size
  speeds = np.array([crossed, -rng.choice([0.0, 1.0]) * rng.uniform(0.15, 0.3)]) * sign * size / steps
  when = rng.uniform(0.35, 0.45) * steps
  where = size * (0.5 + rng.uniform(-0.05, 0.05, 2))
  beside = rng.uniform(-0.5, 0.5) * radii.sum()
  apart = np.array([sign * math.sqrt(radii.sum() ** 2 - beside**2), beside])
  bodies = []
  for said, radius, side, speed in zip((words, other), radii, (-0.5, 0.5), speeds):
    velocity = np.array([speed, 0.0])
    position = where + side * apart - when * velocity
    bodies.append(Body(*said, radius, position, velocity, angle=rng.uniform(0, math.pi / 2)))
  return World(bodies, elasticity=scene.elasticity, ending=f" and hits {bodies[1].name()}")


def draw_occlusion(rng: np.random.Generator, scene: Scene, split: str, frames: int, size: int) -> World:
  """A body whose way is centred on a bar: it shows whole at both ends, and is hidden for a frame at least."""
  words, crossed = draw_words(rng, scene, split)
  radius, travel = rng.uniform(*scene.radius) * size, crossed * size
  narrow, wide = math.ceil(2 * radius + travel / (frames - 1)), math.floor(travel - 2 * radius)
  width = int(rng.integers(narrow, min(wide, max(narrow, size // 3)) + 1))
  slack = max(size - travel - 2 * radius, 0.0) / 2
  left = round((size - width) / 2 + rng.uniform(-slack, slack))
  height = round(size * rng.uniform(0.6, 0.9))
  top = int(rng.integers(0, size - height + 1))
  y = rng.uniform(top + radius, top + height - radius)
  across = TOWARDS[words[2]][0] * travel
  position = np.array([left + width / 2 - across / 2, y])
  velocity = np.array([across / (frames - 1), 0.0])
  body = Body(*words, radius, position, velocity, angle=rng.uniform(0, math.pi / 2))
  return World([body], occluder=(left, top, left + width, top + height), ending=" behind a grey bar")


def draw_sprites(rng: np.random.Generator, scene: Scene, split: str, frames: int, size: int) -> World:
  words, crossed = draw_words(rng, scene, split)
  radius = rng.uniform(*scene.radius) * size
  travel = np.array(TOWARDS[words[2]]) * crossed * size
  start = draw_start(rng, travel, radius, size)
  if not scene.turning:
    return World([Body(*words, radius, start, travel / (frames - 1))])
  turn = rng.choice([-1, 1]) * rng.uniform(0.25, 0.6)
  angle, spin = rng.uniform(0, 2 * math.pi), 2 * math.pi * turn / (frames - 1)
  body = Body(*words, radius, start, travel / (frames - 1), angle, spin)
  return World([body], ending=f" and turns {'clockwise' if turn > 0 else 'counterclockwise'}")


DRAW = {
  "bouncing": draw_bouncing,
  "tumbling": draw_bouncing,
  "collisions": draw_collisions,
  "occlusion": draw_occlusion,
  "sprites": draw_sprites,
  "drifting": draw_sprites,
}
