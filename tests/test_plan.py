"""`vdt plan`: what a config takes on a slice that is not there."""

import importlib.util
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from short import get_config

from vdt import cli, compiled, plan, topology
from vdt.config import Mesh

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/experiments/large.py"
pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(compiled, "CACHE", tmp_path / "cache")


def test_a_plan_adds_up_and_is_kept(tmp_path, capsys):
  flags = [f"{CONFIG}:tiny", "--config.mesh.fsdp=4", "--config.micro_batches=1"]
  said, kept = [], []
  for name in "ab":
    cli.main(["plan", *flags, f"--json={tmp_path / name}"])
    said.append(capsys.readouterr().out)
    kept.append({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/said.json")})
  assert said[0] == said[1] and len(kept[0]) == 2 and kept[0] == kept[1], "the second one compiles nothing"
  assert "1 x v5e:2x4, 8 chips" in said[0] and "MFU, estimated" in said[0]
  found = json.loads((tmp_path / "a").read_text())
  memory, train = found["memory"], found["train"]
  parts = ("params", "ema", "opt", "averages", "batch", "activations", "temporaries")
  assert sum(memory[part] for part in parts) == memory["peak"] < memory["chip"]
  assert memory["params"] < 4 * found["parameters"], "fsdp shards them"
  assert sum(train["bound"].values()) == pytest.approx(train["seconds"])
  assert found["hardware_flops"] == pytest.approx(sum(found["model_flops"].values()), rel=0.3)
  assert {each["kind"] for each in train["collectives"]} & {"all-gather", "all-reduce", "reduce-scatter"}
  assert found["chip_hours"] == pytest.approx(8 * 20 * found["step_seconds"] / 3600)


def test_a_plan_of_buckets_is_of_all_of_them(tmp_path, capsys):
  buckets = f"--config={ROOT / 'tests' / 'short.py'}:buckets"
  cli.main(["plan", buckets, "--topology=v5e:2x4", f"--json={tmp_path / 'plan'}"])
  said = capsys.readouterr().out
  assert "16 clips of 1 x 16 x 16" in said and "a step of all shapes" in said
  found = json.loads((tmp_path / "plan").read_text())
  (pictures,) = found["buckets"]
  assert pictures["share"] == pytest.approx(2 / 3, abs=0.01) and pictures["batch_size"] == 16
  clips = found["train"]
  for name, key in (("step_seconds", "seconds"), ("hardware_flops", "flops")):
    mean = (1 - pictures["share"]) * clips[key] + pictures["share"] * pictures[key]
    assert found[name] == pytest.approx(mean * (8 if key == "flops" else 1)), name
  assert pictures["seconds"] < clips["seconds"]


def test_over_two_slices_data_alone_crosses_the_slow_network(tmp_path, capsys):
  two = ["--slices=2", "--config.mesh.fsdp=4", "--config.micro_batches=1", "--config.data.batch_size=16"]
  cli.main(["plan", f"{CONFIG}:tiny", *two, f"--json={tmp_path / 'plan'}"])
  found = json.loads((tmp_path / "plan").read_text())
  assert "2 x v5e:2x4, 16 chips" in capsys.readouterr().out and found["mesh"]["data"] == 4
  kinds = {
    network: {each["kind"] for each in found["train"]["collectives"] if each["network"] == network}
    for network in ("ici", "dcn")
  }
  assert kinds["dcn"] and kinds["dcn"] <= {"send", "recv", "all-reduce"} and kinds["ici"], kinds
  mesh = Mesh(fsdp=4).build(topology.describe("v5e:2x4", 2).devices)
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  assert (slices == slices[:, :1, :1, :1]).all() and {*slices[:, 0, 0, 0]} == {0, 1}


def test_a_search_ranks_what_fits_and_says_how_to_have_it(tmp_path, capsys):
  cli.main(["plan", f"{CONFIG}:tiny", "--config.data.frames=4", "--search=2", f"--json={tmp_path / 'plans'}"])
  found = json.loads((tmp_path / "plans").read_text())
  said = capsys.readouterr().out.splitlines()
  assert len(found) == len(said) == 2 and found[0]["step_seconds"] <= found[1]["step_seconds"]
  for line, each in zip(said, found):
    for axis, size in each["mesh"].items():
      assert f"--config.mesh.{axis}={size}" in line


def test_what_does_not_fit_is_refused_with_its_numbers(capsys):
  flags = [
    "--config.mesh.fsdp=1",
    "--config.micro_batches=1",
    "--config.model.remat=none",
    "--config.data.batch_size=64",
  ]
  with pytest.raises(SystemExit) as ended:
    cli.main(["plan", f"{CONFIG}:2b", "--topology=v5e:2x4", *flags])
  assert ended.value.code == 1
  said = capsys.readouterr().err.strip().splitlines()[-1]
  for part in ("does not fit v5e:2x4", "GiB", "beside a state of", "mesh.fsdp", "model.remat", "micro_batches"):
    assert part in said, said


def test_a_peak_above_what_is_there_is_refused_and_so_is_what_was_before(capsys, tmp_path):
  flags = ["plan", f"{CONFIG}:tiny", "--config.mesh.fsdp=4", "--config.micro_batches=1"]
  cli.main(flags)
  capsys.readouterr()
  for path in (tmp_path / "cache").glob("*/said.json"):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peak": 17 * 2**30}))
  with pytest.raises(SystemExit):
    cli.main(flags)
  assert "a chip has 16.00 GiB, all of it needs 17.00, with a state of" in capsys.readouterr().err
  for path in (tmp_path / "cache").glob("*/said.json"):
    path.write_text(json.dumps({"said": "what the compiler said", "needs": 20 * 2**30, "there": 15.75 * 2**30}))
  with pytest.raises(SystemExit):
    cli.main(flags)
  assert "a chip has 15.75 GiB, its temporaries need 20.00, beside a state of" in capsys.readouterr().err
  for said in ("HLO temporaries (21.5G) exceeds available HBM (15.75G)", "memory space hbm. Used 21.5G of 15.75G hbm."):
    assert [*filter(None, compiled.OUT_OF_MEMORY.search(said).groups())] == ["21.5", "G", "15.75", "G"]


def test_what_the_compiler_makes_nothing_of_is_said():
  """Small arrays over data alone, on two slices (libtpu 0.0.52)."""
  config = runpy.run_path(str(ROOT / "experiments" / "large.py"))["get_config"]("tiny")
  config.data.batch_size = 16
  with pytest.raises(compiled.Refused, match=r"makes nothing of this \(UNIMPLEMENTED.*try another mesh, say mesh.fsdp"):
    plan.plan(config, "v5e:2x4", 2, sampling=False)


def test_options_of_the_compiler_reach_that_of_their_chip():
  config = get_config()
  config.data.frames, config.model.depth, config.model.pattern = 1, 1, (("space",),)
  asked = lambda **xla: (setattr(config, "xla", xla), plan.plan(config, "v5e:2x4", sampling=False))[1]
  assert asked(v5p={"xla_nonsense": True})["topology"] == "v5e:2x4", "another chip's do not"
  for options, said in (
    ({"v5e": {"xla_nonsense": True}}, "config.xla: No such compile option: 'xla_nonsense'"),
    ({"v5e": {"xla_enable_async_all_reduce": "purple"}}, "config.xla: Failed to parse 'purple'"),
    ({"v5e": "xla_nonsense=true"}, "options by chip, as"),
    ({"h100": {}}, "config.xla is by chip, one of v4, v5e, v5p, v6e, not 'h100'"),
  ):
    with pytest.raises(ValueError, match=said):
      asked(**options)


@pytest.mark.parametrize(
  "flags, said",
  [
    (["--topology=v5e:3x5"], "no slice v5e:3x5"),
    (["--topology=h100"], "unknown topology"),
    (["--topology=v5e:2x4", "--config.mesh.fsdp=16"], "needs 16 devices, there are 8"),
    (["--topology=v5e:2x4", "--config.data.batch_size=3"], "not a multiple"),
    (["--topology=v5e:2x2", "--slices=2", "--config.mesh.fsdp=8"], "does not divide over 2 slices"),
    (["--config.topology="], "--topology"),
    (["--search=0"], "search"),
    (["--json=/nowhere/plan.json"], "there is no folder /nowhere"),
    (["--json=/"], "is a folder"),
    (["--topology=v5e:2x4", "--config.mesh.fsdp=3"], "8 devices do not divide by fsdp x sequence x tensor = 3"),
    (["--topology=v5e:2x4", "--config.mesh.data=3"], "cannot be laid over the links of 8 devices"),
  ],
)
def test_what_cannot_be_planned_is_said(capsys, flags, said):
  with pytest.raises(SystemExit) as ended:
    cli.main(["plan", f"{CONFIG}:tiny", *flags])
  assert ended.value.code == 1 and said in capsys.readouterr().err


VARIANTS = {
  "ablations": ("full", "short", "tiny"),
  "autoencoder": ("full", "simulated", "real", "tiny"),
  "bouncing": ("full", "demo", "plans", "tiny"),
  "contacts": ("full", "occlusion", "tiny", "tiny_occlusion"),
  "emoji": ("full", "demo", "tiny"),
  "images": ("full", "images", "tiny", "scratch-64", "all-64", "time-64", "joint-64"),
  "large": ("xl", "2b", "tiny"),
  "protocols": ("ucf101", "kinetics600", "sky-timelapse", "face-forensics", "taichi", "tiny"),
  "published": (
    *("latte-s", "latte-b", "latte-l", "latte-xl", "latte-xl-ucf101", "latte-1", "vdt-s", "vdt-l"),
    *("tiny", "tiny-vdt", "tiny-latte-1"),
  ),
  "real_clips": ("full", "pixels", "latents", "tiny"),
  "sound_bouncing": ("full", "demo", "tiny"),
  "text_bouncing": ("full", "demo", "rates", "tiny"),
}


def test_every_variant_of_every_experiment_is_planned():
  """All that an experiment names where it is asked for one that it has not; of an arm, one number of clips."""
  assert set(VARIANTS) == {path.stem for path in (ROOT / "experiments").glob("*.py")}
  for name, variants in VARIANTS.items():
    with pytest.raises(ValueError) as refused:
      runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))["get_config"]("?")
    _, said = str(refused.value).split("choose ")
    named = {word.replace("ARM-CLIPS", "") for word in re.split(r",? or |, of |, |from ", said)} - {""}
    assert named == {variant.removesuffix("-64") for variant in variants}


@pytest.mark.slow
@pytest.mark.parametrize("name, variant", [(name, variant) for name in VARIANTS for variant in VARIANTS[name]])
def test_every_experiment_fits_the_slice_it_names(name, variant, capsys):
  cli.main(["plan", f"--config={ROOT}/experiments/{name}.py:{variant}"])
  assert "HBM a chip: peak" in capsys.readouterr().out
