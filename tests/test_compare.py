"""Comparisons of runs whose figures are known."""

import csv
import json

import pytest

from vdt import cli
from vdt.evaluate import CARDS, EVALUATION


def run(folder, seed=None, steps=100, flops=1.0, rate=1.0, shift=0.0, evals=("loss", "late"), depth=2):
  """A finished run: a loss that falls by the step, an eval every 50 steps, and one at the end alone."""
  folder.mkdir(parents=True)
  config = {"steps": steps, "seed": seed or 0, "model": {"depth": depth}, "parts": [{"limit": 100 * depth}]}
  content = {"origin": [], "config": config, "environment": {"sources": "a"}}
  (folder / "config.json").write_text(json.dumps(content))
  rows = []
  for step in range(10, steps + 1, 10):
    timings = {"step_time": rate, "flops_per_second": flops / rate, "utilisation": 0.5}
    rows.append({"step": step, "loss": 100.0 + shift + (seed or 0) - 0.1 * step, "grad_norm": 1.0, **timings})
    if step % 50 == 0 and "loss" in evals:
      held_out = {f"loss/generation/{name}": step + shift for name in ("t=0.25", "t=0.75", "mean")}
      rows.append({"step": step, **held_out, "loss/generation/real": 7.0})
  if "late" in evals:
    rows.append({"step": steps, "late/score/samples": 1.0 + shift, "late/score/memorised": 3.0 + (seed or 0)})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


def sweep(folder, arms, seeds=3, **fields):
  rows = []
  for name, more in arms.items():
    for seed in range(seeds):
      run(folder / f"{name}{seed}", seed, **{**fields, **more})
      rows.append({"name": name, "seed": seed, "folder": f"{name}{seed}", "identity": "", "changes": {}})
  (folder / "sweep.json").write_text(json.dumps({"arms": rows}))
  return folder


def effects(folder, *options):
  cli.main(["compare", str(folder), *options])
  with (folder / "effects.csv").open() as file:
    return {(row["metric"], row["arm"]): row for row in csv.DictReader(file)}, (folder / "compare.html").read_text()


def test_effects_and_page(tmp_path):
  """What the seeds share is no noise; controls that are the same everywhere are no metric; the page stands alone."""
  rows, page = effects(sweep(tmp_path / "s", {"base": {}, "more": {"shift": 0.5, "depth": 4}}))
  row = rows["train/loss", "more"]
  assert float(row["mean"]) == pytest.approx(0.5) and row["differs"] == "True" and row["pairs"] == "3"
  assert float(row["high"]) - float(row["low"]) < 1e-6
  assert float(rows["late/score/samples", "more"]["mean"]) == pytest.approx(0.5)
  assert not any("real" in metric or "memorised" in metric for metric, _ in rows)
  assert "<td>parts.0.limit</td><td>200</td><td>400</td>" in page
  assert "model.depth" in page and "t=0.75" in page and "data:image/svg+xml" in page and 'src="http' not in page
  assert "nan" not in page
  assert b"<svg" in (tmp_path / "s" / "effects_loss.svg").read_bytes()


def test_at_equal_cost(tmp_path):
  """An arm that costs twice as much a step is compared at its end with where the other has done as much."""
  folder = sweep(tmp_path / "s", {"dear": {"steps": 50, "flops": 2.0, "rate": 4.0}, "cheap": {}})
  rows, _ = effects(folder, "--align=flops")
  row = rows["loss/generation/mean", "cheap"]
  assert float(row["base"]) == 50 and float(row["value"]) == 100
  rows, page = effects(folder, "--align=hours")
  assert not any(metric.startswith("loss") for metric, _ in rows), "the dear arm has no eval in the cheap one's hours"
  assert "some of late, loss" in page
  assert float(rows["train/loss", "cheap"]["base"]) > float(rows["train/loss", "cheap"]["value"])
  rows, _ = effects(folder, "--align=share")
  row = rows["loss/generation/mean", "cheap"]
  assert (float(row["base"]), float(row["value"])) == (50, 100) and ("late/score/samples", "cheap") not in rows


def test_between_evals(tmp_path):
  folder = sweep(tmp_path / "s", {"dear": {"steps": 100, "flops": 0.75}, "cheap": {"steps": 100}})
  rows, page = effects(folder, "--align=flops")
  row = rows["loss/generation/mean", "cheap"]
  assert float(row["base"]) == 100 and float(row["value"]) == pytest.approx(75), "a line from 50 to 100"
  assert not any(metric.startswith("late") for metric, _ in rows) and "some of late" in page


