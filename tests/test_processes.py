"""Several processes are one run: real ones, with their own devices, over loopback."""

import signal
import time

import pytest
from short import finish, last_step, rows, start_together

from vdt.checkpoint import Checkpointer

FIELDS = {"steps": 20, "data.batch_size": 8, "mesh.fsdp": 2, "save_every": 10}


def ends(processes):
  """Exit codes and what each process said on stderr."""
  try:
    said = [process.communicate(timeout=400)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


def test_two_processes_are_one_and_stop_together(tmp_path, data_dir):
  code, _, err = finish(tmp_path / "one", data_dir, devices=8, **FIELDS)
  assert code == 0, err
  two = tmp_path / "two"
  processes = start_together(two, data_dir, 2, 4, **FIELDS)
  while last_step(two) < 4:
    assert all(process.poll() is None for process in processes), ends(processes)[1]
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)  # the one that does not write
  codes, said = ends(processes)
  assert codes == [77, 77], said
  with Checkpointer(str(two), create=False) as checkpoints:
    assert 4 <= checkpoints.newest < 20
  codes, said = ends(start_together(two, data_dir, 2, 4, **FIELDS))
  assert codes == [0, 0], said
  for mine, theirs in zip(rows(two), rows(tmp_path / "one"), strict=True):
    assert mine == pytest.approx(theirs, rel=1e-5)
  assert (two / "report.html").exists()


def test_processes_that_disagree_say_on_what(tmp_path, data_dir):
  codes, said = ends(start_together(tmp_path, data_dir, 2, 1, last={"seed": 1}, **{**FIELDS, "mesh.fsdp": 1}))
  assert codes == [1, 1] and not (tmp_path / "config.json").exists()
  for each in said:
    assert "disagree on their config" in each and "others than process 0 has: 1" in each
