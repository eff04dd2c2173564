"""What the program does with steps that are not finite, with signals, and with evals that cannot be."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short import get_config

from data_pipelines.tokenizer import Pieces
from vdt import checkpoint, topology
from vdt.checkpoint import Checkpointer
from vdt.conditions import Conditions
from vdt.config import Mesh
from vdt.diffusion import Gaussian, RectifiedFlow, Sampler, Tasks
from vdt.evals.features import VGG
from vdt.evals.fvd import FVD
from vdt.evals.val_loss import ValLoss
from vdt.judge import LEAST, PATIENCE
from vdt.sharding import path_name
from vdt.train import Stop, first_state, make_update, train
from vdt.workdirs import claim, refuse_another
from vdt.writer import TIMINGS, best_step, read_rows


@dataclasses.dataclass(unsafe_hash=True)
class Poisoned(RectifiedFlow):
  """A loss that is `factor` times as large whenever the batch holds one of these classes."""

  labels: tuple[int, ...] = ()
  factor: float = float("inf")

  def losses(self, denoise, x0, noise, t, cond):
    hit = jnp.isin(cond["label"], jnp.array(self.labels)).any()
    return jnp.where(hit, self.factor, 1.0) * super().losses(denoise, x0, noise, t, cond)


def config(data_dir, labels, steps):
  made = get_config()
  made.data.data_dir, made.data.batch_size, made.mesh.data = data_dir, 2, 1
  made.steps, made.log_every, made.save_every, made.keep = steps, 1, 1, steps
  made.diffusion = Poisoned(labels=labels)
  return made


def test_a_step_that_is_not_finite_changes_nothing_and_names_its_clips(tmp_path, data_dir, capsys):
  made = config(data_dir, (), 6)
  batches = [made.data.batch(step) if not made.data.prepare() else None for step in range(6)]
  bad = 3
  made.diffusion = Poisoned(labels=tuple(int(label) for label in batches[bad]["label"]))
  skipped = [step for step in range(6) if np.isin(batches[step]["label"], batches[bad]["label"]).any()]
  train(made, str(tmp_path))
  rows = read_rows(str(tmp_path))
  assert {row["step"] - 1: row["skipped"] for row in rows if "skipped" in row} == {
    step: batches[step]["id"].tolist() for step in skipped
  }
  assert sorted(row["step"] - 1 for row in rows if "loss" in row) == sorted(set(range(6)) - set(skipped))
  said = capsys.readouterr().err
  assert f"step {bad + 1} skipped: loss inf" in said and batches[bad]["id"][0] in said

  with Checkpointer(str(tmp_path), create=False) as checkpoints:
    states = [checkpoints.arrays(step) for step in (bad, bad + 1)]
  before, after = ({name: jax.tree.leaves(state[name]) for name in ("params", "ema", "opt")} for state in states)
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert states[1]["step"] == states[0]["step"] + 1


def test_a_signal_is_heard_in_a_step_that_is_not_finite(data_dir):
  made = config(data_dir, (), 1)
  made.data.prepare()
  batch = made.data.batch(0)
  made.diffusion = Poisoned(labels=tuple(int(label) for label in batch["label"]))
  mesh, network = made.build()
  optimizer = made.optimizer.build()
  state = checkpoint.new_state(network, optimizer, 0, jax.random.key(0))
  step = jax.jit(make_update(made, network, optimizer, jax.random.key(1)))
  with jax.set_mesh(mesh):
    for number in (0, signal.SIGTERM):
      flags = np.array([0, number], np.int32)
      _, metrics = step(state, {"video": batch["video"], "cond": Conditions(made).arrays(batch), "stop": flags})
      assert not metrics["finite"] and metrics["stop"] == number


def test_the_compiler_is_given_the_options_of_its_chip(tmp_path, data_dir, monkeypatch):
  made = config(data_dir, (), 1)
  made.xla = {"v4": {"xla_nonsense": True}}
  here = topology.CHIPS["v4"]._replace(kinds=(jax.devices()[0].device_kind,))
  monkeypatch.setitem(topology.CHIPS, "v4", here)
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_nonsense'"):
    train(made, str(tmp_path))


def test_a_run_goes_back_before_a_spike_and_on_without_it_also_when_it_is_resumed(tmp_path, data_dir, capsys):
  made = config(data_dir, (), 20)
  made.save_every, made.spike, made.roll_back, batch = 4, 8.0, True, 14
  made.data.prepare()
  labels = [made.data.batch(step)["label"] for step in range(20)]
  made.diffusion = Poisoned(labels=tuple(int(label) for label in labels[batch]), factor=100.0)
  leapt = [step + 1 for step in range(LEAST, 20) if np.isin(labels[step], labels[batch]).any()]
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  end = train(made, str(whole))
  timeless = lambda row: {name: value for name, value in row.items() if name not in TIMINGS}
  rows = [timeless(row) for row in read_rows(str(whole))]
  assert batch + 1 in leapt and int(end.step) == 20
  assert f"{batch + 1} (spike)" in (whole / "report.html").read_text()
  assert {row["step"]: row["spike"] for row in rows if "spike" in row} == {
    step: made.data.batch(step - 1)["id"].tolist() for step in leapt
  }
  newest = batch // 4 * 4
  assert f"back to what was saved at step {newest}, and on after {batch + 1}" in capsys.readouterr().err
  with Checkpointer(str(whole), create=False) as checkpoints:
    before, after = (checkpoints.arrays(step) for step in (newest, batch + 1))
    for name in ("params", "ema", "opt"):
      jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert after["step"] == batch + 1
    assert checkpoints.ledger(20)["attempts"] == 1 + len(leapt) and checkpoints.ledger(20)["redone"] > 0

  for steps in (batch, batch + 2, 20):
    made.steps = steps
    resumed = train(made, str(parts))
  jax.tree.map(np.testing.assert_array_equal, resumed, end)
  assert [timeless(row) for row in read_rows(str(parts))] == rows


def test_the_best_step_stays_beside_the_newest_ones_also_when_it_is_resumed(tmp_path, data_dir):
  config = get_config("evals")
  config.data.data_dir, config.mesh.data, config.evals["loss"].every = data_dir, 1, 2
  config.save_every, config.keep, config.best = 2, 1, (name := "loss/generation/mean")
  for config.steps in (6, 12):
    train(config, str(tmp_path))
    losses = {row["step"]: row[name] for row in read_rows(str(tmp_path)) if name in row}
    assert [*losses] == [*range(2, config.steps + 1, 2)]
    earlier = {step: loss for step, loss in losses.items() if step < config.steps}  # the last is saved before its eval
    with Checkpointer(str(tmp_path), create=False) as checkpoints:
      assert {*checkpoints.manager.all_steps()} == {min(earlier, key=earlier.get), config.steps}
  best = lambda column, steps: best_step(str(tmp_path), column, steps)
  assert losses[best("-loss/generation/mean", losses)] == max(losses.values())
  assert best("loss/generation/mean", [4]) == 4 and best("loss/generation/maen", [4]) is None
  for config.best, config.evals["loss"].every in (("motion/flicker", 2), ("loss", 2), ("loss/generation/mean", 0)):
    with pytest.raises(ValueError, match="is of no eval that is made in training"):
      config.check()


def test_a_run_of_steps_that_are_not_finite_ends(tmp_path, data_dir):
  with pytest.raises(FloatingPointError, match=f"{PATIENCE} steps in a row up to {PATIENCE} were not finite"):
    train(config(data_dir, tuple(range(100)), PATIENCE + 5), str(tmp_path))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 77), (signal.SIGINT, 130)])
def test_a_signal_waits_for_the_step_and_after_the_last_one_ends_at_once(number, code):
  codes = []
  for where in ("before", "in the loop", "in an eval", "before an eval", "after"):
    with pytest.raises(SystemExit) as left, Stop() as stop:
      kill = lambda here, where=where: os.kill(os.getpid(), number) if here == where else None
      kill("before")
      with stop.wait():
        kill("in the loop")
        assert stop.signal == (number if where == "in the loop" else 0), "the loop saves first"
        kill("before an eval")
        with stop.at_once():
          kill("in an eval")
          assert where == "after", "an eval is not waited for"
      kill("after")
    codes.append(left.value.code)
  assert codes == [code] * 5


def test_evals_are_checked_against_what_is_held_out_before_training(data_dir):
  made = config(data_dir, (), 1)
  made.evals = {"loss": ValLoss(count=300)}
  with pytest.raises(ValueError, match=r"evals\.loss needs 300 clips, split 'test' has 256"):
    made.build()


def test_what_can_only_fail_later_is_said_before_training(data_dir, monkeypatch):
  made = config(data_dir, (), 1)
  made.model.channels = 4
  with pytest.raises(ValueError, match=r"model\.channels is 4, the data has 3"):
    made.prepare()
  made.model.channels, made.text, made.model.fps = 3, Pieces(), True
  batch = made.data.batch(0)
  for lost, error in (
    ("caption", "reads captions, Noted sprites16 has none"),
    ("fps", "batches of Noted sprites16 have no fps"),
  ):
    kept = {name: each for name, each in batch.items() if name != lost}
    with monkeypatch.context() as patched, pytest.raises(ValueError, match=error):
      patched.setattr(type(made.data), "batch", lambda self, step, kept=kept: kept)
      made.prepare()
  made.text, made.model.fps, made.evals = None, False, {"frames": FVD(count=16, features="vgg")}
  monkeypatch.setattr(VGG, "function", lambda self: (_ for _ in ()).throw(FileNotFoundError("no weights")))
  with pytest.raises(FileNotFoundError, match="no weights"):
    made.prepare()
  made.model.given, made.tasks = False, Tasks(completion=1.0)
  with pytest.raises(ValueError, match=r"tasks\.completion with model\.given False"):
    made.check()
  made = config(data_dir, (), 1)
  made.diffusion, made.sampler = Gaussian(), Sampler("ddim", 2000)
  with pytest.raises(ValueError, match=r"sampler\.steps is 2000, the diffusion has 1000"):
    made.check()


def test_fields_that_are_newer_than_a_run_have_their_defaults(tmp_path, data_dir):
  made = config(data_dir, (), 1)
  with claim(str(tmp_path), made, None):
    pass
  stored = json.loads((tmp_path / "config.json").read_text())
  del stored["config"]["model"]["discrete"], stored["config"]["averages"]
  (tmp_path / "config.json").write_text(json.dumps(stored))
  refuse_another(str(tmp_path), made)
  made.model.discrete = True
  with pytest.raises(ValueError, match=r"model\.discrete False -> True"):
    refuse_another(str(tmp_path), made)


def test_two_runs_do_not_share_a_workdir(tmp_path, data_dir):
  made = config(data_dir, (), 1)
  with claim(str(tmp_path), made, None), pytest.raises(ValueError, match="another process trains in"):
    train(made, str(tmp_path))
  with claim(str(tmp_path), made, None):
    pass


def test_a_start_that_saved_nothing_may_be_corrected(tmp_path, data_dir):
  made = config(data_dir, (), 1)
  made.init_from = "/nowhere"
  with pytest.raises(FileNotFoundError, match="no checkpoints at /nowhere"):
    train(made, str(tmp_path))
  made.init_from, made.model.depth = "", 4
  assert int(train(made, str(tmp_path)).step) == 1
  made.model.depth = 2
  with pytest.raises(ValueError, match=r"holds a run of another config \(model.depth 4 -> 2\)"):
    train(made, str(tmp_path))


def test_a_model_of_images_goes_on_as_one_of_videos(tmp_path, data_dir):
  """At first it makes of each frame what it made of the image; frozen, it learns in its new attentions alone."""
  images = config(data_dir, (), 2)
  images.data = dataclasses.replace(images.data, frames=1)
  images.model = dataclasses.replace(images.model, pattern=(("space",),), positions="rope+places")
  images.diffusion, images.tasks = RectifiedFlow(), Tasks()
  state = train(images, str(tmp_path / "images"))
  videos = dataclasses.replace(images, init_from=str(tmp_path / "images"), freeze="^(?!.*attention/1/)")
  videos.data = dataclasses.replace(images.data, frames=8)
  videos.model = dataclasses.replace(images.model, pattern=(("space", "time"),))
  _, image_network = images.layout()
  _, network = videos.layout()
  new = lambda: checkpoint.new_state(network, videos.optimizer.build(), 0, jax.random.key(1))
  first = first_state(videos, new)
  noised = jax.tree.map(lambda leaf: leaf + 0.1, state.ema)  # else its zeros make nothing of anything
  both = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if "attention/1/" in path_name(path) else leaf + 0.1, first.params
  )
  x, t = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 3)), jnp.linspace(0.1, 0.9, 16).reshape(2, 8)
  cond = {"given": jnp.zeros((2, 8, 16, 16, 1)), "label": jnp.array([3, 4]), "null": {}}
  apart = {"given": jnp.zeros((16, 1, 16, 16, 1)), "label": jnp.repeat(cond["label"], 8), "null": {}}
  frames = image_network.apply(noised, x.reshape(16, 1, 16, 16, 3), t.reshape(16, 1), apart)
  whole = network.apply(both, x, t, cond)
  assert np.abs(whole).max() > 0.1
  np.testing.assert_allclose(whole, frames.reshape(whole.shape), atol=1e-5)

  trained = train(videos, str(tmp_path / "videos"))
  moved = jax.tree_util.tree_map_with_path(
    lambda path, a, b: (path_name(path), bool((np.asarray(a) != np.asarray(b)).any())), first.params, trained.params
  )
  moved = dict(jax.tree.leaves(moved, is_leaf=lambda leaf: isinstance(leaf, tuple)))
  assert {name for name, changed in moved.items() if changed} <= {name for name in moved if "attention/1/" in name}
  assert any(moved.values())
  for wrong, message in {
    "(": "no regular expression",
    "nothing": "none of the parameters",
    ".": "all of the parameters",
  }.items():
    videos.freeze = wrong
    with pytest.raises(ValueError, match=message):
      train(videos, str(tmp_path / "wrong"))


def test_a_training_step_alone_is_written_out(data_dir):
  made, loops = get_config(), []
  made.data.data_dir, made.mesh, made.model.depth = data_dir, Mesh(data=1), 4
  optimizer, batch = made.optimizer.build(), made.data.batch(0)
  batch = {"video": batch["video"], "cond": Conditions(made).arrays(batch), "stop": np.zeros_like(batch["label"])}
  for made.model.scan in (True, False):
    _, network = made.build()
    state = checkpoint.new_state(network, optimizer, 0, jax.random.key(0))
    step = jax.jit(make_update(made, network, optimizer, jax.random.key(1))).lower(state, batch)
    video = batch["video"].astype(np.float32)
    cond = {**batch["cond"], "given": np.zeros((*video.shape[:-1], 1), np.float32)}
    sample = jax.jit(network.apply).lower(state.params, video, np.zeros(video.shape[:2], np.float32), cond)
    loops.append([lowered.as_text().count("stablehlo.while") for lowered in (step, sample)])
  assert loops[0][0] - loops[1][0] >= 2, "forward and backward"
  assert loops[0][1] == loops[1][1] >= 1
