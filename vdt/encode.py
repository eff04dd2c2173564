"""`vdt encode`: the clips of an experiment through its autoencoder, once, to the latents that it is trained on.

Each process encodes every n-th shard on its own devices, without a word to the others, so that one that dies holds up
none; a shard appears whole or not at all, and a command that was cut off goes on with the first that is missing.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tqdm

from vdt import autoencoder, space
from vdt.config import Config, Mesh
from vdt.distributed import in_chunks
from vdt.evals import pixels
from vdt.reconstruction import Moments

CHUNK = 8
"""Clips that are encoded at once, or a few more where the devices ask for it."""
MEASURED = 512
"""Training clips whose latents say how all are standardised."""
MADE = "encoding.json"
"""What the shards in a folder are made by, written before the first of them."""


def run(config: Config, part: int, parts: int, size: int) -> None:
  """Encodes the shards whose number is `part` modulo `parts`, and, once all are there, says so in latents.json.

  size: bytes of a shard, or a little less. ValueError for an experiment without latents, for an autoencoder that does
  not fit them, or for a folder that holds other ones; OSError where it cannot be written, with what is done kept.
  """
  wanted = [data for data in getattr(config.data, "parts", (config.data,)) if hasattr(data, "source")]
  if not (config.autoencoder and wanted):
    raise ValueError("nothing to encode: the experiment's data are no Latents, or it names no config.autoencoder")
  made_by = autoencoder.load(config.autoencoder)
  for data in wanted:
    space.check(data, made_by)
    data.source.prepare()
    try:
      one(data, made_by, part, parts, size)
    except OSError as error:
      raise OSError(
        f"{data.directory} cannot be written ({error.strerror or error}): run the same command again, whole shards are "
        f"kept"
      ) from error


def one(data: Any, made_by: autoencoder.Autoencoder, part: int, parts: int, size: int) -> None:
  """As `run`, of one data set."""
  with jax.set_mesh(Mesh().build(jax.local_devices())):
    settings = claim(data, made_by, size)
    every = shards(settings)
    for split, number in tqdm.tqdm(every[part::parts], "encoding", unit="shard", mininterval=1):
      if not whole(data, split, number):
        encode(data, split, number, settings, made_by)
  if missing := sum(not whole(data, *each) for each in every):
    print(f"{data.directory}: {missing} of {len(every)} shards are still missing, which other processes make")
    return
  put(data.info_path, json.dumps(settings, indent=1).encode())
  counts = ", ".join(f"{count} {split}" for split, count in settings["counts"].items())
  total = sum(os.path.getsize(data.shard_paths(*each)[0]) for each in every)
  print(f"{data.directory}: latents {tuple(settings['shape'])} of {counts} clips, {total / 1e6:.1f} MB")


def describe(data: Any, made_by: autoencoder.Autoencoder, size: int) -> dict[str, Any]:
  """latents.json, but for how they are standardised: by what, of what, in which shape."""
  clips = {split: dataclasses.replace(data.source, split=split) for split in data.source.splits()}
  stored = data.source.stored[0]
  most = stored - (stored - 1) % made_by.factor[0]
  shape = [made_by.frames(most), *data.size, made_by.channels]
  each = data.views * 2 * int(np.prod(shape))
  return {
    "autoencoder": made_by.fingerprint(),
    **data.wanted(),
    "frames": most,
    "shape": shape,
    "apart": made_by.factor[0] == 1,
    "counts": {split: len(each) for split, each in clips.items()},
    "shard": max(size // each, 1),
  }


def claim(data: Any, made_by: autoencoder.Autoencoder, size: int) -> dict[str, Any]:
  """What the shards are made by: as it is written down, or now is, with the mean and spread of each channel measured.

  The first process to write it decides for all. ValueError where others are there already.
  """
  folder, settings = pathlib.Path(data.directory), describe(data, made_by, size)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / MADE
  if not path.exists():
    if any(not child.name.startswith(MADE) for child in folder.iterdir()):
      raise ValueError(f"{folder} is there, and holds no latents: name another data.name")
    put(path, json.dumps({**settings, **measure(data, made_by, settings)}, indent=1).encode(), over=False)
  found = json.loads(path.read_text())
  if names := [name for name in settings if found.get(name) != settings[name]]:
    told = "; ".join(f"{name} {found.get(name)!r}, now {settings[name]!r}" for name in names)
    raise ValueError(f"{folder} holds latents that were made otherwise ({told}): name another data.name, or remove it")
  return found


def measure(data: Any, made_by: autoencoder.Autoencoder, settings: dict[str, Any]) -> dict[str, list[float]]:
  """Mean and standard deviation of each channel of the latents of `MEASURED` training clips, evenly chosen."""
  count = settings["counts"]["train"]
  index = np.unique(np.linspace(0, count - 1, min(count, MEASURED)).astype(int))
  clips, moments = dataclasses.replace(data.source, split="train"), Moments()
  for first in range(0, len(index), CHUNK):
    video = clips.records(index[first : first + CHUNK])["video"][:, : settings["frames"]]
    moments.add(through(made_by, pixels(video)))
  return {"mean": moments.mean.tolist(), "std": np.where(moments.std > 1e-6, moments.std, 1.0).tolist()}


def through(made_by: autoencoder.Autoencoder, videos: np.ndarray) -> np.ndarray:
  """Latents of videos in [-1, 1]. ValueError where they are not finite."""
  made = in_chunks(lambda video: made_by.encode(made_by.params, video), (videos,), CHUNK)
  if not np.isfinite(made).all():
    raise ValueError("the autoencoder makes numbers that are not finite of some clips: is it trained?")
  return made


def shards(settings: dict[str, Any]) -> list[tuple[str, int]]:
  """(split, number) of all."""
  per = settings["shard"]
  return [(split, number) for split, count in settings["counts"].items() for number in range(-(-count // per))]


def whole(data: Any, split: str, number: int) -> bool:
  """Whether a shard is there: its latents appear after all else of it, and at once."""
  return os.path.exists(data.shard_paths(split, number)[0])


def encode(data: Any, split: str, number: int, settings: dict[str, Any], made_by: autoencoder.Autoencoder) -> None:
  """Writes one shard."""
  begin = number * settings["shard"]
  index = np.arange(begin, min(begin + settings["shard"], settings["counts"][split]))
  clips = dataclasses.replace(data.source, split=split)
  latents = np.empty((len(index), settings["views"], *settings["shape"]), np.uint16)
  labels, ids, captions = [], [], []
  mean, std = (np.array(settings[name], np.float32) for name in ("mean", "std"))
  for first in range(0, len(index), CHUNK):
    batch = clips.records(index[first : first + CHUNK])
    video = pixels(batch["video"][:, : settings["frames"]])
    views = np.stack([video, video[:, :, :, ::-1]][: settings["views"]], 1)
    made = (through(made_by, views.reshape(-1, *video.shape[1:])) - mean) / std
    made = made.astype(ml_dtypes.bfloat16).view(np.uint16)
    latents[first : first + len(video)] = made.reshape(len(video), -1, *settings["shape"])
    labels.append(batch["label"])
    ids += batch["id"].tolist()
    captions += batch["caption"].tolist()
  text = lambda values: np.array([value.encode() for value in values])
  described = io.BytesIO()
  np.savez(described, label=np.concatenate(labels), id=text(ids), caption=text(captions))
  content = io.BytesIO()
  np.save(content, latents)
  path, beside = data.shard_paths(split, number)
  put(beside, described.getvalue())
  put(path, content.getbuffer())


def put(path: str | pathlib.Path, content: Any, over: bool = True) -> None:
  """Writes a file that appears whole or not at all, whoever else writes the same; over: also if it is there already."""
  path = pathlib.Path(path)
  new = path.with_name(f"{path.name}.{os.getpid()}.new")
  try:
    with open(new, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    if over:
      os.replace(new, path)
    else:
      with contextlib.suppress(FileExistsError):
        os.link(new, path)
  finally:
    new.unlink(missing_ok=True)


if __name__ == "__main__":
  from vdt import cli

  cli.main(["encode", *sys.argv[1:]])
