"""Sweeps: the arms that an experiment yields, which of them are one, and what becomes of them when processes die."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import short
from xla import EXACT, FAST, devices

from data_pipelines.clips import Clips
from vdt import attempts, checkpoint, cli, command_line, conditions, sweep, train
from vdt.attempts import DONE, FAILED, LOST, PREEMPTED
from vdt.diffusion import RectifiedFlow
from vdt.sweep import BASE, Arm, chainit, product, seeds, vary, zipit

EXPERIMENT = f"{short.ROOT}/tests/short.py"


def test_helpers():
  rates, depths = vary("optimizer.lr", [1, 2]), vary("model.depth", shallow=2, deep=4)
  assert [arm.name for arm in product(rates, depths)] == ["lr=1,shallow", "lr=1,deep", "lr=2,shallow", "lr=2,deep"]
  assert product(rates, depths)[1].changes == {"optimizer.lr": 1, "model.depth": 4}
  assert [arm.changes for arm in zipit(rates, depths)] == [
    {"optimizer.lr": 1, "model.depth": 2},
    {"optimizer.lr": 2, "model.depth": 4},
  ]
  assert [arm.name for arm in chainit([BASE], rates, [{"model.width": 8}])] == ["base", "lr=1", "lr=2", "width=8"]
  repeats = product([BASE], seeds(2, first=5))
  assert repeats == [Arm("base", {"seed": seed, "data.seed": seed}, seed) for seed in (5, 6)]
  with pytest.raises(ValueError, match=r"optimizer.lr twice"):
    product(rates, rates)
  with pytest.raises(ValueError, match="2, 3 arms"):
    zipit(rates, seeds(3))
  with pytest.raises(ValueError, match="variant"):
    sweep.flags({"model": object()})


def write(tmp_path, data_dir, arms, extra=()):
  """The folders of `arms`, without running them."""
  given = [f"--config={EXPERIMENT}", f"--config.data.data_dir={data_dir}", *extra]

  def resolve(changes):
    own = [f"--{name}={value}" for name, value in sweep.flags(changes).items()]
    return command_line.parse([*given, *own], cli.flags.FlagValues())

  plans = sweep.write(tmp_path, sweep.lay(tmp_path, sweep.arms_of(arms), resolve, True))
  return [plan.folder for plan in plans]


def test_identity(tmp_path, data_dir, monkeypatch):
  arms = [Arm("a", {"optimizer.lr": 1e-3}), Arm("twin", {}), Arm("b", {"optimizer.lr": 2e-3}), *seeds(2, first=1)]
  folders = write(tmp_path / "one", data_dir, arms)
  assert len(folders) == 4, "equal configs are one run"
  rows = sweep.read(tmp_path / "one")
  assert [row["folder"] for row in rows[:2]] == [folders[0].name] * 2 and len({row["identity"] for row in rows}) == 4
  again = write(tmp_path / "two", data_dir, arms)
  assert [folder.name for folder in again] == [folder.name for folder in folders], "the same, wherever it lies"
  other = write(tmp_path / "three", data_dir, [{"data.name": "collisions16", "model.classes": 24}])
  assert other[0].name.split("-")[-1] != folders[0].name.split("-")[-1]
  monkeypatch.setattr("vdt.workdirs.source_hash", lambda: "changed")
  changed = write(tmp_path / "four", data_dir, arms)
  assert not {folder.name for folder in changed} & {folder.name for folder in folders}, "other sources, other runs"


@pytest.mark.parametrize(
  "change, message",
  [
    ({"optimizer.lr": "fast"}, "fast"),
    ({"optimizer.rate": 1e-3}, "rate"),
    ({"steps": 0}, "arm 'steps=0': .*steps"),
    ({"model.heads": 3}, "arm 'heads=3'"),
  ],
)
def test_arms_are_typed(change, message, tmp_path, data_dir):
  with pytest.raises(ValueError, match=message):
    write(tmp_path, data_dir, [change])
  assert not (tmp_path / sweep.NAME).exists()


def test_the_fingerprint_is_of_the_data(tmp_path, data_dir):
  data = short.get_config().data
  data = dataclasses.replace(data, data_dir=data_dir)
  data.prepare()
  copy = tmp_path / "copy"
  shutil.copytree(data.directory, copy)
  same = Clips(name="copy", frames=8, size=(16, 16), batch_size=8, data_dir=str(tmp_path))
  before = same.fingerprint()
  assert before == Clips(name="copy", frames=8, size=(16, 16), batch_size=8, data_dir=str(tmp_path)).fingerprint()
  info = json.loads((copy / "dataset_info.json").read_text())
  info["description"] = "another"
  (copy / "dataset_info.json").write_text(json.dumps(info))
  assert Clips(name="copy", frames=8, size=(16, 16), batch_size=8, data_dir=str(tmp_path)).fingerprint() != before


@dataclasses.dataclass
class Seen(RectifiedFlow):
  """Notes what a step is made of."""

  notes: list = dataclasses.field(default_factory=list)

  def losses(self, denoise, x0, noise, t, cond):
    jax.debug.callback(
      lambda *what: self.notes.append([np.asarray(each) for each in what]), x0, noise, t, *jax.tree.leaves(cond)
    )
    return super().losses(denoise, x0, noise, t, cond)


def test_arms_of_one_seed_are_paired(data_dir):
  """At any step they see the same clips, noise, times, masks and dropped conditions; another seed sees others."""
  seen = {}
  differences = [{"optimizer.lr": 1e-2}, {"model.pattern": (("joint",),), "model.width": 32}]
  for arm in chainit(product(differences, seeds(1)), seeds(1, first=1)):
    given = [f"--config={EXPERIMENT}", f"--config.data.data_dir={data_dir}"]
    given += [f"--{name}={value}" for name, value in sweep.flags(arm.changes).items()]
    config, _ = command_line.parse(given, cli.flags.FlagValues())
    config.diffusion = Seen()
    _, network = config.build()
    init_key, train_key = jax.random.split(jax.random.key(config.seed))
    optimizer = config.optimizer.build()
    state = checkpoint.new_state(network, optimizer, 0, init_key)
    update = jax.jit(train.make_update(config, network, optimizer, train_key), compiler_options=EXACT)
    for step in range(2):
      batch = config.data.batch(step)
      told = conditions.Conditions(config).arrays(batch)
      state, _ = update(state, {"video": batch["video"], "cond": told, "stop": np.zeros(8, np.int32)})
    jax.block_until_ready(state)
    jax.effects_barrier()
    seen.setdefault(arm.seed, []).append(config.diffusion.notes)
  first, second = seen[0]
  assert len(first) == 2
  jax.tree.map(np.testing.assert_array_equal, first, second)
  one, other = first[0], seen[1][0][0]
  assert all((a != b).any() for a, b in zip(one[:3], other[:3])), "clips, noise and times of another seed are others"


def begin(folder, data_dir, arms, steps=120):
  """A sweeper."""
  fields = {"steps": steps, "log_every": 2, "save_every": 20, "data.data_dir": data_dir, "data.batch_size": 4}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  command = [sys.executable, "-m", "vdt.cli", "sweep", f"--config={EXPERIMENT}", f"--arms={arms}"]
  ours = {
    "PYTHONPATH": str(short.ROOT),
    "XLA_FLAGS": FAST,
    "JAX_COMPILATION_CACHE_DIR": f"{data_dir}/cache",
  }
  command += [f"--workdir={folder}", "--workers=2", *flags]
  return subprocess.Popen(command, env={**os.environ, **ours}, stdout=subprocess.PIPE, text=True)


def finish(*args, code=0):
  process = begin(*args)
  out, _ = process.communicate(timeout=900)
  assert process.returncode == code, out
  return out


def until(condition, seconds=300):
  """Waits for a condition, which must come true."""
  end = time.monotonic() + seconds
  while not (found := condition()):
    assert time.monotonic() < end, "it never came"
    time.sleep(0.02)
  return found


def job_folders(folder):
  return [folder / name for name in dict.fromkeys(row["folder"] for row in sweep.read(folder))]


def running(folder, step=4, but=()):
  """A job that trains, and is past `step`."""
  for each in job_folders(folder) if (folder / sweep.NAME).exists() else ():
    if each not in but and attempts.state(each) == attempts.RUNNING and short.last_step(each) >= step:
      return each
  return None


def runner(folder):
  return [line for line in attempts.notes(folder) if line["what"] == "start"][-1]["pid"]


def children(pid):
  return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def table(folder, out):
  cli.main(["compare", str(folder), f"--out={out}"])
  return (out / "values.csv").read_text(), (out / "effects.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("arms", ["few", "eight"])
def test_a_killed_sweep_goes_on(arms, tmp_path, data_dir):
  """A training process, its runner and then the sweeper are killed; the rest is run, and the tables are the same."""
  finish(tmp_path / "peace", data_dir, arms)
  disturbed = tmp_path / "disturbed"
  process = begin(disturbed, data_dir, arms)
  trained = until(lambda: running(disturbed))
  os.kill(children(runner(trained))[0], signal.SIGKILL)  # a machine's fault: it is started again at once
  until(lambda: LOST in [line["what"] for line in attempts.notes(trained)])
  broken = until(lambda: running(disturbed, 24, but=[trained]))
  os.kill(runner(broken), signal.SIGKILL)  # its training process saves and ends
  until(lambda: any(attempts.state(each) == DONE for each in job_folders(disturbed)))
  process.kill()
  process.communicate()
  until(lambda: not any(attempts.state(each) == attempts.RUNNING for each in job_folders(disturbed)))
  before = {each: (attempts.state(each), (each / "attempts.jsonl").read_text()) for each in job_folders(disturbed)}
  states = [state for state, _ in before.values()]
  assert DONE in states and {*states} - {DONE}, states

  out = finish(disturbed, data_dir, arms)
  left = sum(state != DONE for state in states)
  assert f"{len(states)} runs, {left} to go" in out
  for each, (state, text) in before.items():
    assert attempts.state(each) == DONE
    assert (each / "attempts.jsonl").read_text() == text if state == DONE else True, "what was done is not run again"
  assert short.rows(broken) == short.rows(tmp_path / "peace" / broken.name)
  assert table(disturbed, tmp_path / "a") == table(tmp_path / "peace", tmp_path / "b")
  assert f"{len(states)} runs, 0 to go" in finish(disturbed, data_dir, arms)


def test_an_error_of_ours_stops_one_arm(tmp_path, data_dir, capsys):
  """The others go on, status shows why, nothing is tried twice, and the mended arm alone is run again."""
  out = finish(tmp_path / "sweep", data_dir, "broken", 4, code=1)
  folders = job_folders(tmp_path / "sweep")
  assert [attempts.state(each) for each in folders] == [DONE, FAILED, DONE], out
  assert sum(line["what"] == "start" for line in attempts.notes(folders[1])) == 1
  cli.main(["status", str(tmp_path / "sweep")])
  shown = capsys.readouterr().out
  assert "failed" in shown and "nowhere" in shown
  assert "3 runs, 1 to go" in finish(tmp_path / "sweep", data_dir, "broken", 4, code=1)
  with pytest.raises(SystemExit) as ended:
    cli.main(["compare", str(tmp_path / "none")])
  assert ended.value.code == 1


def test_launch_status_logs_cancel(tmp_path, data_dir, capsys, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", FAST)
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{data_dir}/cache")
  monkeypatch.setenv("PYTHONPATH", str(short.ROOT))
  run = tmp_path / "run"
  fields = {"steps": 4000, "log_every": 2, "save_every": 1000, "data.data_dir": data_dir, "data.batch_size": 4}
  command = ["launch", f"--config={EXPERIMENT}", f"--workdir={run}", "--backend=local"]
  command += [f"--config.{name}={value}" for name, value in fields.items()]
  cli.main([*command, "--dry_run=true"])
  assert "vdt.attempts" in capsys.readouterr().out and not run.exists()
  cli.main(command)
  until(lambda: attempts.state(run) == attempts.RUNNING and short.last_step(run) > 4)
  cli.main(["status", str(run)])
  cli.main(["cancel", str(run)])
  until(lambda: attempts.state(run) != attempts.RUNNING)
  cli.main(["status", str(run)])
  cli.main(["logs", str(run)])
  shown = capsys.readouterr().out
  assert "running" in shown and "cancelled" in shown and "stopped by SIGTERM" in shown
  stood = short.last_step(run)
  command = [each for each in command if "steps=" not in each] + [f"--config.steps={stood + 10}"]
  cli.main(command)
  until(lambda: attempts.state(run) == DONE)
  assert short.last_step(run) == stood + 10
  (run / "job.json").unlink()  # as `vdt train` leaves a run
  cli.main(["status", str(run)])
  with open(run / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    cli.main(["status", str(run)])
  shown = capsys.readouterr().out
  assert f"not running, step {stood + 10}, loss" in shown and f"trains now, step {stood + 10}, loss" in shown


@pytest.mark.slow
def test_two_processes_of_one_arm(tmp_path, data_dir, monkeypatch):
  """The runner starts both, and they find each other; a signal to it ends both at one step."""
  monkeypatch.setenv("XLA_FLAGS", devices(2))
  monkeypatch.setenv("PYTHONPATH", str(short.ROOT))
  fields = ["--config.steps=400", "--config.log_every=2", "--config.mesh.data=4"]
  (folder,) = write(tmp_path, data_dir, [{"processes": 2, "data.batch_size": 4}], fields)
  process = subprocess.Popen([sys.executable, "-m", "vdt.attempts", str(folder)], env=os.environ.copy())
  until(lambda: short.last_step(folder) >= 4)
  process.terminate()
  assert process.wait() == attempts.RESTART and attempts.state(folder) == PREEMPTED
  assert "2 processes" in json.loads((folder / "config.json").read_text())["environment"]["devices"]


def test_kinds():
  assert [attempts.kind(codes) for codes in ([0, 0], [77], [1], [77, 1], [-9], [77, -6], [134])] == [
    DONE,
    PREEMPTED,
    FAILED,
    FAILED,
    LOST,
    LOST,
    LOST,
  ]