def test_each_arm_with_its_own_base(tmp_path, capsys):
  """Arms of 64 clips with the plain one of 64, of 512 with that of 512; what no pattern fits is not compared."""
  shifts = {"plain-64": 0.0, "new-64": 1.0, "plain-512": 5.0, "new-512": 5.5, "odd": 9.0}
  folder = sweep(tmp_path / "s", {name: {"shift": shift} for name, shift in shifts.items()})
  rows, page = effects(folder, "--base=*-64:plain-64", "--base=*-512:plain-512")
  found = {arm: (row["against"], float(row["mean"])) for (metric, arm), row in rows.items() if metric == "train/loss"}
  assert found == {"new-64": ("plain-64", pytest.approx(1.0)), "new-512": ("plain-512", pytest.approx(0.5))}
  assert "new-64 against plain-64; new-512 against plain-512" in page and "odd" not in page
  first = (folder / "effects.md").read_text().splitlines()[0]
  assert first == "| metric | plain-64 | new-64 | plain-512 | new-512 |"
  with pytest.raises(SystemExit):
    effects(folder, "--base=*-128:plain-64")
  assert "no other arm is called like '*-128'; there are plain-64, new-64" in capsys.readouterr().err


def test_two_sweeps_stay_two(tmp_path):
  one, two = sweep(tmp_path / "one", {"base": {}}), sweep(tmp_path / "two", {"base": {"shift": 1.0}})
  cli.main(["compare", str(one), str(two), f"--out={tmp_path}"])
  text = (tmp_path / "effects.csv").read_text()
  assert "two/base" in text and ",3,True" in text


def test_runs_without_a_sweep(tmp_path):
  """Single runs have no interval; evals that one of them lacks are left out, and said to be."""
  one, two = run(tmp_path / "one"), run(tmp_path / "two", shift=1.0, evals=("loss",))
  cli.main(["compare", str(one), str(two), f"--out={tmp_path}"])
  page = (tmp_path / "compare.html").read_text()
  assert "some of late" in page and "(" not in (tmp_path / "effects.md").read_text().split("\n")[2]


@pytest.mark.parametrize(
  "options, message", [([], "there is one finished run"), (["--base=other"], "'other' is not among")]
)
def test_refusals(options, message, tmp_path, capsys):
  with pytest.raises(SystemExit):
    cli.main(["compare", str(run(tmp_path / "one")), *options])
  assert message in capsys.readouterr().err


def test_evaluations_are_compared_by_their_own_cards(tmp_path, capsys):
  folders = [run(tmp_path / name) for name in ("one", "two")]

  def evaluated(folder, value, **lines):
    card = {"sampler": "heun, 16 steps", "seed of samples": 0, **lines}
    found = {
      "step": 100,
      "seed": 0,
      "ema": None,
      "tables": {"fvd": {"FVD": {"samples": value}}},
      "cards": {"fvd": card},
    }
    (folder / EVALUATION).write_text(json.dumps(found))

  def compared(*options):
    try:
      cli.main(["compare", *map(str, folders), f"--out={tmp_path}", "--evaluated", *options])
    except SystemExit as ended:
      assert ended.code == 1
    return capsys.readouterr()

  evaluated(folders[0], 400.0)
  assert "there is one finished run" in compared().err
  evaluated(folders[1], 300.0)
  compared()
  table = csv.DictReader((tmp_path / "effects.csv").read_text().splitlines())
  rows = [row for row in table if not row["metric"].startswith("train")]
  assert [(row["metric"], row["base"], row["value"]) for row in rows] == [("fvd/FVD/samples", "400.0", "300.0")]
  evaluated(folders[1], 300.0, **{"seed of samples": 1})
  assert "fvd, seed of samples: 0 (one) against 1 (two)" in compared().err
  (folders[1] / EVALUATION).write_text("{")
  assert "evaluation.json is damaged" in compared().err


def test_figures_that_were_made_differently_are_not_ranked(tmp_path, capsys):
  """The line of the cards that differs is named; it may be allowed; equal cards, and none at all, are ranked."""
  folders = [run(tmp_path / name) for name in ("one", "two")]
  card = {"sampler": "heun, 16 steps", "frames": 8}
  write = lambda folder, **lines: (folder / CARDS).write_text(json.dumps({"fvd": {**card, **lines}}))

  def compared(*options):
    try:
      cli.main(["compare", *map(str, folders), f"--out={tmp_path}", *options])
    except SystemExit as ended:
      assert ended.code == 1
    return capsys.readouterr()

  write(folders[0])
  assert "cannot be ranked: fvd: only one has it, two has not; evaluate alike\n" in compared().err
  write(folders[1])
  assert "compare.html" in compared().out
  write(folders[1], sampler="euler, 4 steps")
  assert 'fvd, sampler: "heun, 16 steps" (one) against "euler, 4 steps" (two)' in (said := compared().err)
  assert "give --allow 'sampler'" in said
  assert "--allow 'nonsense' is no line of a card" in compared("--allow=nonsense").err
  assert "compare.html" in compared("--allow=sampler").out
