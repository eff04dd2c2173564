"""Where a run's time went, over its attempts."""

import json

import pytest

from vdt import ledger

FIRST = [
  {"start": 100.0, "step": 0, "chips": 8, "flops": 60.0, "peak": 100.0},
  {"at": 130.0, "step": 1, "data": 2.0, "save": 0.0, "eval": 0.0},  # 28 s of start
  {"at": 150.0, "step": 11, "data": 1.0, "save": 4.0, "eval": 0.0},  # 15 s for 10 steps
  {"at": 160.0, "step": 21, "data": 0.0, "save": 0.0, "eval": 5.0},  # 5 s for 10 steps, of which 6 are lost
]
SECOND = [
  {"start": 1000.0, "step": 15, "chips": 16, "flops": 60.0, "peak": 200.0},
  {"at": 1010.0, "step": 16, "data": 0.0, "save": 0.0, "eval": 0.0},
  {"at": 1020.0, "step": 26, "data": 0.0, "save": 0.0, "eval": 0.0},
]


def test_a_ledger_adds_up_over_attempts():
  found = ledger.summary([FIRST, SECOND])
  assert found == pytest.approx(
    {
      "start": 28 + 10,
      "step": 15 + 0.4 * 5 + 10,
      "redone": 0.6 * 5,
      "data": 3.0,
      "save": 4.0,
      "eval": 5.0,
      "goodput": 27 / 80,
      "step_time": 27 / 24,
      "utilisation": 60 * 24 / (100 * 17 + 200 * 10),
      "chip_hours": (8 * 60 + 16 * 20) / 3600,
      "attempts": 2,
    }
  )
  assert sum(found[name] for name in ("start", "step", "redone", *ledger.BESIDE)) == 60 + 20, "nothing is left over"


def test_lines_outlive_a_torn_one(tmp_path):
  path = tmp_path / ledger.NAME
  path.write_text("".join(json.dumps(line) + "\n" for line in FIRST) + '{"at": 17')
  assert ledger.read(str(tmp_path)) == [FIRST]
  kept = ledger.Ledger(str(tmp_path), 15, 16, 60.0, 200.0)
  kept.mark(16, dict.fromkeys(ledger.BESIDE, 1.0))
  first, second = ledger.read(str(tmp_path))
  assert first == FIRST and [line["step"] for line in second] == [15, 16]
  assert kept.summary() == ledger.summary([first, second])
