"""Captioned physics videos with their ground truth: each clip is a pure function of (seed, scene, split, index).

pymunk moves the bodies and OpenCV draws them, four times too large and then averaged down, so that motion of a
fraction of a pixel shows. Lengths are pixels, x to the right and y down, the frame being [0, size] x [0, size];
times are frames. A scene is drawn in shares of the frame and of the clip, so it looks alike at any size and rate.

Scenes: `bouncing` one ball under gravity between walls; `tumbling` one or two balls and boxes, the same way;
`collisions` two bodies meet without gravity or walls; `occlusion` a body passes behind a bar; `sprites` a shape
drifts and turns; `mixed` one of the last four.

Splits: `test` is drawn like `train`; each clip of `combinatorial` has a pair of words in HELD_OUT, which no clip of
another split has; `ood` is faster (and falls faster) than anything in train.
"""

import math
import zlib
from typing import NamedTuple

import cv2
import numpy as np
import pymunk

SPLITS = ("train", "test", "combinatorial", "ood")
BACKGROUND = (16, 16, 24)
OCCLUDER = (128, 128, 128)
COLOURS = {
  "red": (240, 48, 48),
  "green": (48, 216, 72),
  "blue": (64, 96, 255),
  "yellow": (248, 224, 48),
  "magenta": (232, 64, 232),
  "cyan": (48, 224, 232),
}
SPRITES = ("star", "triangle", "ring", "cross")
TOWARDS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PHRASE = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
HELD_OUT = {
  *(("red", "left"), ("blue", "right"), ("green", "up"), ("yellow", "down")),
  *(("green", "box"), ("red", "ring"), ("yellow", "star"), ("magenta", "triangle"), ("cyan", "cross")),
}
SUBSTEPS = 20  # of the physics, in a frame
SUPERSAMPLING = 4  # of the drawing, along each side
SHIFT = 6  # fractional bits of the coordinates handed to OpenCV


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
    2, tuple(COLOURS), ("ball", "box"), slow=(0.3, 0.4), fast=(0.55, 0.7), beyond=(0.85, 1.0), elasticity=0.95
  ),
  "occlusion": Scene(
    1, tuple(COLOURS), ("ball", "box"), slow=(0.44, 0.52), fast=(0.62, 0.72), beyond=(0.8, 0.9), radius=(0.075, 0.095)
  ),
  "sprites": Scene(1, tuple(COLOURS), SPRITES, tuple(TOWARDS), radius=(0.11, 0.15)),
  "mixed": Scene(2, tuple(COLOURS), ("ball", "box", *SPRITES), tuple(TOWARDS)),
}
MIXED = ("tumbling", "collisions", "occlusion", "sprites")


class Body(NamedTuple):
  """A body at frame 0; `radius` is that of the circle around its shape, `spin` radians a frame, clockwise."""

  colour: str
  shape: str
  direction: str
  fast: bool
  radius: float
  position: np.ndarray
  velocity: np.ndarray
  angle: float = 0.0
  spin: float = 0.0

  def describe(self) -> str:
    return f"{self.name()} moves {'fast' if self.fast else 'slowly'} {PHRASE[self.direction]}"

  def name(self) -> str:
    return f"a {self.colour} {self.shape}"


class World(NamedTuple):
  """Bodies and what surrounds them; `occluder` is (left, top, right, bottom) in whole pixels."""

  bodies: list[Body]
  gravity: float = 0.0
  walls: bool = False
  occluder: tuple[int, int, int, int] | None = None
  ending: str = ""


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
  positions, angles, contact = move(world, SCENES[part], frames, size)
  video = render(world, positions, angles, size)

  sentences = []
  for i, body in enumerate(world.bodies):
    bounces = world.walls and contact[:, i].any()
    sentences.append(body.describe() + (" and bounces" if bounces else ""))
  caption = (" while " if world.walls else "").join(sentences[: None if world.walls else 1]) + world.ending

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
  truth["visible"][:, :n] = visible(world, positions, angles, size)
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


def draw_words(rng, scene: Scene, split: str, combinatorial: bool, directions=None, other_than=""):
  """(colour, shape, direction, fast, share of the frame crossed in a clip) of one body, as its split allows."""
  while True:
    colour, shape = str(rng.choice(scene.colours)), str(rng.choice(scene.shapes))
    direction = str(rng.choice(directions or scene.directions))
    if held_out(colour, shape, direction) == combinatorial and colour != other_than:
      break
  fast = split == "ood" or bool(rng.random() < 0.5)
  crossed = rng.uniform(*(scene.beyond if split == "ood" else scene.fast if fast else scene.slow))
  return colour, shape, direction, fast, crossed


