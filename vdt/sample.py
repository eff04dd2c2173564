"""A checkpoint, and what the user gives, to videos."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Int16, UInt8

from vdt import conditions, distributed, files, sharding, space, video, workdirs
from vdt.averages import Averages
from vdt.checkpoint import Checkpointer
from vdt.config import Config
from vdt.diffusion import given as given_plans
from vdt.distributed import in_chunks
from vdt.evals import first, pixels
from vdt.request import Request, latent_label, place, placed, read

FPS = 8.0
"""Of what is sampled without a data set that says it."""


def load(
  config: Config, workdir: str, step: int | None = None, ema: float | None = None, data: bool = True, **asked: Any
) -> tuple[Any, Any, Any, int]:
  """The mesh, the network, a run's average weights and their step. data: they are needed as well. asked: what all
  processes are to be asked alike, beside (`workdirs.agree`).

  ema: the relative length of another average, put together from those that the run stored (`vdt.averages`). ValueError
  if the run is of another config, or as `Checkpointer.restore` and `Averages.restore`.
  """
  workdirs.refuse_another(workdir, config)
  config.check()
  if data:
    config.prepare()
  mesh, network = config.layout()
  workdirs.agree(config, data, step=step, ema=ema, **asked)
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
  cond: dict[str, Any],
  *,
  task: str = "generation",
  given_frames: int | None = None,
  given: Float[np.ndarray, "b f h w 1"] | None = None,
  seed: int = 0,
  paste: bool = True,
) -> Float[np.ndarray, "b f h w c"]:
  """One video for each row of `clips`, which is kept where the task's plan, or `given`, says so. Pixels are in [-1, 1];
  of a model of latents, both are latents (`vdt.space`). paste: see `Sampler.sample`.

  cond: what else is told of each, as `Conditions.told` or `conditions.absent` has it. Sample i is a function of (seed,
  i) and of its own row alone. ValueError for a mask of another shape than the video's, and as
  `vdt.diffusion.given.plan`.
  """
  patch_frames = config.model.patch[0]
  if given is None:
    given = given_plans.planned(task, seed, clips.shape[:4], patch_frames, given_frames)
  elif given.shape != (*clips.shape[:4], 1):
    raise ValueError(f"the mask of what is given has shape {given.shape}, the video {clips.shape}")
  else:
    given = np.asarray(given_plans.whole_cells(jnp.asarray(given), patch_frames))
  share, untold = given.mean((2, 3, 4)), getattr(config.sampler, "given", "given") != "given"
  if ((share > 0) & (share < 1)).any() and not (getattr(config.model, "given", True) or untold):
    raise ValueError(
      "frames with holes: this model is not told where they are (model.given is False); --config.sampler.given="
      "reconstruction needs no telling"
    )
  keys = jax.vmap(partial(jax.random.fold_in, given_plans.keys(seed)[1]))(np.arange(len(clips)))
  inputs = (jax.random.key_data(keys), np.asarray(clips, np.float32), {**cond, "given": given})
  made = in_chunks(
    partial(make, network.apply, config.diffusion, config.sampler, paste, params), inputs, title="sampling"
  )
  return np.clip(made, -1.0, 1.0) if config.model.channels == 3 else made


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def make(
  apply: Any, diffusion: Any, sampler: Any, paste: bool, params: Any, keys: jax.Array, clips: jax.Array, cond: dict
) -> jax.Array:
  """A video for each of `keys`, compiled once for each network, diffusion and sampler."""
  return sampler.sample(diffusion, partial(apply, params), jax.random.wrap_key_data(keys), clips, cond, paste)


def run(config: Config, workdir: str, out: str | None, ask: Request) -> None:
  """`vdt sample`: writes each video as MP4 and WebP, and all of them as a contact sheet, and prints the folder.

  An imported model of latents needs no data set: its label is a number (`latent_label`), and it writes latents.npy (b f
  h w c) where no config.autoencoder decodes them. What is not asked for, or given, is that of held-out clips.
  ValueError for what does not go with the model, or as `generate`, `place` and `placed`.
  """
  folder = epath.Path(out or f"{workdir}/samples")
  imported, texts = alone(config, workdir), ask.texts()
  count = ask.count if texts is None else len(texts)
  if distributed.first():
    claim(folder, count, [path for _, path in ask.files()])
  asked = {name: value for name, value in dataclasses.asdict(ask).items() if value is not None}
  mesh, network, params, step = load(config, workdir, ask.step, ask.ema, data=not imported, request=asked)
  config = dataclasses.replace(config, sampler=ask.sampler(config))
  config.check()
  about = {**asked, "step": step}
  if imported:
    sample_imported(config, mesh, network, params, folder, ask, about)
    return
  between, data = space.of(config), dataclasses.replace(config.data, split="test")
  held_out, clips = data.clips, first(data, count)
  cond, sounds = ask.told(config, clips, conditions.of(config, workdir), held_out.labels(), texts)
  seen = pixels(clips["video"])
  single = [name for name in ("image", "keyframes", "video") if getattr(ask, name)]
  if single and (ask.given or ask.task or (ask.given_frames is not None and not ask.video)):
    raise ValueError(f"--{single[0]} says itself what is given: leave out --given, --task and --given_frames")
  if ask.mask and not single:
    raise ValueError("--mask is of a --video, an --image or --keyframes: name the one whose dark parts are kept")
  task = ask.task or ("prediction" if ask.given else "generation")
  if ask.given_frames is not None and not single and task not in given_plans.COUNTED:
    raise ValueError(
      f"--given_frames {ask.given_frames}: the task {task} takes no number of frames: leave it out, or name another "
      f"--task: {', '.join(given_plans.COUNTED)}"
    )
  if single or ask.given:
    if single:
      videos, mask = placed(config, ask, count)
    else:
      videos, mask = place(read(ask.given, held_out, ask.fps), config, task, ask, count)
    whole = lambda mask: np.asarray(given_plans.whole_cells(jnp.asarray(between.mask(mask)), config.model.patch[0]))
    lost = [number for number in ask.frames() if not whole_at(number, mask[:1], whole)]
    if mask.all():
      of_mask = ": of a --mask, what is light is made anew" if ask.mask else ": give fewer frames"
      raise ValueError(f"all is given, and nothing is left to make{of_mask}")
    if lost or not whole(mask).any():
      which = f"frame {', '.join(map(str, lost))}" if lost else "what is given"
      raise ValueError(
        f"{which} is whole in no latent, or no patch of {config.model.patch[0]} frames: give more with it, or another "
        f"--task"
      )
    with jax.set_mesh(mesh):
      seen, mask = between.to_model(pixels(videos)), between.mask(mask)
  else:
    mask = between.plan(task, ask.seed, (count, held_out.frames, *held_out.size), ask.given_frames)
    if ask.fps is not None and task != "generation":
      raise ValueError(f"--fps {ask.fps} with --task {task}: held-out frames are of another rate, give your own")
  given_frames = None if mask is not None else ask.given_frames  # the mask says it
  with jax.set_mesh(mesh):
    made = generate(
      config, network, params, seen, cond, task=task, given_frames=given_frames, given=mask, seed=ask.seed
    )
    made = finite(between.to_pixels(made))
  if not distributed.first():
    return
  if "text" in config.model.conditions and config.text:
    about["prompts"] = texts or clips["caption"].tolist()
  about["task"] = ", ".join(single) or task
  heard = None if sounds is None else (sounds, config.sound.rate)
  write(folder, video.to_uint8(made), ask.fps or held_out.fps(), about, heard)
  print(f"{counted(count)} of step {step}, {' and '.join(single) or f'task {task}'}, seed {ask.seed}: {folder}")


def whole_at(number: int, mask: np.ndarray, whole: Callable[[np.ndarray], np.ndarray]) -> bool:
  """Whether frame `number`, which `mask` (1 f h w 1) gives, is in a cell that is given: `whole(mask)` is the cells'."""
  others = np.ones_like(mask)
  others[:, number] = 0
  return bool((whole(mask) * (1 - whole(others))).any())


