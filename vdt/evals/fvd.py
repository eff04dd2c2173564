"""The Fréchet video distance (arXiv:1812.01717), with what it was made by: a figure without its card says nothing."""

import abc
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, i3d, real_videos
from vdt.evals.controls import CONTROLS
from vdt.evals.statistics import extrapolated, frechet_distance, interval, kernel_distance

Videos = Float[np.ndarray, "b f h w c"]


class Network(abc.ABC):
  """What turns videos in [-1, 1] into features. name and hash: for the card; size: what frames are resized to."""

  name: str
  size: int | None

  @abc.abstractmethod
  def hash(self) -> str:
    """Of the weights."""

  @abc.abstractmethod
  def function(self) -> Callable[[jax.Array], jax.Array]:
    """(b f size size 3) to (b d), in JAX."""


class I3D(Network):
  """The logits of I3D, of Kinetics-400: FVD's own. Frames become 224 x 224."""

  name, size = "I3D Kinetics-400, logits", i3d.SIZE

  def hash(self) -> str:
    return i3d.SHA256

  def function(self) -> Callable[[jax.Array], jax.Array]:
    params = i3d.weights()
    return lambda x: i3d.logits(params, x)


class RandomConvolutions(Network):
  """Two random 3-D convolutions, and the mean and spread of what they see: fast, and blind to small motion."""

  name, size = "random 3-D convolutions", None

  def kernels(self) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((3, 5, 5, c, 32)).astype(np.float32) / (75 * c) ** 0.5 for c in (3, 32)]

  def hash(self) -> str:
    return hashlib.sha256(b"".join(kernel.tobytes() for kernel in self.kernels())).hexdigest()

  def function(self) -> Callable[[jax.Array], jax.Array]:
    order, kernels = ("NDHWC", "DHWIO", "NDHWC"), self.kernels()

    def features(x: jax.Array) -> jax.Array:
      for kernel in kernels:
        x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 2, 2), "SAME", dimension_numbers=order))
      return jnp.concatenate([x.mean((1, 2, 3)), x.std((1, 2, 3))], -1)

    return features


NETWORKS: dict[str, type[Network]] = {"i3d": I3D, "random": RandomConvolutions}


def resized(videos: Videos, size: int | None) -> Float[np.ndarray, "b f i j c"]:
  """Frames of size x size, bilinear, without regard to what aliases, as the published implementations have it."""
  if size is None or videos.shape[2:4] == (size, size):
    return videos
  flat = videos.reshape(-1, *videos.shape[2:])
  frames = [cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR) for frame in flat]
  return np.stack(frames).reshape(*videos.shape[:2], size, size, videos.shape[-1])


@dataclasses.dataclass
class FVD:
  """Rows: FVD and KVD with their 95 % intervals, and FVD at infinitely many clips; columns: samples, the real floor,
  and controls.

  The real floor is what as many further real clips have: a model at the floor cannot be told from the data at this
  count. Controls are those further clips, corrupted. features: "i3d" (needs extra [fvd]), or "random". ValueError for
  an unknown network or control, or fewer than 16 clips.
  """

  count: int = 256
  features: str = "i3d"
  controls: tuple[str, ...] = ("frozen", "shuffled", "noised")
  split: str = "test"
  every: int = 0

  def __post_init__(self):
    if self.features not in NETWORKS:
      raise ValueError(f"unknown features {self.features!r}: choose from {', '.join(NETWORKS)}")
    if unknown := {*self.controls} - {*CONTROLS}:
      raise ValueError(f"unknown controls {', '.join(sorted(unknown))}: choose from {', '.join(CONTROLS)}")
    if self.count < 16:
      raise ValueError(f"FVD of {self.count} clips: take at least 16")

  @property
  def clips(self) -> int:
    return 2 * self.count

  def prepare(self) -> None:
    """FileNotFoundError where the network's weights are not installed: before training, not after it."""
    NETWORKS[self.features]().function()

  def card(self, run: Run) -> dict[str, Any]:
    """All that the figures depend on beside the model's weights."""
    data, network = run.data(self.split), NETWORKS[self.features]()
    return {
      "real split": f"{self.split}, {data.fingerprint()}",
      "frames": data.frames,
      "height and width": list(data.size),
      "frames a second": data.fps(),
      "clips": data.rule(),
      "value range": "[-1, 1], samples clipped",
      "codec of samples": "none: as the sampler made them",
      "real clips": self.count,
      "generated clips": self.count,
      "frames seen by the network": f"{network.size or 'as they are'}, bilinear",
      "network": network.name,
      "network's hash": network.hash(),
      **run.how,
    }

  def __call__(self, run: Run) -> Table:
    network = NETWORKS[self.features]()
    function = network.function()
    clips = real_videos(run.data(self.split), 2 * self.count)
    other = clips[self.count :]  # corrupted as well: against the clips that they were made of, content would not count
    videos = {
      "real": clips[: self.count],
      "samples": run.sample(self.count, split=self.split)[:, 0],
      "real floor": other,
      **{name: CONTROLS[name](other) for name in self.controls},
    }
    features = {name: run.map(function, resized(each, network.size)) for name, each in videos.items()}
    real, table = features.pop("real"), {}
    for column, made in features.items():
      rows = {}
      for name, distance in (("FVD", frechet_distance), ("KVD", kernel_distance)):
        low, high = interval(distance, real, made)
        rows |= {name: distance(real, made), f"{name} low": low, f"{name} high": high}
      rows["FVD, infinitely many"] = extrapolated(real, made)
      for row, value in rows.items():
        table.setdefault(row, {})[column] = float(value)
    return table
