"""What a model sees, and what people see of it: pixels for both, or an autoencoder's latents and pixels."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vdt.autoencoder import Autoencoder, load
from vdt.config import Config
from vdt.diffusion import given
from vdt.distributed import in_chunks

FEW = 8
"""Clips that go through an autoencoder at once."""


class Space(NamedTuple):
  """The way between the two; `autoencoder` is None of a model of pixels, to which both are the same.

  mean, std (c,): of what the autoencoder makes of the training clips; the model sees latents of mean 0 and spread 1.
  """

  autoencoder: Autoencoder | None = None
  mean: Any = 0.0
  std: Any = 1.0

  def to_model(self, videos: Float[np.ndarray, "b f h w 3"]) -> Float[np.ndarray, "b g i j c"]:
    """Pixels in [-1, 1] as the model sees them. ValueError for a number of frames that has no latents."""
    if self.autoencoder is None:
      return videos
    made = in_chunks(partial(self.autoencoder.encode, self.autoencoder.params), (videos,), FEW)
    return (made - self.mean) / self.std

  def to_pixels(self, made: Float[np.ndarray, "b g i j c"]) -> Float[np.ndarray, "b f h w 3"]:
    """What the model made, in [-1, 1]."""
    if self.autoencoder is None:
      return made
    latents = np.asarray(made * self.std + self.mean, np.float32)
    return np.clip(in_chunks(partial(self.autoencoder.decode, self.autoencoder.params), (latents,), FEW), -1.0, 1.0)

  def plan(self, task: str, seed: int, shape: tuple[int, ...], given_frames: int | None) -> np.ndarray | None:
    """What of clips (b, f, h, w) of pixels a task gives, planned in pixels, as the model's mask (b g i j 1); None of a
    model of pixels, which plans itself. ValueError as `given.plan`."""
    if self.autoencoder is None:
      return None
    return self.mask(given.planned(task, seed, shape, count=given_frames))

  def mask(self, pixels: Float[np.ndarray, "b f h w 1"]) -> Float[np.ndarray, "b g i j 1"]:
    """A mask of pixels as the model's: a latent is given where all pixels are that it stands for.

    Where one stands for several frames, the first of a clip has one for itself. A causal autoencoder's latents know
    what came before them too: given ones are exact where all before them is given, as in prediction.
    """
    if self.autoencoder is None:
      return pixels
    time, rows, columns = self.autoencoder.factor
    b, f, h, w, _ = pixels.shape
    square = pixels.reshape(b, f, h // rows, rows, w // columns, columns).min((3, 5))
    alone = 1 if time > 1 else 0
    rest = square[:, alone:].reshape(b, -1, time, *square.shape[2:]).min(2)
    return np.concatenate([square[:, :alone], rest], 1)[..., None]


def of(config: Config) -> Space:
  """The space of an experiment, whose data are ready. ValueError where its latents are not of its autoencoder, or of
  other clips."""
  made_by = config.data.made_by()
  if not config.autoencoder:
    if made_by:
      raise ValueError("data are latents: name the autoencoder that made them in config.autoencoder")
    return Space()
  if not made_by:
    raise ValueError(
      f"config.autoencoder is {config.autoencoder!r}, but data are pixels: leave it out, or take Latents"
    )
  found = load(config.autoencoder)
  check(config.data, found)
  if made_by != found.fingerprint():
    raise ValueError(
      f"the latents are stale: they were made by autoencoder {made_by}, {config.autoencoder} is {found.fingerprint()}; "
      f"encode anew under another data.name"
    )
  return Space(found, *config.data.standard())


def decoder(config: Config) -> Space:
  """The space of an imported model, which has no latents here: as its autoencoder standardises them, if one is named.

  ValueError for one of other channels.
  """
  if not config.autoencoder:
    return Space()
  found = load(config.autoencoder)
  if found.channels != config.model.channels:
    raise ValueError(
      f"model.channels is {config.model.channels}, the latents of {config.autoencoder} have {found.channels}: name the "
      f"autoencoder that the model was trained with"
    )
  return Space(found)


def check(data: Any, made_by: Autoencoder) -> None:
  """ValueError where latents of this shape cannot be those of the source's clips."""
  clips = data.clips
  frames = made_by.frames(clips.frames)
  wanted = (frames, clips.size[0] // made_by.factor[1], clips.size[1] // made_by.factor[2])
  if (data.frames, *data.size) != wanted:
    raise ValueError(
      f"clips of {clips.frames} frames of {tuple(clips.size)} have latents of (frames, height, width) {wanted}, data "
      f"asks for {(data.frames, *data.size)}: set data.frames and data.size"
    )


def seen(video: jax.Array) -> jax.Array:
  """A batch's video as the model sees it: bytes as [-1, 1], latents as they are."""
  return video.astype(jnp.float32) / 127.5 - 1.0 if video.dtype == jnp.uint8 else video.astype(jnp.float32)
