"""A checkpoint, and what the user gives, to videos."""

import dataclasses
import json
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from vdt import distributed, sharding, space, video, workdirs
from vdt.averages import Averages
from vdt.checkpoint import Checkpointer
from vdt.config import Config
from vdt.diffusion import given as given_plans
from vdt.distributed import in_chunks
from vdt.evals import first, pixels

FPS = 8.0
"""Of what is sampled without a data set that says it."""


def load(
  config: Config, workdir: str, step: int | None = None, ema: float | None = None, data: bool = True
) -> tuple[Any, Any, Any, int]:
  """The mesh, the network, a run's average weights and their step. data: they are needed as well.

  ema: the relative length of another average, put together from those that the run stored (`vdt.averages`). ValueError
  if the run is of another config, or as `Checkpointer.restore` and `Averages.restore`.
  """
  workdirs.refuse_another(workdir, config)
  config.check()
  if data:
    config.prepare()
  mesh, network = config.layout()
  with jax.set_mesh(mesh), Checkpointer(workdir, create=False) as checkpoints:
    like = sharding.place(jax.eval_shape(network.init, jax.random.key(0)), mesh)
    step = checkpoints.there(step)
    if ema is None:
      return mesh, network, checkpoints.weights(like, step), step
    with Averages(workdir, create=False) as averages:
      return mesh, network, averages.restore(like, step, ema), step


def alone(config: Config, workdir: str) -> bool:
  """Whether the model makes latents and is not trained here: it is sampled from without a data set."""
  return config.model.channels != 3 and bool(workdirs.read(workdir)["imported"])


def generate(
  config: Config,
  network: Any,
  params: Any,
  clips: Float[np.ndarray, "b f h w c"],
  label: Int[np.ndarray, " b"],
  *,
  task: str = "generation",
  given_frames: int | None = None,
  given: Float[np.ndarray, "b f h w 1"] | None = None,
  seed: int = 0,
) -> Float[np.ndarray, "b f h w c"]:
  """One video for each row of `clips`, which is kept where the task's plan, or `given`, says so. Pixels are in [-1, 1];
  of a model of latents, both are latents (`vdt.space`).

  label: class of each; a negative one means none. Sample i is a function of (seed, i) alone. ValueError for a mask of
  another shape than the video's, and as `vdt.diffusion.given.plan`.
  """
  patch_frames = config.model.patch[0]
  k_mask, k_noise = jax.random.split(jax.random.key(seed))
  untold = getattr(config.sampler, "given", "given") != "given"
  if task == "completion" and not (getattr(config.model, "given", True) or untold):
    raise ValueError(
      "task completion: this model is not told where the hole is (model.given is False); --config.sampler.given="
      "reconstruction needs no telling"
    )
  if given is None:
    given = np.asarray(given_plans.plan(task, k_mask, clips.shape[:4], patch_frames, given_frames))
  elif given.shape != (*clips.shape[:4], 1):
    raise ValueError(f"the mask of what is given has shape {given.shape}, the video {clips.shape}")
  else:
    given = np.asarray(given_plans.whole_cells(jnp.asarray(given), patch_frames))
  keys = jax.vmap(partial(jax.random.fold_in, k_noise))(np.arange(len(clips)))
  cond = {"given": given, "label": np.maximum(label, 0), "null": label < 0}
  inputs = (jax.random.key_data(keys), np.asarray(clips, np.float32), cond)
  made = in_chunks(partial(make, network.apply, config.diffusion, config.sampler, params), inputs)
  return np.clip(made, -1.0, 1.0) if config.model.channels == 3 else made


@partial(jax.jit, static_argnums=(0, 1, 2))
def make(
  apply: Any, diffusion: Any, sampler: Any, params: Any, keys: jax.Array, clips: jax.Array, cond: dict
) -> jax.Array:
  """A video for each of `keys`, compiled once for each network, diffusion and sampler."""
  return sampler.sample(diffusion, partial(apply, params), jax.random.wrap_key_data(keys), clips, cond)


