"""Several processes are one run: real ones, with their own devices, over loopback."""

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
from short import DIES, NOTES, ROOT, finish, get_config, last_step, meeting, python, rows, start, start_together
from xla import devices

from data_pipelines.video import read_clip
from vdt import cli, distributed
from vdt.checkpoint import Checkpointer
from vdt.evaluate import flat

FIELDS = {"steps": 20, "log_every": 1, "data.batch_size": 8, "mesh.fsdp": 2, "save_every": 5}


def ends(processes):
  """Exit codes and what each process said on stderr."""
  try:
    said = [process.communicate(timeout=400)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


def test_two_processes_are_one_and_stop_together(tmp_path, data_dir, monkeypatch):
  """Also where a run goes back before steps that leap, of which this threshold makes some, stores averages, and reads
  captions; and where one of them is killed while both read a checkpoint."""
  fields = {**FIELDS, "spike": 1.1, "roll_back": True, "averages": "(0.05,0.1)"}
  fields |= {"variant": "told", "evals.loss.every": 10}
  code, _, err = finish(tmp_path / "one", data_dir, devices=8, **fields)
  assert code == 0 and "back to what was saved at step" in err, err
  two = tmp_path / "two"
  processes = start_together(two, data_dir, 2, 4, **fields)
  while last_step(two) < 4:
    assert all(process.poll() is None for process in processes), ends(processes)[1]
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)  # the one that does not write
  codes, said = ends(processes)
  assert codes == [77, 77], said
  with Checkpointer(str(two), create=False) as checkpoints:
    assert 4 <= checkpoints.newest < 20
  monkeypatch.setenv(DIES, "1")  # the other one asks for a restart, and does not blame the checkpoint
  codes, said = ends(start_together(two, data_dir, 2, 4, **fields))
  assert codes == [77, -signal.SIGKILL] and "cannot be read" not in said[0], said
  monkeypatch.delenv(DIES)
  codes, said = ends(start_together(two, data_dir, 2, 4, **fields))
  assert codes == [0, 0], said
  for mine, theirs in zip(rows(two), rows(tmp_path / "one"), strict=True):
    assert {name: value for name, value in mine.items() if name != "spike"} == pytest.approx(
      {name: value for name, value in theirs.items() if name != "spike"}, rel=1e-5
    )
    assert mine.get("spike") == theirs.get("spike")
  assert (two / "report.html").exists()


def kill_at(step, workdir, processes, number=signal.SIGKILL):
  """Sends all of them a signal, as soon as the run is at `step`."""
  while last_step(workdir) < step:
    assert all(process.poll() is None for process in processes), ends(processes)[1]
    time.sleep(0.01)
  for process in processes:
    process.send_signal(number)
  codes, said = ends(processes)
  assert codes == [-number] * len(processes), said


def arrays(workdir):
  with Checkpointer(str(workdir), create=False) as checkpoints:
    return jax.tree.leaves(checkpoints.arrays())


def test_a_run_goes_on_over_other_meshes_and_processes(tmp_path, data_dir, monkeypatch):
  """Killed on data 4 x fsdp 2, on fsdp 4 x tensor 2, and ended on two devices of one process, with another remat: the
  same clips in the same order, a part of each batch to each process, and the same losses."""

  def begin(workdir, *args, **fields):
    notes = tmp_path / f"notes {workdir.name}"
    notes.mkdir(exist_ok=True)
    monkeypatch.setenv(NOTES, str(notes))
    return start_together(workdir, data_dir, *args, **fields)

  fields = {"steps": 30, "log_every": 1, "save_every": 5, "data.batch_size": 8}
  first, second = {"mesh.data": 4, "mesh.fsdp": 2}, {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
  whole, same, other = (tmp_path / name for name in ("whole", "same", "other"))
  codes, said = ends(begin(whole, 2, 4, **fields, **first))
  assert codes == [0, 0], said

  kill_at(12, same, begin(same, 2, 4, **fields, **first))
  codes, said = ends(begin(same, 2, 4, **fields, **first))
  assert codes == [0, 0], said
  assert rows(same) == rows(whole)
  for mine, theirs in zip(arrays(same), arrays(whole), strict=True):
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))

  kill_at(8, other, begin(other, 2, 4, **fields, **first))
  kill_at(18, other, begin(other, 2, 4, **fields, **second))
  code, _, err = finish(other, data_dir, devices=2, **fields, **{"model.remat": "dots+params", "model.scan": "False"})
  assert code == 0, err
  for mine, theirs in zip(rows(other), rows(whole), strict=True):
    assert mine == pytest.approx(theirs, rel=1e-5)
  assert_told_alike(other, data_dir, tmp_path)

  data = get_config().data
  data.data_dir = data_dir
  data.prepare()
  for workdir in (whole, same, other):
    read = {step: set() for step in range(30)}
    files = [path.read_text().splitlines() for path in (tmp_path / f"notes {workdir.name}").iterdir()]
    lines = [line for file in files for line in file]
    if workdir == whole:
      blocks = [{block for line in file for block in json.loads(line)["blocks"]} for file in files]
      assert blocks in ([{0, 1, 2, 3}, {4, 5, 6, 7}], [{4, 5, 6, 7}, {0, 1, 2, 3}]), (
        "each process reads half of a batch"
      )
    for note in (json.loads(line) for line in lines if line.endswith("}")):
      rows_read = np.arange(data.batch_size).reshape(note["of"], -1)[note["blocks"]].ravel()
      assert note["ids"] == data.batch(note["step"])["id"][rows_read].tolist(), note
      if note["step"] < 30:  # read ahead, further ones are too
        read[note["step"]].update(rows_read)
    assert all(read[step] == set(range(data.batch_size)) for step in range(30)), "every clip of every step"


