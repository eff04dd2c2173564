"""Averages of the parameters of which the length is chosen after the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short import finish, get_config

from vdt import averages
from vdt.checkpoint import Checkpointer
from vdt.config import Mesh
from vdt.sample import load
from vdt.train import train


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_an_average_is_as_long_as_it_says(length):
  """The weights of 4,000 steps, and their standard deviation over the number of steps."""
  update = jax.jit(lambda average, one, step: averages.update(average, one, length, step))
  weights = np.zeros(4_000)
  gamma = averages.exponent(length)
  for step in range(1, len(weights) + 1):
    keep = (1 - 1 / step) ** (gamma + 1)
    weights *= keep
    weights[step - 1] = 1 - keep
  assert weights.sum() == pytest.approx(1)
  times = np.arange(1, len(weights) + 1) / len(weights)
  mean = weights @ times
  assert np.sqrt(weights @ (times - mean) ** 2) == pytest.approx(length, rel=0.01)
  x = np.random.default_rng(0).normal(size=50).astype("float32")
  average = jnp.zeros(())
  for step, value in enumerate(x, 1):
    average = update(average, value, step)
  direct = np.diff(np.arange(51.0) ** (gamma + 1)) / 50 ** (gamma + 1)
  assert float(average) == pytest.approx(direct @ x, abs=1e-6), "the integral of tau^gamma over each step"


@pytest.mark.parametrize("length", [0.0, 0.3, -1.0])
def test_a_length_that_cannot_be_is_refused(length):
  with pytest.raises(ValueError, match="above 0, and below"):
    averages.exponent(length)


LENGTHS = (0.06, 0.08, 0.15)


def test_an_average_made_after_the_run_is_the_one_kept_through_it(tmp_path, data_dir):
  """Two runs on the same path: one keeps two lengths and stores them every 4 steps, one keeps three others."""
  made = {}
  for name, lengths, every in (("two", (0.05, 0.1), 4), ("three", LENGTHS, 80)):
    made[name] = get_config()
    made[name].data.data_dir, made[name].mesh = data_dir, Mesh(data=2, fsdp=2)
    made[name].steps, made[name].save_every, made[name].averages = 80, every, lengths
    train(made[name], str(tmp_path / name))
  with Checkpointer(str(tmp_path / "three"), create=False) as checkpoints:
    kept = checkpoints.arrays()
  plain = jax.tree.leaves(kept["params"])
  for number, length in enumerate(LENGTHS):
    _, _, found, step = load(made["two"], str(tmp_path / "two"), ema=length)
    assert step == 80
    theirs = jax.tree.leaves(kept["averages"][number])
    apart = lambda a, b: float(sum(np.sum(np.square(np.asarray(x) - np.asarray(y))) for x, y in zip(a, b)) ** 0.5)
    size = apart(theirs, [0.0 * np.asarray(x) for x in theirs])
    assert apart(jax.tree.leaves(found), theirs) < 1e-3 * size
    assert apart(plain, theirs) > 2e-3 * size, "the parameters themselves would not do"


def test_a_run_that_is_killed_keeps_its_averages_and_is_sampled_by_them(tmp_path, data_dir, capsys):
  from vdt import cli

  fields = {"steps": 20, "averages": "(0.05,0.1)"}
  code, _, err = finish(tmp_path / "whole", data_dir, **fields)
  assert code == 0, err
  for steps in (9, 20):
    code, _, err = finish(tmp_path / "parts", data_dir, **{**fields, "steps": steps})
    assert code == 0, err
  saved = []
  for name in ("whole", "parts"):
    with Checkpointer(str(tmp_path / name), create=False) as checkpoints:
      saved.append(jax.tree.leaves(checkpoints.arrays()))
  jax.tree.map(np.testing.assert_array_equal, *saved)
  assert {path.name for path in (tmp_path / "whole" / "averages").iterdir()} >= {"5", "10", "15", "20"}

  sheets = {}
  for ema in ("", "--ema=0.08", "--ema=0.2"):
    flags = [f"--workdir={tmp_path / 'whole'}", "--count=2", "--config.mesh.data=1", *filter(None, [ema])]
    cli.main(["sample", *flags])
    assert "2 videos of step 20" in capsys.readouterr().out
    sheets[ema] = (tmp_path / "whole" / "samples" / "contact_sheet.png").read_bytes()
  assert len(set(sheets.values())) == 3, "another average, other videos"
  with pytest.raises(SystemExit):
    cli.main(["sample", *flags[:-1], "--ema=0.4"])
  assert "above 0, and below 0.289" in capsys.readouterr().err
