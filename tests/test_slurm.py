"""A sweep on a real Slurm cluster: an array, a job of two tasks, jobs cut off, status, logs, cancel."""

import os
import signal
import subprocess
import sys

import cluster
import pytest
import short
from test_sweep import EXPERIMENT, children, job_folders, table, until
from xla import FAST

from vdt import attempts, cli, slurm
from vdt.attempts import CANCELLED, DONE, LOST, PREEMPTED, RUNNING

FIELDS = {"steps": 200, "log_every": 2, "save_every": 20, "data.batch_size": 8}


def sweep(folder, data_dir, *more, **fields):
  flags = [f"--config.{name}={value}" for name, value in {**FIELDS, **fields, "data.data_dir": data_dir}.items()]
  command = [sys.executable, "-m", "vdt.cli", "sweep", f"--config={EXPERIMENT}", "--arms=cluster"]
  result = subprocess.run([*command, f"--workdir={folder}", *more, *flags], capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  return result.stdout


def whats(folder):
  return [line["what"] for line in attempts.notes(folder)]


@pytest.mark.slow
def test_a_sweep_on_slurm(tmp_path, data_dir, monkeypatch, capsys):
  if reason := cluster.available():
    pytest.skip(reason)
  monkeypatch.setenv("PYTHONPATH", str(short.ROOT))
  monkeypatch.setenv("XLA_FLAGS", FAST)
  peace, ours = tmp_path / "peace", tmp_path / "slurm"
  sweep(peace, data_dir, "--workers=1")
  with cluster.slurm(tmp_path / "cluster", nodes=1, cpus=2) as environment:
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    send = ["--backend=slurm", "--slurm=partition=low"]
    shown = sweep(ours, data_dir, *send, "--dry-run")
    assert "array of 6" in shown and "array of 1" in shown and not ours.exists()
    shown = sweep(ours, data_dir, *send)
    assert "7 runs, 7 to go" in shown
    folders = job_folders(ours)
    assert "7 runs, 0 to go" in sweep(ours, data_dir, *send), "what is in the queue is not sent again"

    trains = lambda but=(): next(
      (each for each in folders if each not in but and attempts.state(each) == RUNNING and short.last_step(each) > 30),
      None,
    )
    killed = until(trains)
    runner = [line for line in attempts.notes(killed) if line["what"] == "start"][-1]["pid"]
    os.kill(children(runner)[0], signal.SIGKILL)
    until(lambda: LOST in whats(killed))
    requeued = until(lambda: trains([killed]))
    job = next(line["job"] for line in attempts.notes(requeued) if line["what"] == "submit")
    subprocess.run(["scontrol", "requeue", job], check=True)
    until(lambda: PREEMPTED in whats(requeued))
    cut = until(lambda: trains([killed, requeued]))
    cli.main(["cancel", str(ours), f"--arm={attempts.Job.read(cut).name}"])
    until(lambda: attempts.state(cut) == CANCELLED, 60)
    cli.main(["status", str(ours)])
    cli.main(["logs", str(ours), f"--arm={attempts.Job.read(requeued).name}"])
    shown = capsys.readouterr().out
    assert "cancelled" in shown and "Slurm's job" in shown and "stopped by SIGTERM" in shown

    until(lambda: all(attempts.state(each) == DONE for each in folders if each != cut), 900)
    assert "7 runs, 1 to go" in sweep(ours, data_dir, *send)
    until(lambda: attempts.state(cut) == DONE, 300)
    until(lambda: not slurm.alive([slurm_job(each) for each in folders]), 60)
  assert whats(killed).count("start") == whats(requeued).count("start") == 2, "each was queued again once"
  for each in folders:
    assert short.rows(each) == short.rows(peace / each.name), each.name
  assert table(ours, tmp_path / "a") == table(peace, tmp_path / "b")
  two = next(each for each in folders if each.name.startswith("two"))
  assert "2 processes" in (two / "config.json").read_text()


def slurm_job(folder):
  return [line["job"] for line in attempts.notes(folder) if line["what"] == "submit"][-1]
