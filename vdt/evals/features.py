"""Networks whose features the distances of `vdt.evals.fvd` compare, and what they make of videos, stored for later."""

import abc
import hashlib
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from vdt import files
from vdt.evals import Run, i3d, vgg

Videos = Float[np.ndarray, "b f h w c"]
VERSION = 1
"""Of what is stored: raise it when a network's code computes otherwise."""


class Network(abc.ABC):
  """What turns videos in [-1, 1] into features. name: for the card; size: what frames are resized to, None to leave.

  least: the fewest frames, and the smallest height and width, that it can see.
  """

  name: str
  size: int | None = None
  least: tuple[int, int] = (1, 1)

  @property
  def measures(self) -> tuple[str, str]:
    """What a Fréchet and a kernel distance of its features are called."""
    return f"Fréchet, {self.name}", f"kernel, {self.name}"

  def check(self, data: Any) -> None:
    """ValueError for clips that it cannot see."""
    frames, side = self.least
    if data.frames < frames or (self.size is None and min(data.size) < side):
      there = f"{data.frames} frames of {tuple(data.size)}"
      raise ValueError(f"{self.name} sees clips of {frames} frames of {side} x {side} at least, not {there}")

  @abc.abstractmethod
  def hash(self) -> str:
    """Of the weights."""

  @abc.abstractmethod
  def function(self) -> Callable[[jax.Array], jax.Array]:
    """(b f size size 3) to (b d), or, of a network of frames, to (b f d), in JAX. FileNotFoundError without weights."""


class I3D(Network):
  """The logits of I3D, of Kinetics-400: FVD's own. Frames become 224 x 224."""

  name, size, least, measures = "I3D Kinetics-400, logits", i3d.SIZE, (i3d.FRAMES, 1), ("FVD", "KVD")

  def hash(self) -> str:
    return i3d.SHA256

  def function(self) -> Callable[[jax.Array], jax.Array]:
    params = i3d.weights()
    return lambda x: i3d.logits(params, x)


class VGG(Network):
  """VGG16's last stage, of four frames of a clip, each by itself: what frames look like, and nothing of their order.

  FID's own network, Inception, is in no package; a distance of other features is not FID, and not called so.
  """

  name, least = "VGG16 of LPIPS, last stage, four frames a clip", (1, vgg.LEAST)
  measures = ("Fréchet, frames", "kernel, frames")

  def hash(self) -> str:
    return vgg.SHA256

  def function(self) -> Callable[[jax.Array], jax.Array]:
    params = vgg.weights()
    some = lambda x: x[:, :: -(-x.shape[1] // 4)]  # more of a clip say little more, and cost as much as the first
    return lambda x: vgg.frames(lambda frames: vgg.features(params, frames), some(x))


class RandomConvolutions(Network):
  """Two random 3-D convolutions, and the mean and spread of what they see: fast, and blind to small motion."""

  name, measures = "random 3-D convolutions", ("Fréchet, random", "kernel, random")

  def kernels(self) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 5, 5, c, 32)).astype(np.float32) / (75 * c) ** 0.5 for c in (3, 32)]

  def hash(self) -> str:
    return hashlib.sha256(b"".join(kernel.tobytes() for kernel in self.kernels())).hexdigest()

  def function(self) -> Callable[[jax.Array], jax.Array]:
    order, kernels = ("NDHWC", "DHWIO", "NDHWC"), self.kernels()

    def features(x: jax.Array) -> jax.Array:
      for kernel in kernels:
        x = jax.nn.relu(
          jax.lax.conv_general_dilated(x, kernel, (1, 2, 2), "SAME", dimension_numbers=order, precision="highest")
        )
      return jnp.concatenate([x.mean((1, 2, 3)), x.std((1, 2, 3))], -1)

    return features


NETWORKS: dict[str, type[Network]] = {"i3d": I3D, "vgg": VGG, "random": RandomConvolutions}


def check_name(features: str) -> None:
  """ValueError for what is neither of NETWORKS nor written MODULE:CLASS; nothing is imported."""
  if not isinstance(features, str) or (features not in NETWORKS and ":" not in features):
    raise ValueError(
      f"unknown features {features!r}: choose from {', '.join(NETWORKS)}, or name MODULE:CLASS[@ARGUMENT]"
    )


def network(features: str) -> Network:
  """One of NETWORKS, or MODULE:CLASS or MODULE:CLASS@ARGUMENT, a `Network` of the user's. ValueError for no such."""
  check_name(features)
  if features in NETWORKS:
    return NETWORKS[features]()
  module, _, rest = features.partition(":")
  name, at, argument = rest.partition("@")
  try:
    made = getattr(importlib.import_module(module), name)(*[argument] * bool(at))
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(f"features {features!r} cannot be made ({error})") from error
  if not isinstance(made, Network):
    raise ValueError(f"features {features!r} is no vdt.evals.features.Network: derive {name} from it")
  return made


def resized(videos: Videos, size: int | None) -> Float[np.ndarray, "b f i j c"]:
  """Frames of size x size, bilinear, without regard to what aliases, as the published implementations have it."""
  if size is None or videos.shape[2:4] == (size, size):
    return videos
  flat = videos.reshape(-1, *videos.shape[2:])
  frames = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR) for frame in flat]
  return np.stack(frames).reshape(*videos.shape[:2], size, size, videos.shape[-1])


def extract(
  made_by: Network, function: Callable, run: Run, videos: Videos, data: Any = None
) -> Float[np.ndarray, "b *frames d"]:
  """The features of videos. data: whose clips they are, or copies of them: then they are stored beside it, or were.

  function: `made_by.function()`, made once, so that it is compiled once. The name of what is stored is a hash of the
  network, of what computes, and of every pixel. Of several processes all read it, or none.
  """
  folder, path, stored = os.fspath(getattr(data, "directory", "")), "", None
  if folder and not files.remote(folder):
    what = (VERSION, jax.default_backend(), made_by.name, made_by.hash(), made_by.size, videos.shape, str(videos.dtype))
    key = hashlib.sha256(repr(what).encode())
    key.update(np.ascontiguousarray(videos))
    path = os.path.join(folder, "features", f"{key.hexdigest()[:32]}.npy")
    try:
      stored = np.load(path)
    except (OSError, ValueError, EOFError):
      pass  # not there yet, or cut off
    if jax.process_count() > 1 and not multihost_utils.process_allgather(np.array(stored is not None)).all():
      stored = None
  if stored is not None:
    return stored
  chunks = [resized(videos[begin : begin + 64], made_by.size) for begin in range(0, len(videos), 64)]
  made = np.concatenate([run.map(function, chunk) for chunk in chunks])
  if path and jax.process_index() == 0:
    try:
      content = io.BytesIO()
      np.save(content, made)
      files.put(path, content.getbuffer())
    except OSError as error:
      print(f"features are not kept for the next time: {path} cannot be written ({error})", file=sys.stderr)
  return made