def draw_start(rng, direction: str, velocity: np.ndarray, radius: float, frames: int, size: int) -> np.ndarray:
  """A start from which a body at constant velocity stays inside the frame, as far as that can be had."""
  travel = velocity * (frames - 1)
  low = radius + np.maximum(-travel, 0)
  high = size - radius - np.maximum(travel, 0)
  return rng.uniform(np.minimum(low, high), np.maximum(low, high))


def draw_thrown(rng, scene: Scene, split: str, frames: int, size: int, first: bool = True) -> Body:
  """A body thrown so that it lands after the clip (two in three) or within it; one in ten may meet a wall."""
  words = draw_words(rng, scene, split, first and split == "combinatorial")
  colour, shape, direction, fast, crossed = words
  steps, g = frames - 1, gravity(split, frames, size)
  radius = rng.uniform(*scene.radius) * size
  across = TOWARDS[direction][0] * crossed * size / steps
  lands = rng.random() < 0.33
  while True:
    height = rng.uniform(radius, size - 2 * radius)
    after = steps * (rng.uniform(0.25, 0.95) if lands else rng.uniform(1.05, 1.7))
    down = (size - radius - height) / after - g * after / 2
    highest = height - down**2 / (2 * g) if down < 0 else height
    if highest > radius and abs(down) < 0.85 * size / steps:
      break
  start = draw_start(rng, direction, np.array([across, 0.0]), radius, frames, size)
  if rng.random() < 0.1:
    start = rng.uniform(radius, size - radius, 2)
  position = np.array([start[0], height])
  angle = rng.uniform(0, math.pi / 2) if shape == "box" else 0.0
  return Body(colour, shape, direction, fast, radius, position, np.array([across, down]), angle)


def draw_bouncing(rng, scene: Scene, split: str, frames: int, size: int) -> World:
  bodies = [draw_thrown(rng, scene, split, frames, size)]
  if scene.objects == 2 and rng.random() < 0.5:
    while len(bodies) == 1:
      other = draw_thrown(rng, scene, split, frames, size, first=False)
      apart = np.linalg.norm(other.position - bodies[0].position) > 1.1 * (other.radius + bodies[0].radius)
      if apart and other.colour != bodies[0].colour:
        bodies.append(other)
  return World(bodies, gravity(split, frames, size), walls=True)


def draw_collisions(rng, scene: Scene, split: str, frames: int, size: int) -> World:
  colour, shape, direction, fast, crossed = draw_words(rng, scene, split, split == "combinatorial")
  sign = TOWARDS[direction][0]
  back = {"left": "right", "right": "left"}[direction]
  other = draw_words(rng, scene, "train", False, directions=(back,), other_than=colour)
  radii = rng.uniform(*scene.radius, 2) * size
  speed = np.array([sign * crossed, -sign * rng.choice([0.0, 1.0]) * rng.uniform(0.15, 0.3)]) * size / (frames - 1)
  when = rng.uniform(0.35, 0.45) * (frames - 1)
  where = size * (0.5 + rng.uniform(-0.05, 0.05, 2))
  beside = rng.uniform(-0.5, 0.5) * radii.sum()
  along = sign * math.sqrt(radii.sum() ** 2 - beside**2)
  bodies = []
  for words, radius, share, v in zip(((colour, shape, direction, fast), other[:4]), radii, (-0.5, 0.5), speed):
    meets = where + share * np.array([along, beside])
    angle = rng.uniform(0, math.pi / 2)
    bodies.append(Body(*words, radius, meets - np.array([v * when, 0.0]), np.array([v, 0.0]), angle))
  return World(bodies, ending=f" and hits {bodies[1].name()}")


