"""Clips encoded once: the latents are the clips', whoever is killed on the way, and others are refused by name."""

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short import ROOT, get_config
from xla import devices

from data_pipelines import clips
from data_pipelines.sound import RATE, LogMel, samples
from vdt import autoencoder, cli, conditions, encode, space, workdirs
from vdt.checkpoint import Checkpointer, State
from vdt.evals import pixels
from vdt.train import train

SHORT = ROOT / "tests" / "short.py"
ROUNDING = 2**-8
"""Of bfloat16, relative."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, data_dir):
  """A run that trained an autoencoder for a moment."""
  workdir = tmp_path_factory.mktemp("autoencoder")
  flags = [f"--config.data.data_dir={data_dir}", "--config.steps=4", "--config.data.batch_size=8"]
  cli.main(["train", f"--config={SHORT}:autoencoder", f"--workdir={workdir}", *flags])
  return str(workdir)


def flags(folder, encoder, data_dir):
  return [
    f"--config={SHORT}:latents",
    f"--config.autoencoder={encoder}",
    f"--config.data.data_dir={folder}",
    f"--config.data.source.data_dir={data_dir}",
  ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder, data_dir):
  """What nobody disturbed, in shards of some 30 clips."""
  folder = tmp_path_factory.mktemp("whole")
  cli.main(["encode", *flags(folder, encoder, data_dir), "--shard=0.05"])
  return folder


@pytest.fixture
def data(folder, encoder, data_dir):
  config = get_config("latents")
  config.autoencoder, config.data.data_dir, config.data.source.data_dir = encoder, str(folder), data_dir
  config.data.prepare()
  return config.data


def content(folder):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((Path(folder) / "latents").iterdir())
  }


def test_latents_are_those_of_the_clips_and_read_in_their_order(data, encoder):
  made_by, (mean, std) = autoencoder.load(encoder), data.standard()
  held_out = dataclasses.replace(data, split="test")
  latents, clips = held_out.batch(3), held_out.clips.batch(3)
  for name in ("id", "label", "caption"):
    np.testing.assert_array_equal(latents[name], clips[name])
  wanted = (np.asarray(made_by.encode(made_by.params, pixels(clips["video"]))) - mean) / std
  np.testing.assert_allclose(latents["video"].astype(np.float32), wanted, rtol=ROUNDING, atol=1e-4)
  train = np.concatenate([data.batch(step)["video"] for step in range(8)]).astype(np.float32)
  assert np.abs(train.mean((0, 1, 2, 3))).max() < 0.3 and np.abs(train.std((0, 1, 2, 3)) - 1).max() < 0.3
  assert data.fingerprint() != held_out.fingerprint()


def test_all_captions_of_a_clip_are_kept_and_training_draws_one(encoder, data_dir, tmp_path, monkeypatch):
  plain = clips.described
  twice = lambda made: made | {"caption": np.strings.add(made["caption"], "\nonce more")}
  monkeypatch.setattr(clips, "described", lambda examples: twice(plain(examples)))
  cli.main(["encode", *flags(tmp_path, encoder, data_dir)])
  config = get_config("latents")
  config.autoencoder, config.data.data_dir, config.data.source.data_dir = encoder, str(tmp_path), data_dir
  data = config.data
  data.prepare()
  assert all(each.endswith("\nonce more") for each in data.captions())
  rows = [data.batch(step) for step in range(8)]
  drawn = np.concatenate([row["caption"] for row in rows])
  assert 16 < (drawn == "once more").sum() < 48, "half of 64, of a binomial distribution"
  for row in rows:
    lines = [each.split("\n") for each in row["captions"].tolist()]
    assert all(caption in each for caption, each in zip(row["caption"].tolist(), lines))
  np.testing.assert_array_equal(dataclasses.replace(data, prefetch=1).batch(7)["caption"], rows[7]["caption"])
  held_out = dataclasses.replace(data, split="test")
  np.testing.assert_array_equal(held_out.batch(0)["caption"], held_out.clips.batch(0)["caption"])


def test_half_of_the_clips_are_mirrored_and_the_other_half_is_not(data, encoder):
  made_by, (mean, std) = autoencoder.load(encoder), data.standard()
  plain = data.source.records(np.arange(len(data)))
  whole = dict(zip(plain["id"], plain["video"][:, :5]))
  batch = data.batch(0)
  views = []
  for name, latent in zip(batch["id"], batch["video"].astype(np.float32)):
    both = pixels(np.stack([whole[name], whole[name][:, :, ::-1]]))
    apart = np.abs((np.asarray(made_by.encode(made_by.params, both)) - mean) / std - latent).max((1, 2, 3, 4))
    assert apart.min() <= ROUNDING * np.abs(latent).max()
    views.append(apart.argmin())
  assert 0 < sum(views) < len(views)


def test_the_stream_is_the_same_for_any_number_of_hosts(data):
  whole = [data.batch(step)["video"] for step in range(2, 5)]
  for hosts in (1, 2, 4, 8):
    readers = [data.batches(2, [host], hosts) for host in range(hosts)]
    for batch in whole:
      np.testing.assert_array_equal(np.concatenate([next(reader)["video"] for reader in readers]), batch)


def test_killed_and_in_parts_it_makes_the_same_bytes(folder, encoder, data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", devices(8))  # it rounds as this process does
  command = [sys.executable, "-m", "vdt.encode", "--shard=0.05"]
  for _ in range(2):
    process = subprocess.Popen([*command, *flags(tmp_path / "killed", encoder, data_dir)])
    deadline, there = time.monotonic() + 120, len(list((tmp_path / "killed").rglob("*.npy")))
    while len(list((tmp_path / "killed").rglob("*.npy"))) <= there and time.monotonic() < deadline:
      assert process.poll() is None
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "latents" / "latents.json").exists(), "it was killed too late to say something"
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.npy")}
  cli.main(["encode", *flags(tmp_path / "killed", encoder, data_dir), "--shard=0.05"])
  assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "whole shards are kept"
  for part in (1, 0):
    cli.main(["encode", *flags(tmp_path / "parts", encoder, data_dir), "--shard=0.05", f"--part={part}/2"])
  left = {name for name in content(tmp_path / "killed") if name.endswith(".new")}
  assert content(folder) == content(tmp_path / "parts")
  assert content(folder) == {name: digest for name, digest in content(tmp_path / "killed").items() if name not in left}


def test_stale_mixed_and_torn_latents_are_refused_by_name(folder, encoder, data_dir, tmp_path, capsys):
  def refused(*more, verb="show-batch", where=folder):
    with pytest.raises(SystemExit) as ended:
      cli.main([verb, *flags(where, encoder, data_dir), *more])
    assert ended.value.code == 1
    return capsys.readouterr().err

  other = tmp_path / "other"
  shutil.copytree(encoder, other)
  said = json.loads((other / "channels.json").read_text())
  said["mean"][0] += 0.5
  (other / "channels.json").write_text(json.dumps(said))
  assert "the latents are stale: they were made by autoencoder" in refused(f"--config.autoencoder={other}")
  assert "made otherwise (autoencoder" in refused(f"--config.autoencoder={other}", verb="encode")
  assert "views is 2 there, and 1 now" in refused("--config.data.flip=False")
  assert "data.source.flip does nothing to latents" in refused("--config.data.source.flip=True")
  assert "leave out --shard" in refused("--shard=1", verb="encode")
  assert "I is a number from 0 on, below N" in refused("--part=2/2", verb="encode")
  assert "name the autoencoder" in refused("--config.autoencoder=")
  assert "no autoencoder in" in refused("--config.autoencoder=/nowhere")
  assert "make them with `vdt encode`" in refused(where=tmp_path)
  torn = tmp_path / "torn"
  shutil.copytree(folder, torn)
  shard = torn / "latents" / "train-00000.npy"
  shard.write_bytes(shard.read_bytes()[:-100])
  assert "train-00000.npy is not whole" in refused(where=torn)
  shutil.copy(folder / "latents" / "train-00000.npy", shard)
  rows = torn / "latents" / "train-00000.rows.npz"
  rows.write_bytes(rows.read_bytes()[:-100])
  assert "train-00000.rows.npz is not whole" in refused(where=torn)
  (torn / "latents" / "latents.json").write_text("{")
  assert "is damaged" in refused(where=torn)


def test_a_model_of_latents_trains_samples_and_is_measured_in_pixels(folder, encoder, data_dir, tmp_path):
  """From clips to a page: what is sampled and scored is decoded, beside the floor that the autoencoder sets."""
  run = [*flags(folder, encoder, data_dir), f"--workdir={tmp_path}/run", "--config.steps=4"]
  cli.main(["train", *run])
  tables = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
  made_by, clips = autoencoder.load(encoder), get_config("latents").data.source
  truth = pixels(dataclasses.replace(clips, data_dir=data_dir, split="test").batch(0)["video"][:4])
  again = np.asarray(made_by.decode(made_by.params, made_by.encode(made_by.params, truth)))
  floor = np.square(again - truth)[:, 3:].mean()
  assert tables["prediction/mse/reconstruction"] == pytest.approx(floor, rel=1e-3)
  assert tables["prediction/mse/single sample"] > 0
  page = (tmp_path / "run" / "report.html").read_text()
  assert "reconstructions" in page and "samples: prediction" in page
  cli.main(["sample", *run, f"--out={tmp_path}/videos", "--count=2"])
  assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
  frames = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3), np.uint8)
  np.save(tmp_path / "given.npy", frames)
  cli.main(["sample", *run, f"--out={tmp_path}/given", "--count=1", f"--given={tmp_path}/given.npy"])
  cli.main(["show-batch", *run[:-1], f"--out={tmp_path}/batch.html", "--count=2"])
  assert "bfloat16 (2, 4, 4, 6)" in (tmp_path / "batch.html").read_text()


def test_latents_of_clips_and_of_pictures_are_standardised_together_and_trained_on(encoder, data_dir, tmp_path):
  config = get_config("mixed latents")
  config.autoencoder, config.steps, config.log_every, config.evals = encoder, 4, 1, {}
  source = lambda part: dataclasses.replace(part.source, data_dir=data_dir)
  config.data.parts = tuple(
    dataclasses.replace(part, data_dir=str(tmp_path), source=source(part)) for part in config.data.parts
  )
  encode.run(config, 0, 1, None)
  one, other = (json.loads((tmp_path / part.name / "latents.json").read_text()) for part in config.data.parts)
  assert one["mean"] == other["mean"] and one["std"] == other["std"]
  assert {config.data.batch(step)["video"].shape for step in range(2)} == {(8, 2, 4, 4, 6), (16, 1, 4, 4, 6)}
  assert int(train(config, str(tmp_path / "run")).step) == 4


def test_sound_is_kept_beside_latents_and_heard_when_they_are_seen(encoder, data_dir, tmp_path):
  """One latent frame is of one picture, the others of four."""
  config = get_config("latents")
  config.autoencoder = encoder
  source = dataclasses.replace(config.data.source, name="sounding16", data_dir=data_dir)
  config.data = dataclasses.replace(config.data, data_dir=str(tmp_path), source=source)
  config.sound, config.model.pattern, config.model.sound = LogMel(bands=4, windows=2), (("space", "sound"),), 8
  encode.run(config, 0, 1, 50_000)
  held_out = dataclasses.replace(config.data, split="test")
  np.testing.assert_array_equal(held_out.batch(3)["sound"], held_out.clips.batch(3)["sound"])
  told = conditions.begun(config).arrays(config.data.batch(0))
  assert told["sound"].shape == (8, *conditions.shapes(config)["sound"][0])
  second = held_out.clips.fps()
  for frame, latent in enumerate((0, 1, 1, 1, 1)):
    noise = np.random.default_rng(0).integers(-9_000, 9_000, (1, samples(5, second)))
    place = (np.arange(noise.shape[1]) * second / RATE).astype(int)
    heard = conditions.begun(config).arrays({"video": np.zeros((1, 2, 4, 4, 6)), "sound": noise * (place == frame)})
    assert heard["sound"].mean(-1).argmax() == latent
  (tmp_path / "latents" / "test-00000.sound.npy").write_bytes(b"torn")
  with pytest.raises(ValueError, match=r"test-00000\.sound\.npy is not whole .* remove it, and test-00000\.npy"):
    dataclasses.replace(held_out).prepare()


def test_an_imported_model_of_latents_is_sampled_from_without_a_data_set(encoder, tmp_path, capsys):
  config = get_config("latents")
  network = config.model.build(2, (4, 4), {})
  origin = [f"--config={SHORT}:latents"]
  with (
    workdirs.claim(str(tmp_path), config, origin, imported={"files": {}}),
    Checkpointer(str(tmp_path)) as checkpoints,
  ):
    checkpoints.save(State(None, network.init(jax.random.key(0)), None, jnp.int32(0)), {}, wait=True)
  run = [f"--workdir={tmp_path}", "--count=2"]
  cli.main(["sample", *run])
  assert np.load(tmp_path / "samples" / "latents.npy").shape == (2, 2, 4, 4, 6)
  cli.main(["sample", *run, f"--config.autoencoder={encoder}"])
  assert len(list((tmp_path / "samples").glob("*.mp4"))) == 2
  with pytest.raises(SystemExit):
    cli.main(["sample", *run, "--task=prediction"])
  assert "has no clips here" in capsys.readouterr().err


def test_a_mask_of_pixels_becomes_one_of_latents(encoder):
  between = space.Space(autoencoder.load(encoder))
  given = np.zeros((1, 5, 16, 16, 1), np.float32)
  given[:, 0] = 1  # the first frame has a latent of its own
  given[:, 1:4] = 1  # three of the four of the second
  given[:, 4, :8] = 1
  mask = between.mask(given)[0, ..., 0]
  assert mask.shape == (2, 4, 4) and mask[0].all() and mask[1, :2].all() and not mask[1, 2:].any()
  given = lambda task, count: between.plan(task, 0, (1, 5, 16, 16), count)[0, :, 0, 0, 0].tolist()
  assert [given("prediction", count) for count in (1, 4)] == [[1, 0], [1, 0]]
  assert [given("backward", count) for count in (2, 4)] == [[0, 0], [0, 1]], "never more than was asked for"