def run(
  config: Config,
  workdir: str,
  out: str | None,
  *,
  count: int,
  seed: int,
  step: int | None,
  ema: float | None,
  task: str | None,
  given: str | None,
  given_frames: int | None,
  label: str | None,
) -> None:
  """`vdt sample`: writes each video as MP4 and WebP, and all of them as a contact sheet, and prints the folder.

  An imported model of latents needs no data set: its label is a number (`latent_label`), and it writes latents.npy (b f
  h w c) where no config.autoencoder decodes them.

  given: a file with frames for those that the task leaves to the user (see `place`); without it held-out clips give
  them. ValueError for given frames of another size or number than the model's, an unknown label, or as `generate`.
  """
  folder = epath.Path(out or f"{workdir}/samples")
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"{folder} cannot be written ({error.strerror or error}): name another --out") from error
  imported = alone(config, workdir)
  mesh, network, params, step = load(config, workdir, step, ema, data=not imported)
  if imported:
    if task not in (None, "generation") or given or given_frames:
      raise ValueError("this model of latents is imported, and has no clips here: leave out --task and what is given")
    between = space.decoder(config)
    shape = (count, config.data.frames, *config.data.size, config.model.channels)
    labels = np.full(count, latent_label(label, config.model.classes))
    with jax.set_mesh(mesh):
      made = generate(config, network, params, np.zeros(shape, np.float32), labels, seed=seed)
      made = between.to_pixels(made) if between.autoencoder else made
    if not distributed.first():
      return
    if between.autoencoder:
      write(folder, video.to_uint8(made), FPS, {"step": step, "ema": ema, "seed": seed, "label": label})
      print(f"{count} videos of step {step}, seed {seed}: {folder}")
    else:
      np.save(folder / "latents.npy", made)
      print(f"latents of {count} videos of step {step}, seed {seed}, for their decoder: {folder / 'latents.npy'}")
    return
  between, data = space.of(config), dataclasses.replace(config.data, split="test")
  held_out, clips = data.clips, first(data, count)
  seen, labels = pixels(clips["video"]), clips["label"]
  if label is not None:
    if not config.model.classes:
      raise ValueError(f"--label {label}: this model was trained without labels (model.classes is 0), leave it out")
    if label not in held_out.labels():
      raise ValueError(f"unknown label {label!r}: choose from {', '.join(held_out.labels())}")
    labels = np.full(count, held_out.labels().index(label), np.int32)
  task = task or ("prediction" if given else "generation")
  if given:
    frames = video.read_frames(given) if given.endswith(".npy") else held_out.clip(given)
    videos, mask = place(frames, config, task, given_frames, count, seed)
    with jax.set_mesh(mesh):
      seen, mask = between.to_model(pixels(videos)), between.mask(mask)
    if not mask.any():
      raise ValueError("what is given is whole in no latent: give more with --given_frames, or another --task")
  else:
    mask = between.plan(task, seed, (count, held_out.frames, *held_out.size), given_frames)
  if mask is not None:
    given_frames = None  # the mask says it
  with jax.set_mesh(mesh):
    made = generate(config, network, params, seen, labels, task=task, given_frames=given_frames, given=mask, seed=seed)
    made = between.to_pixels(made)
  if not distributed.first():
    return
  about = {"step": step, "ema": ema, "task": task, "seed": seed, "given": given, "label": label}
  write(folder, video.to_uint8(made), held_out.fps(), about)
  print(f"{count} videos of step {step}, task {task}, seed {seed}: {folder}")


def write(folder: epath.Path, videos: UInt8[np.ndarray, "b f h w 3"], fps: float, about: dict[str, Any]) -> None:
  """Each video as MP4 and WebP, the first ones as a contact sheet, and samples.json, which says what they are `about`.

  Videos of an earlier command are removed: they would pass for these.
  """
  for old in (path for kind in ("mp4", "webp") for path in folder.glob(f"[0-9]*.{kind}")):
    old.unlink()
  (folder / "samples.json").write_text(json.dumps(about | {"count": len(videos), "fps": fps}, indent=1))
  for number, each in enumerate(videos):
    (folder / f"{number:04d}.mp4").write_bytes(video.mp4(each, fps))
    (folder / f"{number:04d}.webp").write_bytes(video.webp(each, fps))
  (folder / "contact_sheet.png").write_bytes(video.png(video.contact_sheet(videos[:64])))


def latent_label(label: str | None, classes: int) -> int:
  """The number of a class, of which latents have no names; none by default, but where there is one alone, as in VDT.

  ValueError for what is no number of a class.
  """
  if label is None:
    return 0 if classes == 1 else -1
  if not (label.isdecimal() and int(label) < classes):
    raise ValueError(f"--label {label}: a model of latents takes the number of a class, below {classes}")
  return int(label)


def place(
  frames: UInt8[np.ndarray, "g h w 3"], config: Config, task: str, given_frames: int | None, count: int, seed: int
) -> tuple[UInt8[np.ndarray, "b f h w 3"], Float[np.ndarray, "b f h w 1"]]:
  """`count` videos that hold a user's frames where the task gives them, and the mask that says where.

  Frames for a whole clip stay at their own times; fewer of them fill the given frames in order.
  """
  shape = (config.data.clips.frames, *config.data.clips.size)
  patch_frames = config.model.patch[0] if config.data.clips is config.data else 1
  if frames.shape[1:3] != shape[1:]:
    raise ValueError(f"given frames are {frames.shape[1:3]}, the model makes {shape[1:]}: resize them")
  if given_frames is None:
    given_frames = min(len(frames), shape[0] // 2)
  k_mask, _ = jax.random.split(jax.random.key(seed))
  mask = np.asarray(given_plans.plan(task, k_mask, (1, *shape), patch_frames, given_frames))
  where = np.flatnonzero(mask.max(axis=(0, 2, 3, 4)))
  if not len(where):
    raise ValueError(
      f"task {task} with {given_frames} given frames gives no whole one: choose another --task, or raise --given_frames"
    )
  if len(where) > len(frames):
    raise ValueError(f"task {task} takes {len(where)} given frames, the file has {len(frames)}")
  clip = np.zeros((*shape, 3), np.uint8)
  clip[where] = frames[where] if len(frames) == len(clip) else frames[: len(where)]
  if config.data.clips is not config.data:  # a latent sees its neighbours, so that these are the nearest there are
    clip = clip[where[np.abs(np.arange(len(clip))[:, None] - where).argmin(1)]]
  return np.repeat(clip[None], count, axis=0), np.repeat(mask, count, axis=0)


if __name__ == "__main__":
  from vdt import cli

  cli.main(["sample", *sys.argv[1:]])