def draw_occlusion(rng, scene: Scene, split: str, frames: int, size: int) -> World:
  colour, shape, direction, fast, crossed = draw_words(rng, scene, split, split == "combinatorial")
  radius = rng.uniform(*scene.radius) * size
  travel = crossed * size
  narrow, wide = math.ceil(2 * radius + 1), math.floor(travel - 2 * radius)
  width = int(rng.integers(narrow, max(narrow, min(wide, size // 3)) + 1))
  slack = max(size - travel - 2 * radius, 0.0) / 2
  middle = size / 2 + rng.uniform(-slack, slack)
  left = round(middle - width / 2)
  height = round(size * rng.uniform(0.6, 0.9))
  top = int(rng.integers(0, size - height + 1))
  y = rng.uniform(top + radius, top + height - radius)
  sign = TOWARDS[direction][0]
  body = Body(
    *(colour, shape, direction, fast, radius),
    position=np.array([middle - sign * travel / 2, y]),
    velocity=np.array([sign * travel / (frames - 1), 0.0]),
    angle=rng.uniform(0, math.pi / 2),
  )
  return World([body], occluder=(left, top, left + width, top + height), ending=" behind a grey bar")


def draw_sprites(rng, scene: Scene, split: str, frames: int, size: int) -> World:
  colour, shape, direction, fast, crossed = draw_words(rng, scene, split, split == "combinatorial")
  radius = rng.uniform(*scene.radius) * size
  velocity = np.array(TOWARDS[direction]) * crossed * size / (frames - 1)
  start = draw_start(rng, direction, velocity, radius, frames, size)
  turn = rng.choice([-1, 1]) * rng.uniform(0.25, 0.6)
  body = Body(
    *(colour, shape, direction, fast, radius, start, velocity),
    angle=rng.uniform(0, 2 * math.pi),
    spin=2 * math.pi * turn / (frames - 1),
  )
  return World([body], ending=f" and turns {'clockwise' if turn > 0 else 'counterclockwise'}")


DRAW = {
  "bouncing": draw_bouncing,
  "tumbling": draw_bouncing,
  "collisions": draw_collisions,
  "occlusion": draw_occlusion,
  "sprites": draw_sprites,
}


def outline(body: Body) -> np.ndarray | None:
  """Corners (n, 2) of a shape around (0, 0), unturned; None for those made of circles."""
  if body.shape in ("ball", "ring"):
    return None
  if body.shape == "cross":
    arm = 0.3
    reach = math.sqrt(1 - arm**2)
    quarter = np.array([[reach, -arm], [reach, arm], [arm, arm]])
    turns = [np.array([[0, -1], [1, 0]]) for _ in range(4)]
    corners = np.concatenate([quarter @ np.linalg.matrix_power(turn, i).T for i, turn in enumerate(turns)])
    return corners * body.radius
  corners, inner = {"box": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.45)}[body.shape]
  angle = 2 * np.pi * (np.arange(corners) + 0.5) / corners
  length = np.where(np.arange(corners) % 2, inner, 1.0) * body.radius
  return np.stack([np.cos(angle), np.sin(angle)], 1) * length[:, None]


def area(body: Body) -> float:
  """Area of a shape in px^2 (the shoelace formula), which is also its mass."""
  if body.shape in ("ball", "ring"):
    return math.pi * body.radius**2 * (0.75 if body.shape == "ring" else 1.0)
  x, y = outline(body).T
  return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def move(world: World, scene: Scene, frames: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Runs the physics: positions (f, n, 2), angles (f, n) and contact (f, n) of the n bodies."""
  space = pymunk.Space()
  space.gravity = (0.0, world.gravity)
  space.collision_slop = 0.005 * size / 16
  if world.walls:
    for a, b in (((-1, -1), (2, -1)), ((-1, 2), (2, 2)), ((-1, -1), (-1, 2)), ((2, -1), (2, 2))):
      wall = pymunk.Segment(space.static_body, (a[0] * size, a[1] * size), (b[0] * size, b[1] * size), size)
      wall.elasticity, wall.friction = 1.0, scene.friction
      space.add(wall)
  dt = 1 / SUBSTEPS
  touched: set[int] = set()
  bodies = []
  for i, body in enumerate(world.bodies):
    solid = pymunk.Body()
    corners = outline(body) if body.shape == "box" else None
    shape = pymunk.Circle(solid, body.radius) if corners is None else pymunk.Poly(solid, corners.tolist())
    shape.mass, shape.elasticity, shape.friction = area(body), scene.elasticity, scene.friction
    shape.collision_type = i + 1
    space.add(solid, shape)
    solid.position, solid.angle, solid.angular_velocity = tuple(body.position), body.angle, body.spin
    # Semi-implicit Euler is half a substep ahead in velocity: with this start, free flight is the exact parabola.
    solid.velocity = (body.velocity[0], body.velocity[1] - world.gravity * dt / 2)
    bodies.append(solid)

  def touch(arbiter, space, data):
    touched.update(shape.collision_type for shape in arbiter.shapes)

  space.on_collision(post_solve=touch)
  positions = np.empty((frames, len(bodies), 2))
  angles = np.empty((frames, len(bodies)))
  contact = np.zeros((frames, len(bodies)), bool)
  for frame in range(frames):
    if frame:
      touched.clear()
      for _ in range(SUBSTEPS):
        space.step(dt)
    for i, body in enumerate(bodies):
      positions[frame, i], angles[frame, i], contact[frame, i] = body.position, body.angle, i + 1 in touched
  return positions, angles, contact


def draw(canvas: np.ndarray, body: Body, position: np.ndarray, angle: float, colour, hollow) -> None:
  """Draws a body onto a supersampled canvas; sprites have a darker core, and `hollow` fills the hole of a ring."""
  scale = SUPERSAMPLING * 2**SHIFT
  half = 2 ** (SHIFT - 1)  # OpenCV counts from the middle of the first pixel, we from its corner
  corners = outline(body)
  if corners is None:
    centre = tuple(int(round(c * scale)) - half for c in position)
    # A filled circle of OpenCV reaches half a pixel beyond its radius.
    cv2.circle(canvas, centre, max(int(round(body.radius * scale)) - half, 0), colour, -1, cv2.LINE_8, SHIFT)
    if body.shape == "ring":
      cv2.circle(canvas, centre, int(round(body.radius / 2 * scale)) - half, hollow, -1, cv2.LINE_8, SHIFT)
    return
  cos, sin = math.cos(angle), math.sin(angle)
  turned = corners @ np.array([[cos, sin], [-sin, cos]])
  points = np.round((turned + position) * scale).astype(np.int32) - half
  cv2.fillPoly(canvas, [points], colour, cv2.LINE_8, SHIFT)
  if body.shape in SPRITES:
    core = np.round((turned / 2 + position) * scale).astype(np.int32) - half
    cv2.fillPoly(canvas, [core], tuple(c // 2 for c in colour), cv2.LINE_8, SHIFT)


def render(world: World, positions: np.ndarray, angles: np.ndarray, size: int) -> np.ndarray:
  """The video (f, size, size, 3) uint8 RGB of the bodies on their way, drawn large and averaged down."""
  frames, side = len(positions), size * SUPERSAMPLING
  empty = np.empty((side, side, 3), np.uint8)
  empty[:] = BACKGROUND
  canvas = np.stack([empty] * frames)
  for frame in range(frames):
    for body, position, angle in zip(world.bodies, positions[frame], angles[frame]):
      draw(canvas[frame], body, position, angle, COLOURS[body.colour], BACKGROUND)
  if world.occluder:
    left, top, right, bottom = (SUPERSAMPLING * edge for edge in world.occluder)
    canvas[:, top:bottom, left:right] = OCCLUDER
  tall = canvas.reshape(frames * side, side, 3)
  while tall.shape[1] > size:  # by halves: OpenCV averages 2 x 2 four times as fast as 4 x 4
    tall = cv2.resize(tall, (tall.shape[1] // 2, tall.shape[0] // 2), interpolation=cv2.INTER_AREA)
  return tall.reshape(frames, size, size, 3)


def visible(world: World, positions: np.ndarray, angles: np.ndarray, size: int) -> np.ndarray:
  """The share (f, n) of each body's area inside the frame and not behind the occluder (bodies never overlap)."""
  shares = np.ones(positions.shape[:2])
  for i, body in enumerate(world.bodies):
    reach = math.ceil(body.radius) + 1
    corners = np.floor(positions[:, i]).astype(int) - reach
    for frame, (x, y) in enumerate(corners):
      inside = min(x, y) >= 0 and max(x, y) + 2 * reach + 1 <= size
      if inside and not world.occluder:
        continue
      mask = np.zeros((SUPERSAMPLING * (2 * reach + 1),) * 2, np.uint8)
      draw(mask, body, positions[frame, i] - (x, y), angles[frame, i], (2,), (0,))
      whole = cv2.countNonZero(mask)
      offset = np.array([x, y, x, y])
      left, top, right, bottom = SUPERSAMPLING * np.maximum(np.array([0, 0, size, size]) - offset, 0)
      mask[:top], mask[bottom:], mask[:, :left], mask[:, right:] = 0, 0, 0, 0
      if world.occluder:
        left, top, right, bottom = SUPERSAMPLING * np.maximum(np.array(world.occluder) - offset, 0)
        mask[top:bottom, left:right] = 0
      shares[frame, i] = cv2.countNonZero(mask) / whole
  return shares
