"""A data set of a user's own, as the README has it, is read, mixed and trained on."""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest
from short import ROOT, get_config

from data_pipelines.mixture import Buckets, Mixture
from data_pipelines.simulated import LocalInfo
from vdt.config import Data
from vdt.diffusion import Tasks
from vdt.train import train


def build(folder):
  """A TFDS builder with features of its own, in array_record."""
  import tensorflow_datasets as tfds

  class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      video = tfds.features.Tensor(shape=(8, 16, 16, 3), dtype=np.uint8, encoding="bytes")
      features = tfds.features.FeaturesDict({"video": video, "id": tfds.features.Text()})
      return LocalInfo(builder=self, description="A user's own.", features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(48), "test": self._generate_examples(16)}

    def _generate_examples(self, count):
      rng = np.random.default_rng(count)
      for number in range(count):
        yield number, {"video": rng.integers(0, 255, (8, 16, 16, 3), np.uint8), "id": f"own/{count}/{number}"}

  tfds.disable_progress_bar()
  how = tfds.download.DownloadConfig(try_download_gcs=False)
  Own(data_dir=folder, file_format="array_record").download_and_prepare(download_config=how)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """The class in the README, run as it stands there, but for where its data are."""
  folder = str(tmp_path_factory.mktemp("own"))
  build(folder)
  (code,) = [
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    if "Own(Reader)" in block
  ]
  names: dict = {"__name__": "own"}
  exec(code.replace('data_dir="data"', f"data_dir={folder!r}"), names)
  return names["Own"]


def test_it_is_a_pure_function_of_the_step_on_any_number_of_hosts(own):
  data = own()
  data.prepare()
  assert isinstance(data, Data)
  ids = np.concatenate([data.batch(step)["id"] for step in range(6)])
  assert len(set(ids)) == 48 and "own/48/0" in ids
  parts = [list(itertools.islice(data.batches(3, [host], 4), 3)) for host in range(4)]
  for step in range(3):
    joined = np.concatenate([part[step]["video"] for part in parts])
    np.testing.assert_array_equal(joined, data.batch(3 + step)["video"])
  both = Mixture((own(), dataclasses.replace(own(), seed=1)), batch_size=8)
  both.prepare()
  assert both.batch(0)["video"].shape == (8, 8, 16, 16, 3)


def test_it_is_trained_on(own, tmp_path):
  config = get_config()
  config.data, config.steps, config.model.classes = own(), 2, 0
  assert int(train(config, str(tmp_path)).step) == 2


def test_buckets_of_clips_and_pictures_are_trained_on_and_gone_on_with(data_dir, tmp_path, monkeypatch):
  """Each shape has its own steps; a run in two parts is the run in one."""

  def run(workdir, steps):
    config = get_config("buckets")
    config.data.parts = tuple(dataclasses.replace(part, data_dir=data_dir) for part in config.data.parts)
    config.steps, config.log_every, config.tasks = steps, 1, Tasks()
    return train(config, str(workdir))

  late = []
  follow = lambda event, duration, **more: late.append(more.get("fun_name")) if "backend_compile" in event else None
  read = Buckets.batches
  monkeypatch.setattr(Buckets, "batches", lambda *args: (late.clear(), read(*args))[1])  # the loop begins
  jax.monitoring.register_event_duration_secs_listener(follow)
  run(tmp_path / "parts", 2)
  assert not [name for name in late if name and "update" in name], "all shapes are compiled before the first step"
  parts, whole = run(tmp_path / "parts", 4), run(tmp_path / "whole", 4)
  for mine, theirs in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_a_run_is_not_gone_on_with_on_other_data_of_the_same_name(tmp_path, data_dir):
  """Machines may read otherwise; what is read may not be other."""
  config = get_config()
  config.data.data_dir, config.steps = data_dir, 2
  train(config, str(tmp_path / "run"))
  config.steps, config.data.prefetch, config.data.readers = 3, 4, 1
  train(config, str(tmp_path / "run"))
  said = json.loads((tmp_path / "run" / "config.json").read_text())
  (tmp_path / "run" / "config.json").write_text(json.dumps(said | {"data": "another"}))
  config.steps = 4
  with pytest.raises(ValueError, match="was trained on a data set another, now there is"):
    train(config, str(tmp_path / "run"))
