"""Training an autoencoder, as the one loop trains: an objective in a diffusion's place, a sampler that reconstructs."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Key, UInt32

from vdt import distributed, files
from vdt.autoencoder import CHANNELS
from vdt.distributed import in_chunks
from vdt.evals import pixels, vgg

Video = Float[Array, "b f h w c"]
ERRORS: dict[str, Callable] = {"l1": jnp.abs, "l2": jnp.square}


@dataclasses.dataclass(unsafe_hash=True)  # compiled functions are cached by it
class Reconstruction:
  """The mean error of the pixels, in [-1, 1], and weights of what is added to it.

  error: "l1" or "l2". kl: of the divergence of the latents from a standard normal, their mean (Equation 10 of
  arXiv:1312.6114). perceptual: of LPIPS, the mean over frames (`vdt.evals.vgg`, extra [fvd]). motion: of the same error
  of the differences between frames, so that what stands still does not flicker. still: the share of clips whose first
  frame stands for all. measured: by the latents of how many training clips these are standardised in the end; 0 = all.
  """

  error: str = "l1"
  kl: float = 1e-6
  perceptual: float = 0.0
  motion: float = 0.0
  still: float = 0.0
  measured: int = 0
  variance: ClassVar[bool] = False

  def __post_init__(self):
    if self.error not in ERRORS:
      raise ValueError(f"unknown diffusion.error {self.error!r}: choose from {', '.join(ERRORS)}")
    if min(self.kl, self.perceptual, self.motion, self.still, self.measured) < 0 or self.still > 1:
      raise ValueError(f"{self}: weights and measured are at least 0, and still is a share")

  def draw(self, key: Key[Array, ""], x0: Video) -> tuple[UInt32[Array, "b 2"], Float[Array, " b"]]:
    """A key for each clip, as data, and 1 for those that stand still."""
    k_noise, k_still = jax.random.split(key)
    still = jax.random.uniform(k_still, (len(x0),)) < self.still
    return jax.random.key_data(jax.random.split(k_noise, len(x0))), still.astype(jnp.float32)

  def losses(
    self, autoencode: Callable, x0: Video, keys: UInt32[Array, "b 2"], still: Float[Array, " b"], cond: dict
  ) -> Float[Array, " b"]:
    """Each clip's loss. autoencode: see `models.AutoencoderNetwork.apply`; cond: of no use here."""
    x0 = jnp.where(still[:, None, None, None, None] > 0, x0[:, :1], x0)
    made, mean, logvar = autoencode(x0, keys)
    error, over = ERRORS[self.error], (1, 2, 3, 4)
    total = error(made - x0).mean(over)
    total += self.kl * 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean(over)
    if self.motion and x0.shape[1] > 1:
      total += self.motion * error(jnp.diff(made, axis=1) - jnp.diff(x0, axis=1)).mean(over)
    if self.perceptual:
      total += self.perceptual * vgg.perceptual()(made, x0).mean(1)
    return total

  def grid(self, steps: int) -> None:
    """ValueError: there is nothing to sample."""
    raise ValueError("diffusion Reconstruction is an autoencoder's: set sampler=Reconstruct()")

  def finish(self, config: Any, network: Any, params: Any, workdir: str, step: int) -> None:
    """Writes CHANNELS: the mean and deviation of each channel over an epoch of training clips, as training sees them.

    What is there of this step stays: other devices would round otherwise, and make stale what was encoded by it.
    """
    path = epath.Path(workdir) / CHANNELS
    if path.exists() and json.loads(path.read_text()).get("step") == step:
      return
    data = config.data.each()
    count = min(self.measured or len(data), len(data))
    encode = jax.jit(lambda x: network.encode(params, x)[0])
    moments, size = Moments(), data.batch_size
    for number in range(-(-count // size)):
      clips = data.batch(number)["video"][: count - number * size]
      moments.add(in_chunks(encode, (pixels(clips),), size))
    said = {"step": step, "clips": count, "mean": moments.mean.tolist(), "std": moments.std.tolist()}
    if distributed.first():
      files.rewrite(path, json.dumps(said, indent=2))


class Moments:
  """Mean and standard deviation of each channel of what is added, in float64, exact in parts (Chan et al. 1979)."""

  def __init__(self):
    self.count, self.mean, self.squares = 0, np.zeros(()), np.zeros(())

  def add(self, x: Float[np.ndarray, "*rest c"]) -> None:
    flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    mean, whole = flat.mean(0), self.count + len(flat)
    apart = mean - self.mean
    self.squares = self.squares + np.square(flat - mean).sum(0) + apart**2 * self.count * len(flat) / whole
    self.mean, self.count = self.mean + apart * len(flat) / whole, whole

  @property
  def std(self) -> Float[np.ndarray, " c"]:
    return np.sqrt(self.squares / self.count)


@dataclasses.dataclass(unsafe_hash=True)
class Reconstruct:
  """In a sampler's place: what comes back of the clips that are given to it, from the mean of their latents."""

  def check(self, objective: Any) -> None:
    """ValueError for the objective of a diffusion."""
    if not isinstance(objective, Reconstruction):
      raise ValueError(f"sampler Reconstruct with diffusion {type(objective).__name__}: an autoencoder's is needed")

  def title(self, task: str) -> str:
    """What a row of them is called."""
    return "reconstructions"

  def card(self) -> dict[str, Any]:
    """What they depend on, line to value."""
    return {"sampler": "none: clips encoded to the mean of their latents, and decoded"}

  def sample(
    self, objective: Any, autoencode: Callable, keys: Key[Array, " b"], clips: Video, cond: dict, paste: bool = True
  ) -> Video:
    """See `vdt.diffusion.Sampler.sample`."""
    return autoencode(clips)[0]
