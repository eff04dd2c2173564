"""Weights in and out: layouts, round trips, cards, and files that are not what they should be."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from xla import devices

from vdt import conditions, export, importer, parity, sample, weights, workdirs
from vdt.checkpoint import Checkpointer, State, shapes
from vdt.cli import main
from vdt.models import presets
from vdt.sharding import path_name

ROOT = Path(__file__).parents[1]
MODELS = {
  "latte": presets.latte("S", depth=4, width=32, heads=2, classes=3, dtype="float32"),
  "vdt": presets.vdt("S", depth=2, width=32, heads=2, dtype="float32"),
  "diffusers": presets.latte_text(depth=4, width=32, heads=2, text=24, dtype="float32"),
}
CELLS = (4, 4, 4)


def random_weights(model, seed=0):
  """Shapes by path, and random arrays of them."""
  like = shapes(jax.eval_shape(model.build(4, (8, 8), {}).init, jax.random.key(0)))
  rng = np.random.default_rng(seed)
  return like, {path: rng.standard_normal(shape).astype(np.float32) for path, shape in like.items()}


def experiment(folder, variant="tiny", file="experiments/published.py", **fields):
  """A run with random weights: an experiment file, its config, and its workdir."""
  origin = [f"--config={ROOT}/{file}:{variant}", f"--config.data.data_dir={folder}/data"]
  origin += [f"--config.{name}={value}" for name, value in fields.items()]
  from absl import flags

  from vdt.cli import parse

  config, origin = parse(origin, flags.FlagValues())
  like = jax.eval_shape(config.model.build(config.data.frames, config.data.size, {}).init, jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(like))))
  ema = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape), like)
  workdir = str(folder / variant)
  with workdirs.claim(workdir, config, origin), Checkpointer(workdir) as checkpoints:
    checkpoints.save(State(None, ema, None, jnp.int32(7)), {}, wait=True)
  return config, workdir, {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(ema)}


@pytest.mark.parametrize("name", parity.TINY)
def test_the_network_is_the_originals(name):
  ours, theirs = parity.golden(name)
  assert np.abs(theirs).max() > 0.5, "the golden arrays are some"
  np.testing.assert_allclose(ours, theirs, atol=3e-5)  # in float32 a t of 0.778 is 3e-5 of a timestep off


@pytest.mark.parametrize("layout", MODELS)
def test_what_goes_there_and_back_is_the_same_bit_for_bit(layout):
  model = MODELS[layout]
  like, ours = random_weights(model)
  computed, rows = weights.tables(layout, CELLS, model.width), weights.rows(layout, model, CELLS)
  theirs = {row.key: weights.there(row, ours, computed) for row in rows}
  assert {key: array.shape for key, array in theirs.items()} == {row.key: row.shape for row in rows}
  assert sum(array.size for key, array in theirs.items() if key not in computed) == sum(a.size for a in ours.values())
  again = weights.adopt(layout, model, CELLS, like, theirs, "there")
  for path, array in ours.items():
    np.testing.assert_array_equal(again[path], array)


@pytest.mark.parametrize("layout", MODELS)
def test_every_array_that_is_wrong_is_named(layout):
  like, ours = random_weights(MODELS[layout])
  rows, computed = weights.rows(layout, MODELS[layout], CELLS), weights.tables(layout, CELLS, 32)
  theirs = {row.key: weights.there(row, ours, computed) for row in rows}
  free = sorted(key for key in theirs if key not in computed)
  gone, renamed, shaped = free[0], free[len(free) // 2], free[-1]
  broken = {key: value for key, value in theirs.items() if key != gone}
  broken[f"{renamed}s"] = broken.pop(renamed)
  broken[shaped] = np.zeros((*broken[shaped].shape, 2), np.float32)
  broken["optimizer.step"] = np.zeros(3, np.float32)
  with pytest.raises(ValueError) as error:
    weights.adopt(layout, MODELS[layout], CELLS, like, broken, "FILE")
  for text in (
    f"{gone} is missing",
    f"{renamed} seems to be named {renamed}s",
    f"{shaped} is (",
    "optimizer.step is left over",
  ):
    assert text in str(error.value)
  for change, text in ((lambda a: a.astype(np.int32), "int32"), (lambda a: a * np.nan, "not finite")):
    with pytest.raises(ValueError, match=f"{gone}.*{text}"):
      weights.adopt(layout, MODELS[layout], CELLS, like, {**theirs, gone: change(theirs[gone])}, "FILE")
  if computed:
    with pytest.raises(ValueError, match=r"pos_embed is no table.*trained"):
      weights.adopt(layout, MODELS[layout], CELLS, like, {**theirs, "pos_embed": theirs["pos_embed"] + 0.1}, "FILE")


def test_what_a_layout_cannot_express_is_refused_by_name(tmp_path, capsys):
  from vdt.models import TransformerConfig

  model = TransformerConfig(depth=2, width=32, heads=2)
  for layout in MODELS:
    wrong = " ".join(weights.refuse(layout, model))
    for field in ("given True", "qk_norm True", "positions 'rope+sincos'", "discrete False"):
      assert f"model.{field}" in wrong
  assert not any(weights.refuse(layout, each) for layout, each in MODELS.items())
  assert "pattern" in weights.refuse("vdt", MODELS["latte"])[0]
  config, workdir, _ = experiment(tmp_path)
  with pytest.raises(ValueError, match=r"diffusers cannot express model.pattern.*model.classes 4.*safetensors"):
    export.run(config, workdir, "diffusers", None, None, None, "", False)
  assert not (Path(workdir) / "export" / "diffusers").exists()


def test_exports_have_a_card_replace_each_other_and_nothing_else(tmp_path, capsys):
  config, workdir, arrays = experiment(tmp_path)
  for format in ("safetensors", "orbax", "latte"):
    for _ in range(2):
      export.run(config, workdir, format, None, None, None, "apache-2.0", True)
    folder = Path(workdir) / "export" / format
    card = json.loads((folder / "card.json").read_text())
    assert (card["step"], card["licence"], card["parameters"]) == (
      7,
      "apache-2.0",
      sum(a.size for a in arrays.values()),
    )
    page = (folder / "README.md").read_text()
    assert 'license: "apache-2.0"' in page and "# published.py:tiny" in page and "data set | SimulatedClips" in page
    assert {*card["files"]} == {path.name for path in folder.iterdir()} and str(tmp_path) not in page.split(
      "## Config"
    )[0]
  assert "golden arrays" in capsys.readouterr().err
  assert {path.name for path in (Path(workdir) / "export").iterdir()} == {"safetensors", "orbax", "latte"}
  with safe_open(Path(workdir) / "export/safetensors/model.safetensors", "numpy") as file:
    assert {key.replace(".", "/") for key in file.keys()} == {*arrays}
    for path, array in arrays.items():
      np.testing.assert_array_equal(file.get_tensor(path.replace("/", ".")), array)
  mine = tmp_path / "mine"
  mine.mkdir()
  (mine / "thesis.txt").write_text("precious")
  with pytest.raises(ValueError, match="no export"):
    export.run(config, workdir, "latte", str(mine), None, None, "", False)
  assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
  folder = Path(workdir) / "export" / "latte"
  (folder / "notes.txt").write_text("precious")
  with pytest.raises(ValueError, match=r"holds notes\.txt beside an export"):
    export.run(config, workdir, "latte", None, None, None, "", False)
  (folder / "notes.txt").unlink()
  with (folder.parent / ".latte.lock").open("w") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process exports"):
      export.run(config, workdir, "latte", None, None, None, "", False)
  folder.rename(folder.parent / ".latte.old")  # as a kill between two renames leaves it
  with pytest.raises(OSError, match="cannot be written"), pytest.MonkeyPatch.context() as patch:
    patch.setitem(export.WRITERS, "latte", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    export.run(config, workdir, "latte", None, None, None, "", False)
  assert (folder / "model.safetensors").exists(), "what was there is there again"


WAYS = [("tiny", "latte"), ("tiny-vdt", "vdt"), ("tiny", "safetensors"), ("tiny", "orbax")]


@pytest.mark.parametrize("variant, format", WAYS)
def test_from_a_run_to_a_file_to_a_run(variant, format, tmp_path, capsys):
  """Bit for bit, and the second import changes nothing; the imported run samples, and training starts from it."""
  config, workdir, arrays = experiment(tmp_path, variant)
  export.run(config, workdir, format, None, None, None, "", False)
  origin = workdirs.read(workdir)["origin"]
  source, target = f"{workdir}/export/{format}", str(tmp_path / "imported")
  for said in ("parameters of", "already"):
    importer.run(config, origin, source, target, "", False)
    assert said in capsys.readouterr().out
  with Checkpointer(target, create=False) as checkpoints:
    found = checkpoints.arrays()
    assert found.keys() == {"ema", "step"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found["ema"]):
      np.testing.assert_array_equal(leaf, arrays[path_name(path)])
  imported = workdirs.read(target)["imported"]
  assert imported["layout"] == {"safetensors": "plain", "orbax": "plain"}.get(format, format)
  assert all(digest.startswith("sha256:") for digest in imported["files"].values()) and imported["files"]
  export.run(config, target, "safetensors", None, None, None, "", False)
  assert "not trained here" in (Path(target) / "export/safetensors/README.md").read_text()
  (Path(source) / "card.json").rename(tmp_path / "card.json")
  config.model.heads = 1  # which no shape shows
  if format != "safetensors":
    with pytest.raises(ValueError, match=r"another config \(model\.heads 2 -> 1"):
      importer.run(config, origin, source, target, "", False)
  (tmp_path / "card.json").rename(Path(source) / "card.json")
  with pytest.raises(ValueError, match=r"another model: model\.heads 2, here 1"):
    importer.run(config, origin, source, target, "", False)
  config.model.heads = 2
  with pytest.raises(SystemExit):
    main(["train", f"--workdir={target}"])
  assert "holds weights alone" in capsys.readouterr().err
  with pytest.raises(ValueError, match=r"does not hold this model|model\.depth 2, here 4"):
    config.model.depth *= 2
    importer.run(config, origin, source, str(tmp_path / "other"), "", False)
  assert not (tmp_path / "other").exists()


def test_torch_files(tmp_path, capsys):
  """The original's own checkpoint: its average is taken unless the other is asked for, wrappers' prefixes fall."""
  golden = {
    key[2:]: value for key, value in np.load(parity.GOLDEN / "latte_tiny_uncond.npz").items() if key[:2] == "w/"
  }
  for which, factor in (("", 1.5), ("ema", 1.5), ("model", 1.0)):
    theirs, layout, _, taken = importer.open_weights(parity.GOLDEN / "latte_tiny.pt", which)
    assert (layout, taken) == ("latte", which or "ema") and theirs.keys() == golden.keys()
    for key, array in golden.items():
      np.testing.assert_array_equal(theirs[key], np.float32(factor) * array)
  with pytest.raises(ValueError, match=r"holds model, ema.*--weights|holds ema, model.*--weights"):
    importer.open_weights(parity.GOLDEN / "latte_tiny.pt", "best")


def test_what_wraps_the_arrays_falls_off(tmp_path):
  """Prefixes one in another, a tensor beside the named dicts, keys that are numbers; also in safetensors."""
  arrays = {"blocks.0.attn.qkv.weight": np.ones((2, 2), np.float32), "x_embedder.proj.bias": np.ones(2, np.float32)}
  wrapped = {f"module._orig_mod.model.{key}": array for key, array in arrays.items()}
  content = {"state_dict": {**wrapped, 3: np.ones(1)}, "step": np.ones(1), 7: "x", "opt": {"lr": 1.0}}
  found, which = importer.chosen(content, "", tmp_path)
  assert (found.keys(), which) == (arrays.keys(), "state_dict")
  save_file(wrapped, tmp_path / "a.safetensors")
  opened = importer.open_weights(tmp_path / "a.safetensors", "")
  assert {*opened.arrays} == {*arrays} and opened.arrays.shapes() == {key: a.shape for key, a in arrays.items()}
  np.testing.assert_array_equal(opened.arrays["x_embedder.proj.bias"], 1)
  with pytest.raises(ValueError, match=r"--weights ema chooses of a \.pt"):
    importer.open_weights(tmp_path / "a.safetensors", "ema")
  save_file(wrapped, tmp_path / "b.safetensors")
  with pytest.raises(ValueError, match=r"a\.safetensors and .*b\.safetensors both hold module"):
    importer.open_weights(tmp_path, "")
  save_file({}, tmp_path / "b.safetensors")
  with pytest.raises(ValueError, match=r"b\.safetensors holds no arrays"):
    importer.open_weights(tmp_path / "b.safetensors", "")
  header = b'{"blocks.0.attn.qkv.weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
  (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
  eight = importer.open_weights(tmp_path / "b.safetensors", "")
  with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.weight cannot be read.*float32"):
    eight.arrays["blocks.0.attn.qkv.weight"]
  (tmp_path / "config.json").write_text("{")
  opened = opened._replace(layout="diffusers", files=[tmp_path / "a.safetensors"])
  with pytest.raises(ValueError, match=r"config\.json is damaged"):
    importer.compare(opened, experiment(tmp_path)[0])


def test_a_disagreement_is_an_error(tmp_path, monkeypatch):
  """Neither written nor said to be equal."""
  config, workdir, _ = experiment(tmp_path)
  monkeypatch.setattr(parity, "golden", lambda name: (np.zeros(3), np.full(3, 1e-3)))
  with pytest.raises(ValueError, match=r"(?s)disagree by more than 0\.0001: .*latte_tiny_class +0\.001 of 0\.001"):
    export.run(config, workdir, "latte", None, None, None, "", True)
  assert not (Path(workdir) / "export" / "latte").exists()


@pytest.mark.parametrize("format", ["latte", "orbax"])
def test_a_full_disk_is_one_line(format, tmp_path, capfd):
  """A process that may not write files beyond a size, as one whose disk is full."""
  _, workdir, _ = experiment(tmp_path)
  code = (
    "import resource, signal, sys\nfrom vdt import cli\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\ncli.main(sys.argv[1:])\n"
  )
  command = [sys.executable, "-c", code, "export", f"--workdir={workdir}", f"--format={format}", "--nocheck"]
  done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 1, done.stderr
  last = [line for line in done.stderr.splitlines() if "vdt export:" in line]  # other threads' tracebacks lie around it
  assert len(last) == 1 and "cannot be written" in last[0], done.stderr
  assert not any((Path(workdir) / "export").iterdir())


def test_what_latte_was_not_trained_with_is_refused(tmp_path):
  fields = {"diffusion.schedule": "cosine", "diffusion.prediction": "v", "diffusion.zero_terminal_snr": True}
  config, workdir, _ = experiment(tmp_path, **fields)
  with pytest.raises(ValueError) as error:
    export.run(config, workdir, "latte", None, None, None, "", False)
  for name in fields:
    assert name in str(error.value)


def test_files_that_are_damaged_or_of_another_kind(tmp_path):
  _, ours = random_weights(MODELS["latte"])
  rows, computed = weights.rows("latte", MODELS["latte"], CELLS), weights.tables("latte", CELLS, 32)
  theirs = {row.key: np.ascontiguousarray(weights.there(row, ours, computed)) for row in rows}
  save_file(theirs, tmp_path / "whole.safetensors")
  content = (tmp_path / "whole.safetensors").read_bytes()
  for length in (4, 200, len(content) // 2, len(content) - 1):
    (tmp_path / "cut.safetensors").write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read"):
      importer.open_weights(tmp_path / "cut.safetensors", "")
  save_file({"conv1.weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
  with pytest.raises(ValueError, match=r"named as in none of latte.*conv1\.weight"):
    importer.open_weights(tmp_path / "other.safetensors", "")
  for name, error in (("none.pt", FileNotFoundError), ("weights.h5", ValueError), ("", FileNotFoundError)):
    if name == "weights.h5":
      (tmp_path / name).write_bytes(b"x")
    folder = tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    with pytest.raises(error):
      importer.open_weights(tmp_path / name if name else folder, "")


def test_half_precision_comes_in_as_float32(tmp_path):
  """Latte's files are also passed on in float16 and bfloat16."""
  like, ours = random_weights(MODELS["latte"])
  rows, computed = weights.rows("latte", MODELS["latte"], CELLS), weights.tables("latte", CELLS, 32)
  for dtype in (np.float16, jnp.bfloat16):
    theirs = {row.key: np.ascontiguousarray(weights.there(row, ours, computed).astype(dtype)) for row in rows}
    save_file(theirs, tmp_path / "half.safetensors")
    held, layout, *_ = importer.open_weights(tmp_path / "half.safetensors", "")
    found = weights.adopt(layout, MODELS["latte"], CELLS, like, held, "half")
    for path, array in ours.items():
      np.testing.assert_array_equal(found[path], array.astype(dtype).astype(np.float32))


