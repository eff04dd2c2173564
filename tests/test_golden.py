"""Three training steps give the numbers they gave: a change of any of them is a change of the trainer."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from short import get_config

from vdt.train import train
from vdt.writer import read_rows

GOLDEN = Path(__file__).parent / "golden.json"


def test_a_golden_training_step(tmp_path, data_dir, request):
  config = get_config()
  config.data.data_dir, config.mesh.data, config.steps, config.log_every = data_dir, 1, 3, 1
  state = train(config, str(tmp_path))
  found = [
    {name: row[name] for name in ("step", "loss", "grad_norm", "learning_rate")} for row in read_rows(str(tmp_path))
  ]
  apart = jax.tree.map(jnp.subtract, state.params, state.ema)
  norms = {"params": state.params, "ema": state.ema, "params - ema": apart, "opt": state.opt}
  found.append({name: float(optax.tree.norm(tree)) for name, tree in norms.items()})
  if request.config.getoption("--write-golden"):
    GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
  wanted = json.loads(GOLDEN.read_text())
  for mine, theirs in zip(found, wanted, strict=True):
    assert mine == pytest.approx(theirs, rel=1e-4), (
      "training changed: if you meant it, run `make golden`, look at the difference, and say why in the commit"
    )
