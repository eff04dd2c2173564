"""Balls, boxes and sprites: pymunk moves them and OpenCV draws them, so that motion of a fraction of a pixel shows.

Lengths are pixels, x to the right and y down, the frame being [0, size] x [0, size]; times are frames.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import pymunk

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
PHRASE = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
SUBSTEPS = 20  # of the physics, in a frame
SUPERSAMPLING = 16  # of the drawing, along each side
SHIFT = 6  # fractional bits of the coordinates handed to OpenCV


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
  """Bodies and what surrounds them; `occluder` is (left, top, right, bottom) in whole pixels, hiding all."""

  bodies: list[Body]
  gravity: float = 0.0
  elasticity: float = 1.0
  friction: float = 0.0
  walls: bool = False
  occluder: tuple[int, int, int, int] | None = None
  ending: str = ""


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


def move(world: World, frames: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Runs the physics: positions (f, n, 2), angles (f, n) and contact (f, n) of the n bodies."""
  space = pymunk.Space()
  space.gravity = (0.0, world.gravity)
  space.collision_slop = 0.005 * size / 16
  if world.walls:
    for a, b in (((-1, -1), (2, -1)), ((-1, 2), (2, 2)), ((-1, -1), (-1, 2)), ((2, -1), (2, 2))):
      wall = pymunk.Segment(space.static_body, (a[0] * size, a[1] * size), (b[0] * size, b[1] * size), size)
      wall.elasticity, wall.friction = 1.0, world.friction
      space.add(wall)
  dt = 1 / SUBSTEPS
  touched: set[int] = set()
  bodies = []
  for i, body in enumerate(world.bodies):
    solid = pymunk.Body()
    corners = outline(body) if body.shape == "box" else None
    shape = pymunk.Circle(solid, body.radius) if corners is None else pymunk.Poly(solid, corners.tolist())
    shape.mass, shape.elasticity, shape.friction = area(body), world.elasticity, world.friction
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


def coverage(body: Body, centre: np.ndarray, angle: float, side: int, scale: float = 1.0) -> np.ndarray:
  """The share in [0, 1] of each pixel of a (side, side) patch that a body, made smaller by `scale`, covers."""
  unit = SUPERSAMPLING * 2**SHIFT
  half = 2 ** (SHIFT - 1)  # OpenCV counts from the middle of the first pixel, we from its corner
  mask = np.zeros((side * SUPERSAMPLING, side * SUPERSAMPLING), np.uint8)
  corners = outline(body)
  if corners is None:
    x, y = (round(c * unit) - half for c in centre.tolist())
    cv2.circle(mask, (x, y), round(body.radius * scale * unit) - half, 255, -1, cv2.LINE_8, SHIFT)
  else:
    cos, sin = math.cos(angle), math.sin(angle)
    turned = corners @ np.array([[cos, sin], [-sin, cos]]) * scale
    points = np.round((turned + centre) * unit).astype(np.int32) - half
    cv2.fillPoly(mask, [points], 255, cv2.LINE_8, SHIFT)
  return cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def render(world: World, positions: np.ndarray, angles: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws the bodies on their way: the video (f, size, size, 3) uint8 RGB and the visible share (f, n) of each.

  Each body is drawn large around its centre and averaged down; bodies never overlap, so their shares add up. Sprites
  have a core half as large: a ring's is empty, the others' is darker. Edges of the occluder are those of pixels.
  """
  video = np.empty((len(positions), size, size, 3), np.float32)
  video[:] = BACKGROUND
  visible = np.empty(positions.shape[:2], np.float32)
  shown = np.ones((size, size), np.float32)
  if world.occluder:
    left, top, right, bottom = world.occluder
    shown[top:bottom, left:right] = 0
  for i, body in enumerate(world.bodies):
    colour = np.array(COLOURS[body.colour], np.float32)
    core = BACKGROUND if body.shape == "ring" else colour / 2
    reach = math.ceil(body.radius) + 1
    side = 2 * reach + 1
    for frame, (position, angle) in enumerate(zip(positions[:, i], angles[:, i])):
      corner = np.floor(position).astype(int) - reach
      share = coverage(body, position - corner, angle, side)
      paint = share[..., None] * (colour - BACKGROUND)
      if body.shape in SPRITES:
        inner = coverage(body, position - corner, angle, side, 0.5)
        paint += inner[..., None] * (core - colour)
        if body.shape == "ring":
          share = share - inner
      low, high = np.clip(corner, 0, size), np.clip(corner + side, 0, size)
      inside = (slice(low[1], high[1]), slice(low[0], high[0]))
      cut = (slice(*(np.array([low[1], high[1]]) - corner[1])), slice(*(np.array([low[0], high[0]]) - corner[0])))
      video[frame][inside] += paint[cut]
      visible[frame, i] = (share[cut] * shown[inside]).sum() / share.sum()
  if world.occluder:
    video[:, top:bottom, left:right] = OCCLUDER
  return np.round(video).astype(np.uint8), visible