def sample_imported(
  config: Config, mesh: Any, network: Any, params: Any, folder: epath.Path, ask: Request, about: dict[str, Any]
) -> None:
  """See `run`. ValueError for what needs clips, or a text."""
  wanted = [name for name in ("given", "given_frames", "image", "keyframes", "video", "mask") if getattr(ask, name)]
  wanted += [name for name in ("prompt", "prompts", "negative", "audio", "fps") if getattr(ask, name) is not None]
  if ask.task not in (None, "generation") or wanted:
    raise ValueError(
      f"this model of latents is imported, has no clips here, reads no captions and hears nothing: leave out "
      f"--{(wanted or ['task'])[0]}"
    )
  between, count = space.decoder(config), ask.count
  shape = (count, config.data.frames, *config.data.size, config.model.channels)
  cond, label = conditions.absent(config, count), latent_label(ask.label, config.model.classes)
  if label >= 0 and config.model.classes:
    cond["label"] = np.full(count, label, np.int32)
    cond["null"]["label"] = np.zeros(count, bool)
  with jax.set_mesh(mesh):
    made = generate(config, network, params, np.zeros(shape, np.float32), cond, seed=ask.seed)
    made = finite(between.to_pixels(made) if between.autoencoder else made)
  if not distributed.first():
    return
  if between.autoencoder:
    write(folder, video.to_uint8(made), FPS, about)
    print(f"{counted(count)} of step {about['step']}, seed {ask.seed}: {folder}")
  else:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path := folder / "latents.npy", made)
    print(f"latents of {counted(count)} of step {about['step']}, seed {ask.seed}, for their decoder: {path}")


