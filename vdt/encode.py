"""`vdt encode`: the clips of an experiment through its autoencoder, once, to the latents that it is trained on.

Each process encodes every n-th shard on its own devices, without a word to the others, so that one that dies ends
none; a shard appears whole or not at all, and a command that was cut off goes on with the first that is missing.
"""

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

from vdt import autoencoder, files, space
from vdt.config import Config, Mesh
from vdt.distributed import in_chunks
from vdt.evals import pixels
from vdt.reconstruction import Moments

SHARD = 64_000_000
"""Bytes of a shard, which is what a cut costs."""
MEASURED = 512
"""Training clips whose latents say how all are standardised."""
MADE = "encoding.json"
"""What the shards in a folder are made by, written before the first of them."""


def run(config: Config, part: int, parts: int, size: int | None) -> None:
  """Encodes the shards whose number is `part` modulo `parts`, and, once all are there, says so in latents.json.

  size: bytes of a shard, or a little less (None: as before, or SHARD). ValueError for an experiment without latents,
  for an autoencoder that does not fit them, or for a folder that holds other ones; OSError where it cannot be
  written, with what is done kept.
  """
  wanted = [data for data in getattr(config.data, "parts", (config.data,)) if hasattr(data, "source")]
  if not (config.autoencoder and wanted):
    raise ValueError("nothing to encode: the experiment's data are no Latents, or it names no config.autoencoder")
  made_by = autoencoder.load(config.autoencoder)
  for data in wanted:
    if files.remote(data.data_dir):
      raise ValueError(f"data.data_dir {data.data_dir}: encode to a local folder, and upload that")
    data.check_source()
    space.check(data, made_by)
    data.source.prepare()
  with jax.set_mesh(Mesh().build(jax.local_devices())):
    for data, settings in zip(wanted, claim(wanted, made_by, size)):
      one(data, settings, made_by, part, parts)
  if part == 0 and hasattr(config.text, "prepare"):  # a frozen encoder's tokens
    config.text.prepare(*(dataclasses.replace(data.source, split=s) for data in wanted for s in data.source.splits()))


def one(data: Any, settings: dict[str, Any], made_by: autoencoder.Autoencoder, part: int, parts: int) -> None:
  """As `run`, of one data set."""
  every = shards(settings)
  for split, number in tqdm.tqdm(every[part::parts], "encoding", unit="shard", mininterval=1):
    if not whole(data, split, number):
      encode(data, split, number, settings, made_by)
  if missing := sum(not whole(data, *each) for each in every):
    print(f"{data.directory}: {missing} of {len(every)} shards are still missing, which other processes make")
    return
  files.put(data.info_path, json.dumps(settings, indent=1).encode())
  counts = ", ".join(f"{count} {split}" for split, count in settings["counts"].items())
  total = sum(os.path.getsize(data.shard_paths(*each)[0]) for each in every)
  print(f"{data.directory}: latents {tuple(settings['shape'])} of {counts} clips, {total / 1e6:.1f} MB")


def describe(data: Any, made_by: autoencoder.Autoencoder) -> dict[str, Any]:
  """latents.json, but for shards and how they are standardised: by what, of what, in which shape."""
  clips = {split: dataclasses.replace(data.source, split=split) for split in data.source.splits()}
  stored = data.source.stored[0]
  most = stored - (stored - 1) % made_by.factor[0]
  return {
    "autoencoder": made_by.fingerprint(),
    **data.wanted(),
    "frames": most,
    "shape": [made_by.frames(most), *data.size, made_by.channels],
    "apart": made_by.by_frame,
    "sound": heard(clips["train"]),
    "counts": {split: len(each) for split, each in clips.items()},
  }


def heard(clips: Any) -> int:
  """Samples of the sound of each clip, 0 where there is none."""
  return clips.records(np.arange(1)).get("sound", np.zeros((1, 0))).shape[1]