def test_heads_that_shapes_do_not_show_are_compared(tmp_path):
  config, _, _ = experiment(tmp_path)
  config.model = MODELS["diffusers"]
  theirs = {**parity.diffusers_config(config), "_class_name": "Latte"}
  opened = importer.Source({}, "diffusers", [tmp_path / "model.safetensors"])
  (tmp_path / "config.json").write_text(json.dumps(theirs))
  importer.compare(opened, config)
  (tmp_path / "config.json").write_text(json.dumps({**theirs, "num_attention_heads": 4}))
  with pytest.raises(ValueError, match=r"num_attention_heads 4, here 2"):
    importer.compare(opened, config)


def test_an_export_that_is_killed_leaves_the_one_before(tmp_path):
  """SIGKILL while it writes: what was there is whole, and the next one cleans up."""
  config, workdir, _ = experiment(tmp_path)
  export.run(config, workdir, "latte", None, None, None, "", False)
  folder = Path(workdir) / "export" / "latte"
  before = load_file(folder / "model.safetensors")
  code = (
    "import os, signal, sys\nfrom vdt import cli, weights\nthere, count = weights.there, [0]\n"
    "def dies(*args):\n  count[0] += 1\n  if count[0] == 20: os.kill(os.getpid(), signal.SIGKILL)\n"
    "  return there(*args)\n"
    f"weights.there = dies\ncli.main(['export', '--workdir={workdir}', '--format=latte', '--nocheck'])\n"
  )
  died = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert died.returncode == -signal.SIGKILL, died.stderr
  assert any(path.name.startswith(".latte") for path in folder.parent.iterdir()), "it died while it wrote"
  after = load_file(folder / "model.safetensors")
  assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
  export.run(config, workdir, "latte", None, None, None, "", False)
  assert [path.name for path in folder.parent.iterdir()] == ["latte"]


