"""Bad input is one clear line and a non-zero exit."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from vdt import checkpoint, cli, sharding
from vdt.config import Mesh

SHORT = str(Path(__file__).parent / "short.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A finished run of two steps."""
  workdir = tmp_path_factory.mktemp("run")
  cli.main(["train", *flags(data_dir, workdir)])
  return workdir


def flags(data_dir, workdir, **fields):
  fields = {"steps": 2, "save_every": 1, "mesh.data": 1, "data.data_dir": data_dir, **fields}
  return [f"--config={SHORT}", f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields.items())]


def fails(capsys, *argv):
  """The one line that a command ends with."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as stopped:
    cli.main([str(each) for each in argv])
  assert stopped.value.code == 1
  lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vdt ")]
  assert len(lines) == 1
  return lines[0]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"model.dept": 3}, "unknown config field: Field dept not found"),
    ({"model": 3}, "--config.model is no single value: change its fields, --config.model.NAME=VALUE"),
    ({"model.depth": "deep"}, "--config.model.depth=deep: invalid literal for int()"),
    ({"steps": 0}, "steps, log_every, save_every and keep must be at least 1"),
    ({"model.pattern": '(("spice",),)'}, "'spice'"),
    ({"model.pattern": "space"}, "model.pattern"),
    ({"model.heads": 3}, "model.width 16 is not a multiple of model.heads 3"),
    ({"model.classes": 2}, "labels, model.classes is 2"),
    ({"data.name": "nothing16"}, "unknown simulated data set 'nothing16'"),
    ({"data.size": "(8, 32)"}, "holds clips of (frames, height, width) (8, 16, 16), data asks for (8, 8, 32)"),
    ({"mesh.data": 3}, "data.batch_size 8 is not a multiple of mesh.data x mesh.fsdp = 3"),
    ({"mesh.tensor": 16}, "needs 16 devices, there are 8"),
    ({"mesh.fsdp": 0}, "an axis has at least 1 device"),
    ({"model.heads": 0}, "model.heads is 0: at least 1"),
    ({"model.patch": "(1, 0, 4)"}, "does not divide into patches (1, 0, 4)"),
    ({"diffusion.prediction": "velocty"}, "unknown prediction 'velocty'"),
    ({"sampler.method": "huen"}, "unknown sampler method 'huen'"),
    ({"sampler.steps": 0}, "sampler.steps is 0"),
    ({"tasks.generation": 0, "tasks.prediction": 0, "tasks.completion": 0}, "and one is more"),
    ({"optimizer.decay": 1}, "optimizer.decay 1 is less than steps 2"),
    ({"optimizer.lr": "nan"}, "lr and clip are above 0"),
    ({"micro_batches": 3}, "times micro_batches = 3"),
    ({"diffusion.shift": 0}, "shift is above 0"),
    ({"sampler.churn": -1}, "sampler.churn is -1.0"),
    ({"profile": "5"}, 'write it as "FIRST:LAST"'),
    ({"init_from": "/nowhere"}, "init_from /nowhere: no checkpoints at /nowhere"),
  ],
)
def test_a_bad_config_is_named(capsys, tmp_path, data_dir, fields, message):
  assert message in fails(capsys, "train", *flags(data_dir, tmp_path / "run", **fields))
  assert not (tmp_path / "run").exists()


def test_bad_flags(capsys, tmp_path):
  assert "unknown flag --workdirs; did you mean --workdir?" in fails(
    capsys, "train", f"--config={SHORT}", "--workdirs=x"
  )
  assert "no experiment at nowhere.py" in fails(capsys, "train", "--config=nowhere.py", f"--workdir={tmp_path}")
  assert fails(capsys, "plan") == "vdt plan: name an experiment with --config FILE.py[:VARIANT]"
  assert "or a run with --workdir DIR" in fails(capsys, "train")
  assert "--workdir is missing" in fails(capsys, "train", f"--config={SHORT}")
  assert "unexpected argument 'now'" in fails(capsys, "train", "now")
  assert "is no workdir of a run" in fails(capsys, "evaluate", f"--workdir={tmp_path}")
  with pytest.raises(SystemExit) as stopped:
    cli.main(["fly"])
  assert stopped.value.code == 1 and "vdt train" in capsys.readouterr().out
  with pytest.raises(SystemExit) as stopped:
    cli.main(["ingest", "--speed=3"])
  assert stopped.value.code == 1 and "the following arguments are required" in capsys.readouterr().err


def test_an_experiments_own_key_error_is_not_taken_for_an_unknown_field(capsys, tmp_path):
  (tmp_path / "broken.py").write_text("def get_config(variant=''):\n  return {}['nothing']\n")
  said = fails(capsys, "train", f"--config={tmp_path}/broken.py", f"--workdir={tmp_path}/run")
  assert "'nothing'" in said and "unknown config field" not in said


def test_a_missing_data_set_names_the_command_that_makes_it(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  experiment = Path(__file__).parents[1] / "experiments" / "real_clips.py"
  said = fails(capsys, "train", f"--config={experiment}:tiny", f"--workdir={tmp_path}/run")
  assert "no data set at data/real_clips: make it with `vdt ingest FOLDER --out data/real_clips`" in said


def test_an_unwritable_workdir(capsys, tmp_path, data_dir):
  (tmp_path / "file").write_text("")
  assert "cannot be written (Not a directory)" in fails(capsys, "train", *flags(data_dir, tmp_path / "file" / "run"))
  assert "cannot be written (No such file or directory)" in fails(capsys, "train", *flags(data_dir, "/proc/run"))


def test_a_run_of_another_config_is_refused(capsys, run, data_dir):
  said = fails(capsys, "train", *flags(data_dir, run, **{"model.depth": 4}))
  assert "holds a run of another config (model.depth 2 -> 4)" in said
  assert "is at step 2, past steps = 1" in fails(capsys, "train", *flags(data_dir, run, steps=1))


def test_a_checkpoint_of_another_model_is_refused(capsys, run, tmp_path, data_dir):
  other = tmp_path / "other"
  shutil.copytree(run / "checkpoints", other / "checkpoints")
  said = fails(capsys, "train", *flags(data_dir, other, **{"model.width": 32}))
  assert "checkpoint 2 is not of this model: " in said and "(16,) there and (32,) here" in said


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the reads that Orbax leaves behind
def test_a_corrupted_checkpoint_is_named_and_the_one_before_it_still_works(capsys, run, tmp_path, data_dir):
  damaged = tmp_path / "damaged"
  shutil.copytree(run, damaged)
  for path in sorted((damaged / "checkpoints" / "2").rglob("*")):
    if path.is_file() and path.stat().st_size > 1000 and "/d/" in str(path):
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  said = fails(capsys, "evaluate", f"--workdir={damaged}")
  assert f"checkpoint {damaged}/checkpoints/2 cannot be read" in said and "remove that folder" in said
  shutil.rmtree(damaged / "checkpoints" / "2")
  figures = lambda: (cli.main(["evaluate", f"--workdir={damaged}"]), (damaged / "evaluation.json").read_bytes())[1]
  assert figures() == figures(), "to the last digit, and cards"


def test_given_frames_of_the_wrong_size_or_number(capsys, run, tmp_path):
  np.save(tmp_path / "small.npy", np.zeros((2, 8, 8, 3), np.uint8))
  np.save(tmp_path / "float.npy", np.zeros((2, 16, 16, 3)))
  np.save(tmp_path / "few.npy", np.zeros((2, 16, 16, 3), np.uint8))
  sample = lambda *more: fails(capsys, "sample", f"--workdir={run}", f"--out={tmp_path / 'new'}", *more)
  assert "given frames are (8, 8), the model makes (16, 16)" in sample(f"--given={tmp_path}/small.npy")
  assert "float64 of shape (2, 16, 16, 3): given frames are uint8" in sample(f"--given={tmp_path}/float.npy")
  assert "takes 3 given frames, the file has 2" in sample(f"--given={tmp_path}/few.npy", "--given_frames=3")
  for task in ("--task=generation", "--task=single_frame"):
    assert "takes no number of frames" in sample(f"--given={tmp_path}/few.npy", task, "--given_frames=1")
  assert "8 given frames of 8" in sample("--task=prediction", "--given_frames=8")
  assert "unknown task 'predict'" in sample("--task=predict")
  assert "unknown label 'pink'" in sample("--label=pink")
  assert "no checkpoint of step 7" in sample("--step=7")
  assert not (tmp_path / "new").exists()


def test_frames_for_a_whole_clip_stay_at_their_times_and_fewer_fill_what_is_given():
  from short import get_config

  from vdt.request import Request, place

  whole = np.repeat(np.arange(8, dtype=np.uint8), 16 * 16 * 3).reshape(8, 16, 16, 3)
  for frames, expected in ((whole, [0, 1, 0, 0, 0, 0, 6, 7]), (whole[:4], [0, 1, 0, 0, 0, 0, 2, 3])):
    videos, mask = place(frames, get_config(), "interpolation", Request(given_frames=4), 2)
    assert videos[1, :, 0, 0, 0].tolist() == expected
    assert mask[1, :, 0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]


def test_samples_are_a_function_of_seed_and_number_and_open_as_videos(run, tmp_path):
  from data_pipelines.video import read_clip

  np.save(tmp_path / "given.npy", np.full((2, 16, 16, 3), 200, np.uint8))
  for name, count in (("a", 2), ("b", 3)):
    cli.main(
      ["sample", f"--workdir={run}", f"--out={tmp_path}/{name}", f"--count={count}", f"--given={tmp_path}/given.npy"]
    )
  for file in ("0000.mp4", "0001.mp4", "0001.webp"):
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
  assert (tmp_path / "a" / "0000.mp4").read_bytes() != (tmp_path / "a" / "0001.mp4").read_bytes()
  clip = read_clip(tmp_path / "b" / "0002.mp4", frames=8, size=(16, 16), fps=8.0)
  assert clip.shape == (8, 16, 16, 3) and np.abs(clip[:2].astype(int) - 200).mean() < 4
  assert (tmp_path / "a" / "contact_sheet.png").exists()


def test_fine_tuning_reports_what_matched(capsys, run, tmp_path, data_dir):
  cli.main(
    [
      "train",
      *flags(
        data_dir, tmp_path, init_from=run, **{"model.pattern": '(("space",), ("time",), ("joint",))', "model.depth": 3}
      ),
    ]
  )
  said = capsys.readouterr().err
  assert f"init_from {run} step 2" in said and "pattern/blocks/2/mlp/body/up/kernel" in said and "unused: none" in said


def test_weights_that_match_come_over_a_mesh_and_the_others_stay(run):
  with checkpoint.Checkpointer(str(run), create=False) as checkpoints:
    saved = checkpoints.arrays()["ema"]
  mesh = Mesh(data=1, fsdp=8).build()
  shaped = {**saved, "embed": {**saved["embed"], "bias": np.zeros(3, np.float32)}, "more": np.zeros(8, np.float32)}
  placed = sharding.place(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shaped), mesh)
  params = jax.tree.map(lambda x, where: jax.device_put(np.full_like(x, 7), where.sharding), shaped, placed)
  found, report = checkpoint.init_from(params, str(run))
  expected = {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
  assert "other shape: embed/bias" in report and "missing: more" in report
  for (path, mine), old in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(params), strict=True):
    name = sharding.path_name(path)
    theirs = old if name in ("more", "embed/bias") else expected[name]
    np.testing.assert_array_equal(mine, theirs, name)
    assert mine.sharding == old.sharding
  kernel = found["pattern"]["blocks"]["0"]["mlp"]["body"]["up"]["kernel"]
  assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_a_workdir_finds_its_experiment_again_and_refuses_a_changed_one(capsys, run, tmp_path, data_dir):
  moved = tmp_path / "moved"
  shutil.copytree(run, moved)
  text = (moved / "config.json").read_text()
  (moved / "config.json").write_text(text.replace('"shift": 1.0', '"shift": 3.0'))
  for command in ("evaluate", "sample"):
    assert "diffusion.shift 3.0 -> 1.0" in fails(capsys, command, f"--workdir={moved}")
  assert "diffusion.prediction 'velocity' -> 'x0'" in fails(
    capsys, "sample", *flags(data_dir, run, **{"diffusion.prediction": "x0"})
  )