def claim(wanted: list[Any], made_by: autoencoder.Autoencoder, size: int | None) -> list[dict[str, Any]]:
  """What the shards of each data set are made by: as it is written down, or is now, with the mean and spread of each
  channel measured over all of them.

  The first process to write it decides for all. ValueError where others are there already.
  """
  found, standard = [], None
  asked = [describe(data, made_by) for data in wanted]
  clips_in = lambda settings, size: max(size // (settings["views"] * 2 * int(np.prod(settings["shape"]))), 1)
  for data, settings in zip(wanted, asked):
    if (path := pathlib.Path(data.directory) / MADE).exists():
      stored = json.loads(path.read_text())
      refuse(data.directory, stored, settings | ({"shard": clips_in(settings, size)} if size else {}))
      standard = standard or {name: stored[name] for name in ("mean", "std")}
  for data, settings in zip(wanted, asked):
    path = pathlib.Path(data.directory) / MADE
    if not path.exists():
      if path.parent.exists() and any(not child.name.startswith(MADE) for child in path.parent.iterdir()):
        raise ValueError(f"{data.directory} is there, and holds no latents: name another data.name")
      standard = standard or measure(wanted, made_by)
      content = {**settings, "shard": clips_in(settings, size or SHARD), **standard}
      files.put(path, json.dumps(content, indent=1).encode(), over=False)
    found.append(json.loads(path.read_text()))
    standard = {name: found[-1][name] for name in ("mean", "std")}
  return found


def refuse(folder: str, stored: dict[str, Any], asked: dict[str, Any]) -> None:
  """ValueError naming in what latents that are there were made otherwise."""
  if names := [name for name in asked if stored.get(name) != asked[name]]:
    told = "; ".join(f"{name} {stored.get(name)!r}, now {asked[name]!r}" for name in names)
    advice = "leave out --shard" if names == ["shard"] else "name another data.name, or remove it"
    raise ValueError(f"{folder} holds latents that were made otherwise ({told}): {advice}")


def measure(wanted: list[Any], made_by: autoencoder.Autoencoder) -> dict[str, list[float]]:
  """Mean and standard deviation of each channel of the latents of `MEASURED` training clips of each, evenly chosen."""
  moments = Moments()
  for data in wanted:
    clips = dataclasses.replace(data.source, split="train")
    frames = describe(data, made_by)["frames"]
    index = np.unique(np.linspace(0, len(clips) - 1, min(len(clips), MEASURED)).astype(int))
    for first in range(0, len(index), space.FEW):
      moments.add(through(made_by, pixels(clips.records(index[first : first + space.FEW])["video"][:, :frames])))
  return {"mean": moments.mean.tolist(), "std": np.where(moments.std > 1e-6, moments.std, 1.0).tolist()}


def through(made_by: autoencoder.Autoencoder, videos: np.ndarray) -> np.ndarray:
  """Latents of videos in [-1, 1]. ValueError where they are not finite."""
  made = in_chunks(lambda video: made_by.encode(made_by.params, video), (videos,), space.FEW)
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
  labels, ids, captions, sounds = [], [], [], []
  mean, std = (np.array(settings[name], np.float32) for name in ("mean", "std"))
  for first in range(0, len(index), space.FEW):
    batch = clips.records(index[first : first + space.FEW])
    video = pixels(batch["video"][:, : settings["frames"]])
    views = np.stack([video, video[:, :, :, ::-1]][: settings["views"]], 1)
    made = (through(made_by, views.reshape(-1, *video.shape[1:])) - mean) / std
    made = made.astype(ml_dtypes.bfloat16).view(np.uint16)
    latents[first : first + len(video)] = made.reshape(len(video), -1, *settings["shape"])
    labels.append(batch["label"])
    ids += batch["id"].tolist()
    captions += batch["caption"].tolist()
    sounds.append(batch.get("sound"))
  text = lambda values: np.array([value.encode() for value in values])
  described = io.BytesIO()
  np.savez(described, label=np.concatenate(labels), id=text(ids), caption=text(captions))
  path, beside, sounding = data.shard_paths(split, number)
  for left in pathlib.Path(path).parent.glob(f"{split}-{number:05d}.*.new"):  # by a process that was killed
    left.unlink(missing_ok=True)
  files.put(beside, described.getvalue())
  if settings["sound"]:
    files.put(sounding, stored(np.concatenate(sounds)))
  files.put(path, stored(latents))


def stored(array: np.ndarray) -> memoryview:
  """A .npy file."""
  file = io.BytesIO()
  np.save(file, array)
  return file.getbuffer()


if __name__ == "__main__":
  from vdt import cli

  cli.main(["encode", *sys.argv[1:]])
