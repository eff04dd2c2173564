"""A run that is killed and goes on is the run that was never killed. The processes and the signals are real."""

import random
import signal
import time

import jax
import numpy as np
import pytest
from short import STEPS, finish, get_config, last_step, rows, start

from vdt import ledger
from vdt.checkpoint import Checkpointer
from vdt.config import Mesh
from vdt.train import train

TORN = "*.orbax-checkpoint-tmp"
EVAL = "loss/generation/mean"


def saved(workdir):
  """Every array of the last checkpoint, by path."""
  with Checkpointer(str(workdir), create=False) as checkpoints:
    assert checkpoints.newest == STEPS
    return jax.tree.leaves(checkpoints.arrays())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_dir):
  """The run that nobody killed."""
  workdir = tmp_path_factory.mktemp("whole")
  code, _, err = finish(workdir, data_dir)
  assert code == 0, err
  assert (workdir / "report.html").exists()
  return workdir


def assert_equal(workdir, whole):
  for mine, theirs in zip(saved(workdir), saved(whole), strict=True):
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
  assert rows(workdir) == rows(whole)
  trained, evaluated = ([row["step"] for row in rows(workdir) if name in row] for name in ("loss", EVAL))
  assert trained == list(range(2, STEPS + 1, 2)) and evaluated == list(range(10, STEPS + 1, 10))
  with Checkpointer(str(workdir), create=False) as checkpoints:
    assert checkpoints.ledger(STEPS)["attempts"] == len(ledger.read(str(workdir)))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW)])
def test_killed_at_the_start_in_steps_and_in_the_middle_of_saves(whole, tmp_path, data_dir, seed):
  rng, in_save = random.Random(seed), 0
  for kill in range(6):
    checkpoints = tmp_path / "checkpoints"
    left = set(checkpoints.glob(TORN))  # by the kill before: not a save of this process
    target = last_step(tmp_path) + rng.randint(2, 5)
    process = start(tmp_path, data_dir)
    deadline = time.monotonic() + 200
    try:
      while process.poll() is None and time.monotonic() < deadline:
        torn = set(checkpoints.glob(TORN)) - left
        starting = kill == 0 and (tmp_path / "config.json").exists()
        if starting or (kill % 2 and torn) or (kill and not kill % 2 and last_step(tmp_path) >= target):
          process.send_signal(signal.SIGKILL)
          in_save += bool(torn)
          break
        time.sleep(0.001)
    finally:
      process.kill()
      process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
  assert in_save >= 2, "kills in the middle of a save"
  code, _, err = finish(tmp_path, data_dir)
  assert code == 0, err
  assert_equal(tmp_path, whole)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 77), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(whole, tmp_path, data_dir, number, code):
  process = start(tmp_path, data_dir)
  while last_step(tmp_path) < 8:
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.send_signal(number)
  _, err = process.communicate(timeout=120)
  assert process.returncode == code and "everything is saved" in err
  with Checkpointer(str(tmp_path), create=False) as checkpoints:
    assert 8 <= checkpoints.newest < STEPS
  assert finish(tmp_path, data_dir)[0] == 0
  assert_equal(tmp_path, whole)


def test_weights_of_eight_devices_start_a_run_on_one(whole, tmp_path, data_dir):
  """The processes here have one device; what was saved on a mesh of eight is read without it."""
  sharded = get_config()
  sharded.data.data_dir, sharded.steps, sharded.save_every = data_dir, 2, 2
  sharded.mesh = Mesh(data=2, fsdp=4)
  train(sharded, str(tmp_path / "sharded"))
  code, _, err = finish(tmp_path / "run", data_dir, steps=2, save_every=1, init_from=tmp_path / "sharded")
  assert code == 0 and "step 2:" in err and "missing: none" in err and "other shape: none" in err, err
  with Checkpointer(str(tmp_path / "sharded"), create=False) as checkpoints:
    theirs = checkpoints.arrays(2)["ema"]
  with Checkpointer(str(tmp_path / "run"), create=False) as checkpoints:
    ours = checkpoints.arrays(1)
  rate = 1e-3 / 5  # of the first step; AdamW moves nothing by more, and the average less
  for name, bound in (("params", 1.01 * rate), ("ema", 0.91 * rate)):
    for mine, other in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(theirs), strict=True):
      assert 0 < np.abs(np.asarray(mine) - np.asarray(other)).max() < bound


def test_a_trace_goes_on_when_its_run_does(tmp_path, data_dir):
  """In a process of its own: JAX's profiler crashes in one that has loaded the TPU compiler and no TPU."""
  for steps in (4, 8):
    code, _, err = finish(tmp_path, data_dir, steps=steps, profile="3:6")
    assert code == 0, err
  traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert len(traces) == 2 and all(path.stat().st_size for path in traces)
