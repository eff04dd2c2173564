"""Successive halving: who is stopped, and that nothing is forgotten when the process that asks is another."""

import json

import pytest

from vdt import attempts, halving
from vdt.attempts import DONE, STOPPED, Job
from vdt.halving import Halving


def job(folder, name, losses):
  """A job that has logged `losses`, every 10 steps."""
  (folder / name).mkdir(exist_ok=True)
  rows = [{"step": 10 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]
  (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  options = {"metric": "loss", "steps": 20, "factor": 2}
  return folder / name, Job(name, ["train"], identity=name, halving=options)


def test_the_worse_are_stopped(tmp_path):
  """Of two arms the worse stops at the first step that decides; a better one that comes late goes on."""
  assert not Halving(*job(tmp_path, "good", [1.0, 0.5, 0.4])).hopeless()
  assert not Halving(*job(tmp_path, "bad", [2.0])).hopeless(), "too early to tell"
  bad = Halving(*job(tmp_path, "bad", [2.0, 1.9]))
  assert bad.reported == 10, "a new process knows what was reported"
  assert bad.hopeless()
  bad.end(STOPPED)
  assert not Halving(*job(tmp_path, "better", [0.9, 0.3])).hopeless()
  good = Halving(*job(tmp_path, "good", [1.0, 0.5, 0.4, 0.2]))
  good.hopeless()
  good.end(DONE)
  states = {trial.user_attrs["job"]: trial.state.name for trial in good.study.trials}
  assert states == {"good": "COMPLETE", "bad": "PRUNED", "better": "RUNNING"}
  good.end(DONE)
  assert not Halving(*job(tmp_path, "bad", [2.0])).hopeless(), "what is over may be run again, if somebody says so"


@pytest.mark.parametrize("text", ["loss", "loss:0:3", "loss:10:1", "loss:a:b"])
def test_options(text):
  with pytest.raises(ValueError, match="METRIC:STEPS:FACTOR"):
    halving.parse(text)
  assert halving.parse("loss/generation/mean:10:2") == {"metric": "loss/generation/mean", "steps": 10, "factor": 2}


def test_a_stopped_job_is_over(tmp_path):
  attempts.note(tmp_path, "start")
  attempts.note(tmp_path, STOPPED)
  assert attempts.state(tmp_path) == STOPPED in attempts.OVER