def assert_told_alike(workdir, data_dir, tmp_path):
  """`vdt evaluate` and `vdt sample` of a run: in this process, each row on a device of its own, and in two, over all
  axes but data."""
  axes = {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}
  meshed = [f"--config.mesh.{axis}={count}" for axis, count in axes.items()]
  verbs = {"evaluate": "--json={}/loss.json", "sample": "--out={}"}
  for verb, out in verbs.items():
    said = [verb, f"--workdir={workdir}"]
    cli.main([*said, out.format(tmp_path / "one")])
    module = ["vdt.cli", *said, out.format(tmp_path / "two"), *meshed]
    codes, told = ends([python(module, data_dir, 4, names) for names in meeting(2)])
    assert codes == [0, 0], told
  mine, theirs = (json.loads((tmp_path / name / "loss.json").read_text())["tables"] for name in ("one", "two"))
  assert flat(mine) == pytest.approx(flat(theirs), rel=1e-5) and flat(mine)
  for number in range(8):
    mine, theirs = (read_clip(tmp_path / name / f"{number:04}.mp4", 8, (16, 16), 8.0) for name in ("one", "two"))
    assert np.abs(mine.astype(int) - theirs).max() <= 2, "a rounding, and what the file makes of it"


def test_rows_lie_where_the_mesh_has_them_whichever_host_has_which_device(tmp_path):
  turn_about = [0, 4, 1, 5, 2, 6, 3, 7]
  cases = {  # the mesh, the order of its devices: the blocks of the rows that each of two hosts has
    ((8, 1, 1, 1), (0, 1, 2, 3, 4, 5, 6, 7)): ([0, 1, 2, 3], [4, 5, 6, 7]),
    ((4, 2, 1, 1), (*turn_about,)): ([0, 2, 4, 6], [1, 3, 5, 7]),
    ((1, 1, 8, 1), (0, 1, 2, 3, 4, 5, 6, 7)): ([0], [0]),
    ((2, 2, 2, 1), (*turn_about,)): ([0, 1, 2, 3], [0, 1, 2, 3]),
    ((1, 2, 2, 2), (7, 6, 5, 4, 3, 2, 1, 0)): ([1], [0]),
  }
  command = [sys.executable, f"{ROOT}/tests/blocks.py", json.dumps([*cases]), str(tmp_path)]
  ours = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": devices(4)}
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  processes = [subprocess.Popen(command, env={**os.environ, **ours, **names}, **pipes) for names in meeting(2)]
  try:
    said = [process.communicate(timeout=200) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said
  for host in range(2):
    assert json.loads((tmp_path / f"{host}.json").read_text()) == [blocks[host] for blocks in cases.values()]


def test_a_process_that_stands_still_does_not_leave_the_others_waiting(tmp_path, data_dir):
  processes = start_together(tmp_path, data_dir, 2, 1, steps=1_000, hang_after=40.0)
  while last_step(tmp_path) < 6:
    assert all(process.poll() is None for process in processes), ends(processes)[1]
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGSTOP)
  try:
    _, said = processes[0].communicate(timeout=95)  # before it would miss the other's heartbeat, after 100 s
  finally:
    for process in processes:
      process.kill()
    processes[1].communicate()
  assert processes[0].returncode == 77 and "no step in 40 s" in said and "vdt/train.py" in said, said


@pytest.mark.parametrize("what", ["config.seed", "sources", "data set"])
def test_processes_that_disagree_say_on_what(tmp_path, data_dir, what):
  """On a field, on a file of the code, or on what lies at one name on each of two hosts, here in folders of theirs."""
  hosts, data = [tmp_path / "0", tmp_path / "1"], get_config().data
  data.data_dir = data_dir
  data.prepare()
  for host in hosts:
    host.mkdir()
    for name in ("vdt", "data_pipelines"):
      shutil.copytree(ROOT / name, host / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(data_dir) / "simulated", host / "data" / "simulated")
  match what:
    case "sources":
      source = hosts[1] / "vdt" / "writer.py"
      source.write_text(source.read_text() + "# a line\n")
    case "data set":
      (told,) = (hosts[1] / "data").rglob("sprites16/*/dataset_info.json")
      told.write_text(told.read_text().replace('"name"', '"name" '))
  names = [{**each, "PYTHONPATH": str(host), "PYTHONSAFEPATH": "1"} for each, host in zip(meeting(2), hosts)]
  seeds = (0, 1 if what == "config.seed" else 0)
  runs = zip(names, hosts, seeds)
  fields = {"data.data_dir": "data"}
  codes, said = ends(
    [start(tmp_path / "run", data_dir, 1, each, cwd=host, seed=seed, **fields) for each, host, seed in runs]
  )
  assert codes == [1, 1] and not (tmp_path / "run" / "config.json").exists(), said
  for each in said:
    assert f"disagree on their {what}" in each and "others than process 0 has: 1" in each


def test_processes_that_sample_are_asked_alike(tmp_path, data_dir):
  assert finish(tmp_path / "run", data_dir, steps=2, save_every=2)[0] == 0
  said = ["vdt.cli", "sample", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
  codes, told = ends([python([*said, f"--seed={number}"], data_dir, 1, each) for number, each in enumerate(meeting(2))])
  assert codes == [1, 1] and not list((tmp_path / "out").glob("*")), told
  assert all("disagree on their request" in each for each in told)


def test_hosts_of_a_pod_that_did_not_join_are_told_how(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)  # as the TPU's own runtime has it
  with pytest.raises(ValueError, match=r"4 hosts that did not join .* vdt launch, or set JAX_COORDINATOR_ADDRESS"):
    distributed.agree({"config": "1"})