@pytest.mark.parametrize("variant", ["tiny", "tiny-latte-1", "told"])
def test_a_program_without_vdt_makes_the_same_frames(variant, tmp_path):
  """The exported sampler, run by the script beside it in a Python that sees jax and NumPy alone."""
  fields = {"file": "tests/short.py"} if variant == "told" else {}
  config, workdir, arrays = experiment(tmp_path, variant, **fields)
  if config.text:
    config.data.prepare()
    told = conditions.begun(config)
    (Path(workdir) / conditions.KEPT).write_bytes(config.text.make(config.data))
  export.run(config, workdir, "stablehlo", None, None, None, "", True)
  folder, alone = Path(workdir) / "export" / "stablehlo", tmp_path / "alone"
  alone.mkdir()
  site = Path(np.__file__).parents[1]
  needs = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "sentencepiece")
  for path in site.iterdir():
    if path.name.split("-")[0].split(".")[0] in needs:
      (alone / path.name).symlink_to(path)
  label = 1 if config.model.classes else -1
  command = [sys.executable, "-S", str(folder / "sample.py"), "3", "5", str(label)]
  command += ["--prompt=a red ring"] if config.text else []
  kept = {name: os.environ[name] for name in ("PATH", "JAX_PLATFORMS")}
  env = {**kept, "XLA_FLAGS": devices(8), "PYTHONPATH": str(alone)}
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  frames = np.load(tmp_path / "videos.npy")
  from vdt import video

  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  params = parity.tree(jax.eval_shape(network.init, jax.random.key(0)), arrays)
  clips = np.zeros((3, config.data.frames, 16, 16, 3), np.float32)
  cond = conditions.absent(config, 3)
  if label >= 0:
    cond |= {"label": np.full(3, label, np.int32)}
    cond["null"]["label"] = np.zeros(3, bool)
  if config.text:
    cond |= told.read(["a red ring"] * 3)
    cond["null"]["text"] = np.zeros(3, bool)
  made = sample.generate(config, network, params, clips, cond, seed=5)
  assert np.ptp(frames) > 100
  np.testing.assert_array_equal(frames, video.to_uint8(made))
  for wrong in (["0"], ["1", "0", "99"]):
    refused = subprocess.run([*command[:3], *wrong], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert refused.returncode == 1 and "at least 1 video, and a label below" in refused.stderr
  if not config.text:
    refused = subprocess.run([*command, "--prompt=a ring"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert refused.returncode == 1 and "this model reads no prompts" in refused.stderr


@pytest.mark.slow
def test_diffusers_loads_what_is_exported_and_agrees(tmp_path):
  """Its own model, from the folder, at every stage; and its weights are ours again when they come back."""
  pytest.importorskip("diffusers")
  config, workdir, arrays = experiment(tmp_path, "tiny-latte-1")
  export.run(config, workdir, "diffusers", None, None, None, "", False)
  folder = Path(workdir) / "export" / "diffusers"
  errors = parity.diffusers_errors(config, arrays, weights.Tensors(folder / "diffusion_pytorch_model.safetensors"))
  assert errors.keys() == {"embedding", "repeat 0", "out"}
  assert all(error < 1e-5 * max(size, 1) for error, size in errors.values()), errors
  from diffusers import DDIMScheduler, LatteTransformer3DModel

  model = LatteTransformer3DModel.from_pretrained(str(folder))
  model.save_pretrained(str(tmp_path / "theirs"))
  importer.run(config, workdirs.read(workdir)["origin"], str(tmp_path / "theirs"), str(tmp_path / "back"), "", True)
  with Checkpointer(str(tmp_path / "back"), create=False) as checkpoints:
    for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoints.arrays()["ema"]):
      np.testing.assert_array_equal(leaf, arrays[path_name(path)])
  theirs = DDIMScheduler.from_pretrained(str(folder), subfolder="scheduler").alphas_cumprod.numpy()
  np.testing.assert_allclose(theirs, config.diffusion.table[0][1:] ** 2, rtol=2e-4)
