r"""The data set `simulated`: the clips of `scenes` with their truth, rendered once and kept by TFDS as array_record.

  python -m data_pipelines.simulated bouncing16 --data_dir data      # prints the directory

TensorFlow is not needed, neither to render nor to write, and nothing is downloaded.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import sound
from data_pipelines.remote import local
from data_pipelines.scenes import SCENES, simulate

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
FPS = 8.0
HIGH = 80.0
"""Hz, of the impact of a body with the frame's side as its radius: smaller ones sound higher."""


@dataclasses.dataclass(eq=False)
class SimulatedConfig(tfds.core.BuilderConfig):
  """A scene at one size, with the number of clips in each split."""

  scene: str = "bouncing"
  frames: int = 16
  size: int = 64
  train: int = 2000
  test: int = 256
  combinatorial: int = 256
  ood: int = 256
  seed: int = 0
  sound: bool = False  # of impacts

  def recipe(self) -> str:
    """A hash of all that decides what is rendered, the version apart."""
    fields = dataclasses.asdict(self)
    if not self.sound:
      del fields["sound"]  # as before there was any
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]

  def counts(self) -> dict[str, int]:
    return {"train": self.train, "test": self.test, "combinatorial": self.combinatorial, "ood": self.ood}


def small(scene: str) -> SimulatedConfig:
  return SimulatedConfig(name=f"{scene}16", scene=scene, frames=8, size=16)


CONFIGS = [
  dataclasses.replace(small("bouncing"), train=6000, test=512),
  dataclasses.replace(small("bouncing"), name="sounding16", sound=True),
  dataclasses.replace(small("bouncing"), name="sounding16x6000", train=6000, sound=True),
  small("collisions"),
  small("occlusion"),
  small("sprites"),
  dataclasses.replace(small("drifting"), train=8000),
  dataclasses.replace(small("drifting"), name="drifting16x15", frames=15, train=8000),
  *(SimulatedConfig(name=f"{scene}64", scene=scene) for scene in SCENES),
  SimulatedConfig(name="sounding64", scene="bouncing", sound=True),
  SimulatedConfig(name="mixed64x17", scene="mixed", frames=17),  # 1 + 4 k, for an autoencoder
]


class LocalInfo(tfds.core.DatasetInfo):
  """TFDS's own looks for every new data set in Google's bucket, which stalls where there is no network."""

  def initialize_from_bucket(self) -> None:
    pass


class Simulated(tfds.core.GeneratorBasedBuilder):
  """Captioned physics videos with the truth about every body; see `scenes.Clip`."""

  VERSION = tfds.core.Version("1.1.0")
  BUILDER_CONFIGS = CONFIGS

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    frames, size, objects = config.frames, config.size, SCENES[config.scene].objects

    def tensor(shape, dtype=np.float32):
      return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    features = {
      "video": tfds.features.Image(shape=(frames * size, size, 3), encoding_format="png"),
      "caption": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=SCENES[config.scene].labels),
      "id": tfds.features.Text(),
      "fps": np.float32,
      "truth": {
        "positions": tensor((frames, objects, 2)),
        "radius": tensor((objects,)),
        "mass": tensor((objects,)),
        "visible": tensor((frames, objects)),
        "contact": tensor((frames, objects), np.bool_),
        "gravity": np.float32,
      },
    }
    if config.sound:
      features["sound"] = tensor((sound.samples(frames, FPS),), np.int16)
    return LocalInfo(
      builder=self,
      description=self.__doc__,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(
        frames=frames, size=[size, size], fps=FPS, scene=config.scene, objects=objects, recipe=config.recipe()
      ),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split, count) for split, count in self.builder_config.counts().items()}

  def _generate_examples(self, split: str, count: int):
    config = self.builder_config
    for index in range(count):
      clip = simulate(config.scene, split, index, frames=config.frames, size=config.size, seed=config.seed)
      tall = clip.video.reshape(-1, config.size, 3)
      png = cv2.imencode(".png", tall[..., ::-1])[1].tobytes()
      name = f"{config.scene}/{split}/{index:06d}"
      example = {"video": io.BytesIO(png), "id": name, "fps": FPS}
      example |= {"caption": clip.caption, "label": clip.label, "truth": clip.truth}
      if config.sound:
        pitch = HIGH * config.size / clip.truth["radius"]
        example["sound"] = sound.impacts(clip.truth["contact"], FPS, pitch)
      yield name, example


def prepare(config: str | SimulatedConfig, data_dir: str | os.PathLike, cache: str | None = None) -> Path:
  """Builds a configuration under `data_dir`, on a local disk, unless it is there; returns its directory. In a bucket it
  must be there, and is read by its mirror in `cache`.

  Another process that asks for the same one waits for the first; a build that was cut off leaves nothing that
  counts as a data set.

  Raises:
    ValueError: no configuration has this name, or what is there was rendered to another recipe.
  """
  if isinstance(config, str):
    named = {each.name: each for each in CONFIGS}
    if config not in named:
      raise ValueError(f"unknown simulated data set {config!r}: choose one of {', '.join(named)}")
    config = named[config]
  directory = Path(local(os.path.join(data_dir, "simulated", config.name, str(Simulated.VERSION)), cache))
  if directory.exists():
    metadata = json.loads((directory / "metadata.json").read_text())
    if metadata.get("recipe") != config.recipe():
      raise ValueError(f"{directory} was rendered to another recipe: remove it to render it anew")
    return directory
  directory.parent.mkdir(parents=True, exist_ok=True)
  with open(directory.parent / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not directory.exists():
      print(f"Rendering {sum(config.counts().values())} clips into {directory}", file=sys.stderr)
      tfds.disable_progress_bar()
      builder = Simulated(config=config, data_dir=os.fspath(data_dir), file_format="array_record")
      with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
          download_dir=downloads, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
  return directory


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Renders a simulated data set and prints its directory.")
  parser.add_argument("config", choices=[config.name for config in CONFIGS])
  parser.add_argument("--data_dir", default="data")
  args = parser.parse_args()
  print(prepare(args.config, args.data_dir))