def finite(videos: Float[np.ndarray, "b f h w c"]) -> Float[np.ndarray, "b f h w c"]:
  """The same. FloatingPointError where they are not numbers."""
  if not np.isfinite(videos).all():
    raise FloatingPointError("samples are not finite: lower --guidance, or name another --step, of a run that is sound")
  return videos


def counted(count: int) -> str:
  return f"{count} video{'' if count == 1 else 's'}"


def names(count: int) -> list[str]:
  """The files of so many videos."""
  return [f"{number:04d}.{kind}" for number in range(count) for kind in ("mp4", "webp")]


def claim(folder: epath.Path, count: int, inputs: list[str]) -> None:
  """Looks whether `folder` can take so many videos, and leaves none that was not there. ValueError where a file of such
  a name is there that no command like this made, or is an input, OSError where it cannot be written."""
  try:
    missing = [each for each in (folder, *folder.parents) if not files.remote(folder) and not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    files.rewrite(folder / ".samples", "")
    (folder / ".samples").unlink()
    for each in missing:
      with contextlib.suppress(OSError):  # somebody else may have put something there
        each.rmdir()
    if missing:
      return
  except OSError as error:
    raise OSError(f"{folder} cannot be written ({error.strerror or error}): name another --out") from error
  there, ours = {path.name for path in folder.iterdir()}, listed(folder)
  own = {workdirs.absolute(path) for path in inputs}
  for name in names(count):
    if name in there and name not in ours:
      raise ValueError(f"{folder} holds {name}, which no vdt sample made: move it, or name another --out")
  for name in {*ours} & there:
    if workdirs.absolute(f"{folder / name}") in own:
      raise ValueError(f"{folder / name} is given, and would be replaced: name another --out")


def listed(folder: epath.Path) -> list[str]:
  """The videos that the last command left in a folder, by its samples.json."""
  try:
    return names(int(json.loads((folder / "samples.json").read_text())["count"]))
  except (OSError, ValueError, KeyError, TypeError):
    return []


def write(
  folder: epath.Path,
  videos: UInt8[np.ndarray, "b f h w 3"],
  fps: float,
  about: dict[str, Any],
  sounds: tuple[Int16[np.ndarray, "b n"], int] | None = None,
) -> None:
  """Each video as MP4 and WebP, the first ones as a contact sheet, and samples.json, which says what they are `about`.

  sounds: what is heard with each, in the MP4, and its samples a second. Videos of an earlier command, which would pass
  for these, are removed when all of these are written. OSError where they cannot be: then nothing has changed.
  """

  def contents() -> Iterator[tuple[str, bytes]]:
    for number, each in enumerate(videos):
      heard = None if sounds is None else (sounds[0][number], sounds[1])
      yield f"{number:04d}.mp4", video.mp4(each, fps, heard)
      yield f"{number:04d}.webp", video.webp(each, fps)
    yield "contact_sheet.png", video.png(video.contact_sheet(videos[:64]))
    yield "samples.json", json.dumps(about | {"count": len(videos), "fps": fps}, indent=1).encode()

  before, new = listed(folder), []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents():
      new.append(name)
      (folder / f".{name}").write_bytes(content)
  except BaseException as error:
    for name in new:
      with contextlib.suppress(OSError):
        (folder / f".{name}").unlink(missing_ok=True)
    if not isinstance(error, OSError):
      raise
    reason = error.strerror or error
    raise OSError(f"{folder} cannot be written ({reason}), what was there still is: name another --out") from error
  for name in {*before} - {*new}:
    (folder / name).unlink(missing_ok=True)
  for name in new:
    (folder / f".{name}").replace(folder / name)


if __name__ == "__main__":
  from vdt import cli

  cli.main(["sample", *sys.argv[1:]])
