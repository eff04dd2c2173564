"""A run that is told of captions, classes and speed: trained, resumed, sampled from, and asked for what it cannot."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file
from short import get_config
from test_cli import fails

from data_pipelines.reading import Reader, captioned
from data_pipelines.tokenizer import Pieces
from vdt import checkpoint, cli, command_line, conditions, evaluate, plan, sample
from vdt.captions import Frozen
from vdt.conditions import Conditions
from vdt.config import Mesh
from vdt.diffusion import RectifiedFlow, Sampler
from vdt.diffusion import given as plans
from vdt.evals import first, pixels
from vdt.models.transformer import Network
from vdt.request import Request, placed
from vdt.space import Space
from vdt.text_encoder import TextEncoder
from vdt.train import make_update, train

PARITY = Path(__file__).parent / "parity"
EXPERIMENT = f"--config={Path(__file__).parent}/short.py:told"
PROMPT = "a red ring moves fast to the left and turns clockwise"


def flags(data_dir, workdir, *more):
  return [f"--workdir={workdir}", *fields(data_dir, *more)]


def fields(data_dir, *more):
  changed = ("steps=4", "save_every=2", "mesh.data=1", f"data.data_dir={data_dir}", *more)
  return [EXPERIMENT, *(f"--config.{field}" for field in changed)]


def parsed(data_dir, *more):
  return command_line.parse(fields(data_dir, *more), cli.flags.FlagValues())[0]


def hugging_face(folder, seed=0):
  """A folder of a tiny T5 with random weights."""
  folder.mkdir(exist_ok=True)
  with np.load(PARITY / "text_t5.npz") as golden:
    arrays = {key[2:]: golden[key].astype(np.float32) + seed for key in golden.files if key.startswith("w/")}
    (folder / "config.json").write_text(str(golden["config"]))
  save_file(arrays, folder / "model.safetensors")
  options = dict(vocab_size=50, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
  texts = iter(["a red ring moves to the left", "a blue star"] * 20)
  sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_prefix=str(folder / "spiece"), **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A run of four steps, which was cut off after two."""
  workdir = tmp_path_factory.mktemp("told")
  cli.main(["train", *flags(data_dir, workdir, "steps=2")])
  kept = (workdir / conditions.KEPT).read_bytes()
  cli.main(["train", *flags(data_dir, workdir)])
  assert (workdir / conditions.KEPT).read_bytes() == kept
  return workdir


@pytest.fixture(scope="module")
def loaded(run, data_dir):
  """The config, what it is told, its network and weights made large enough to say something."""
  config = parsed(data_dir)
  _, network, params, _ = sample.load(config, str(run))
  keys = iter(jax.random.split(jax.random.key(0), 1000))
  params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), params)
  return config, conditions.of(config, str(run)), network, params


def test_each_condition_reaches_the_samples_and_is_nothing_where_it_is_dropped(loaded):
  config, told, network, params = loaded
  data = dataclasses.replace(config.data, split="test")
  rows = first(data, 2)
  clips, cond = pixels(rows["video"]), told.told(rows)
  assert set(cond) == {"label", "fps", "size", "text", "text_seen", "null"} and cond["text"].dtype == np.int32
  make = lambda cond, **fields: sample.generate(
    dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, **fields)), network, params, clips, cond
  )
  base = make(cond)
  np.testing.assert_array_equal(base, make(cond))
  others = {
    "label": {"label": (cond["label"] + 1) % 24},
    "fps": {"fps": cond["fps"] * 4},
    "size": {"size": cond["size"] * 2},
    "text": told.read([PROMPT, "a blue star moves slowly up and turns clockwise"]),
  }
  for name, other in others.items():
    assert np.abs(make(cond | other) - base).max() > 1e-3, name
    dropped = {"null": {**cond["null"], name: np.ones(2, bool)}}
    np.testing.assert_array_equal(make(cond | dropped), make(cond | dropped | other), err_msg=name)
  nothing = conditions.absent(config, 2)
  assert np.abs(make(nothing) - base).max() > 1e-3 and {*nothing} == {*cond}
  scales = dict(guidance_scale=2.0, guidance=(("text", 2.0), ("label", 2.0)))
  np.testing.assert_allclose(make(cond, **scales), make(cond, guidance_scale=2.0), atol=1e-5)
  apart = make(cond, guidance_scale=1.0, guidance=(("text", 4.0),))
  assert np.abs(apart - make(cond, guidance_scale=4.0)).max() > 1e-3
  negative = {"negative": {"text": told.read(["a green cross", "a green cross"])}}
  np.testing.assert_array_equal(make(cond | negative), base, err_msg="without guidance it does nothing")
  assert np.abs(make(cond | negative, guidance_scale=3.0) - make(cond, guidance_scale=3.0)).max() > 1e-3


def test_a_step_is_the_same_on_eight_devices_and_conditions_are_dropped_alone_and_together(data_dir, run):
  config = parsed(data_dir, "cond_drop=0.3", "micro_batches=2")
  told, batch = conditions.of(config, str(run)), config.data.batch(0)
  batch = {"video": batch["video"], "cond": told.arrays(batch), "stop": np.zeros(8, np.int32)}
  optimizer, losses = config.optimizer.build(), []
  for mesh in (Mesh(data=1), Mesh(data=1, fsdp=2, sequence=2, tensor=2)):
    config.mesh = mesh
    mesh, network = config.layout()
    with jax.set_mesh(mesh):
      state = checkpoint.new_state(network, optimizer, 0, jax.random.key(0))
      _, row = jax.jit(make_update(config, network, optimizer, jax.random.key(1)))(state, batch)
      losses.append([float(row["loss"]), float(row["grad_norm"])])
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
  from vdt.diffusion.guidance import drop

  names = ("label", "text")
  null = drop(jax.random.key(0), 20_000, 0.2, names)
  both, alone = np.asarray(null["label"] & null["text"]), [np.asarray(null[name]).mean() for name in names]
  assert both.mean() == pytest.approx(0.2 + 0.8 * 0.04, abs=0.01)
  assert alone == pytest.approx([1 - 0.8**2] * 2, abs=0.01)
  assert np.asarray(drop(jax.random.key(0), 20_000, 0.2, names[:1])["label"]).mean() == pytest.approx(0.2, abs=0.01)


def test_the_command_line_takes_any_combination(run, data_dir, tmp_path, capsys):
  a, b = (tmp_path / name for name in ("a.png", "b.png"))
  for path, grey in ((a, 40), (b, 200)):
    cv2.imwrite(str(path), np.full((16, 16, 3), grey, np.uint8))
  (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\na blue star moves up\n")
  options = ["--negative=green", "--guidance=text=2,label=1.5", "--label=red ring", "--fps=4", "--steps=1", "--seed=3"]
  options += [f"--prompts={tmp_path}/prompts.txt", "--count=2", f"--image={a}", f"--keyframes=3:{b}"]
  for out in ("one", "two"):
    cli.main(["sample", f"--workdir={run}", f"--out={tmp_path / out}", *options])
  said = json.loads((tmp_path / "one" / "samples.json").read_text())
  assert said["prompts"] == [PROMPT] * 2 + ["a blue star moves up"] * 2 and said["fps"] == 4 and said["count"] == 4
  for number in range(4):
    pair = [(tmp_path / out / f"{number:04d}.webp").read_bytes() for out in ("one", "two")]
    assert pair[0] == pair[1], "a video is a function of its seed and of what is asked"
  config = parsed(data_dir)
  videos, mask = placed(config, Request(image=str(a), keyframes=f"3:{b}"), 2)
  assert mask[0, :, 0, 0, 0].tolist() == [1, 0, 0, 1] and videos[1, 3].min() == 200 and videos[0, 0].max() == 40
  clip = tmp_path / "clip.npy"
  np.save(clip, np.full((4, 16, 16, 3), 90, np.uint8))
  hole = np.zeros((16, 16, 3), np.uint8)
  hole[4:8] = 255
  cv2.imwrite(str(tmp_path / "hole.png"), hole)
  _, mask = placed(config, Request(video=str(clip), mask=str(tmp_path / "hole.png")), 1)
  assert (mask[0, :, 4:8] == 0).all() and mask.sum() == 4 * 12 * 16
  _, mask = placed(config, Request(video=str(clip), given_frames=3), 1)
  assert mask[0, :, 0, 0, 0].tolist() == [1, 1, 1, 0]
  capsys.readouterr()
  few = ["--count=1", "--steps=1", f"--out={tmp_path / 'long'}"]
  cli.main(["sample", f"--workdir={run}", "--prompt=a blue star", *few])
  assert "beyond them is cut" not in capsys.readouterr().err
  cli.main(["sample", f"--workdir={run}", f"--prompt={'a purple hexagon ' * 9}", *few])
  assert "fills the 12 tokens that this model reads, and what is beyond them is cut" in capsys.readouterr().err


@pytest.mark.parametrize(
  "asked, message",
  [
    (["--guidance=sound=2"], "this model has label, fps, size, text"),
    (["--guidance=much"], "a number, or NAME=NUMBER"),
    (["--prompt=a", "--prompts=A"], "name one of them"),
    (["--prompts=nowhere.txt"], "--prompts nowhere.txt is not there"),
    (["--guidance=2,text=3,4"], "says a scale twice"),
    (["--fps=0"], "--fps 0.0: 0.01 to 1000"),
    (["--fps=inf"], "--fps inf: 0.01 to 1000"),
    (["--fps=4", "--task=prediction"], "held-out frames are of another rate"),
    (["--label=puce"], "unknown label 'puce'"),
    (["--keyframes=0"], "write NUMBER:FILE"),
    (["--keyframes=4:A"], "a video has the frames 0 to 3"),
    (["--keyframes=0:A", "--image=A"], "gives frame 0, which is given already"),
    (["--image=nowhere.png"], "--image nowhere.png is not there"),
    (["--keyframes=0:A,2:gone.png"], "--keyframes gone.png is not there"),
    (["--video=C", "--mask=B"], "b.png is light all over"),
    (["--image=A", "--task=prediction"], "leave out --given, --task"),
    (["--mask=A"], "--mask is of a --video"),
    (["--video=A", "--given_frames=4"], "has 1 frames, 4 are asked for"),
    (["--given_frames=2"], "the task generation takes no number of frames"),
    (["--negative=green", "--guidance=label=3"], "add --guidance text=3"),
    (["--image="], "--image is empty"),
    (["--image=A", "--given_frames=0"], "leave out --given, --task"),
    (["--video=C", "--mask=A"], "nothing is left to make"),
    (["--guidance=1e30", "--prompt=a"], "samples are not finite: lower --guidance"),
    (["--video=A", "--given_frames=0"], "--given_frames 0 of --video: at least 1"),
  ],
)
def test_what_cannot_be_asked_is_named(run, tmp_path, capsys, asked, message):
  cv2.imwrite(str(tmp_path / "a.png"), np.full((16, 16, 3), 40, np.uint8))
  cv2.imwrite(str(tmp_path / "b.png"), np.full((16, 16, 3), 200, np.uint8))
  np.save(tmp_path / "c.npy", np.full((4, 16, 16, 3), 90, np.uint8))
  names = {"A": "a.png", "B": "b.png", "C": "c.npy"}
  asked = [re.sub(r"\b[ABC]\b", lambda found: str(tmp_path / names[found[0]]), flag) for flag in asked]
  assert message in fails(capsys, "sample", f"--workdir={run}", f"--out={tmp_path}", "--count=1", *asked)


def test_no_file_of_the_users_is_replaced_and_an_error_changes_nothing(run, tmp_path, capsys):
  out, command = tmp_path / "out", ["sample", f"--workdir={run}", f"--out={tmp_path / 'out'}", "--steps=1"]
  contents = lambda: {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
  out.mkdir()
  (out / "2024.mp4").write_bytes(b"a holiday")
  cli.main([*command, "--count=2"])
  (out / "0002.mp4").write_bytes(b"another")
  before = contents()
  assert len(before) == 8 and before["2024.mp4"] == b"a holiday"
  assert "holds 0002.mp4, which no vdt sample made" in fails(capsys, *command, "--count=3")
  assert "0001.mp4 is given, and would be replaced" in fails(capsys, *command, "--count=1", f"--video={out}/0001.mp4")
  assert contents() == before
  (out / "0002.mp4").unlink()
  before.pop("0002.mp4")
  (out / ".0002.webp").mkdir()  # what cannot be written to
  assert "(Is a directory), what was there still is" in fails(capsys, *command, "--count=3", "--seed=1")
  assert contents() == before
  shutil.rmtree(out / ".0002.webp", ignore_errors=True)
  cli.main([*command, "--count=1", "--seed=1"])
  assert {*contents()} == {"2024.mp4", "0000.mp4", "0000.webp", "contact_sheet.png", "samples.json"}


def test_a_model_that_is_not_told_says_so_and_a_lost_tokenizer_is_missed(run, data_dir, tmp_path, capsys):
  config = dataclasses.replace(get_config(), steps=1)
  config.data.data_dir, config.mesh.data, config.tasks.completion = data_dir, 1, 0.0
  config.model.classes, config.model.given = 0, False
  plain = str(tmp_path / "plain")
  train(config, plain)
  request = Request(count=1, prompt="red")
  with pytest.raises(ValueError, match="trained without text"):
    sample.run(config, plain, str(tmp_path / "out"), request)
  np.save(tmp_path / "hole.npy", np.pad(np.full((1, 8, 8, 3), 255, np.uint8), ((0, 0), (4, 4), (4, 4), (0, 0))))
  np.save(tmp_path / "clip.npy", np.zeros((8, 16, 16, 3), np.uint8))
  holed = Request(count=1, video=str(tmp_path / "clip.npy"), mask=str(tmp_path / "hole.npy"))
  with pytest.raises(ValueError, match="not told where they are"):
    sample.run(config, plain, str(tmp_path / "out"), holed)
  with pytest.raises(ValueError, match=r"sampler.guidance of 'texts': this model has none"):
    dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, guidance=(("texts", 5.0),))).check()
  (run / conditions.KEPT).rename(run / "elsewhere")
  try:
    assert "text.model is missing" in fails(capsys, "sample", f"--workdir={run}", f"--out={tmp_path}")
  finally:
    (run / "elsewhere").rename(run / conditions.KEPT)
  wrong = {
    "model.encoder.vocabulary=300": "model.encoder.vocabulary is 300",
    "model.text=8": "model.text is 8, model.encoder is 12 wide",
    "text.length=1": "text.length is 1",
    "text.file=nowhere.model": "nowhere.model cannot be read",
  }
  for number, (field, message) in enumerate(wrong.items()):
    assert message in fails(capsys, "train", *flags(data_dir, tmp_path / str(number), field))


def test_captions_of_a_frozen_encoder_are_made_once_and_kept(data_dir, tmp_path, monkeypatch):
  """On a mesh of eight devices; a run goes on with the encoder that it began with."""
  folder = tmp_path / "t5"
  hugging_face(folder)
  config = get_config("told")
  config.text = Frozen(str(folder), length=10, folder=str(tmp_path / "captions"))
  config.model.encoder, config.model.text, config.data.data_dir = None, 24, data_dir
  config.steps, config.save_every, config.mesh = 2, 1, Mesh(data=4, fsdp=2)
  train(config, str(tmp_path / "run"))
  kept = sorted((tmp_path / "captions").rglob("*.npy"))
  again = Frozen(str(folder), length=10, folder=str(tmp_path / "captions"))
  captions = dict.fromkeys(config.data.captions())
  assert {*captions} <= {*again.known} and len(kept) >= 1
  monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("it is kept"))
  read = again.open((tmp_path / "run" / conditions.KEPT).read_bytes(), config.model)
  some = [*captions][:3]
  stored = read(some)
  monkeypatch.undo()
  other = Frozen(str(folder), length=10, folder=str(tmp_path / "others"))
  monkeypatch.setattr("vdt.captions.PART", 2)
  other.make(SimpleNamespace(captions=lambda: ["a red ring\na ring", "a blue star"]))
  assert {*other.known} == {"a red ring", "a ring", "a blue star"}, "each of a clip's captions"
  assert len([*(tmp_path / "others").rglob("*.json")]) == 2, "in parts, of which a killed process loses one"
  live = other.read(some)
  for name in ("text", "text_seen"):
    np.testing.assert_array_equal(stored[name], live[name])
  assert stored["text"].dtype == ml_dtypes.bfloat16 and sorted((tmp_path / "captions").rglob("*.npy")) == kept
  shutil.copytree(folder, tmp_path / "moved")
  config.text, config.steps = Frozen(str(tmp_path / "moved"), length=10, folder=str(tmp_path / "elsewhere")), 3
  train(config, str(tmp_path / "run"))
  there = Frozen(str(folder), length=10, folder=str(tmp_path / "elsewhere"))
  assert {*captions} <= {*there.known}, "a run that goes on elsewhere makes them before its first step"
  hugging_face(folder, seed=1)
  config.steps = 4
  with pytest.raises(ValueError, match="put the other back"):
    config.text = Frozen(str(folder), length=10, folder=str(tmp_path / "captions"))
    train(config, str(tmp_path / "run"))
  config.model.text, config.steps = 16, 3
  with pytest.raises(ValueError, match=r"makes tokens of 24 numbers, model\.text is 16"):
    train(config, str(tmp_path / "narrow"))


def test_a_start_that_saved_nothing_may_read_otherwise(data_dir, tmp_path):
  config, kept = parsed(data_dir), tmp_path / conditions.KEPT
  config.data.prepare()
  begin = lambda vocabulary: conditions.of(
    dataclasses.replace(config, text=Pieces(length=12, vocabulary=vocabulary)), str(tmp_path), new=True
  )
  with pytest.raises(ValueError, match=r"raise it, or lower text\.vocabulary"):
    begin(500)
  assert not kept.exists()
  begin(350)
  first = kept.read_bytes()
  begin(400)
  second = kept.read_bytes()
  (tmp_path / "checkpoints" / "1").mkdir(parents=True)
  begin(350)
  assert first != second == kept.read_bytes(), "a run that saved goes on as it began"


@dataclasses.dataclass
class Captioned(Reader):
  """Clips of one grey each, with two captions, of which training draws one."""

  split: str = "train"
  seed: int = 0
  batch_size: int = 4
  frames: int = 4
  size: tuple[int, int] = (4, 4)

  def read(self, positions):
    number = positions % 8
    text = np.array([f"first {each}\nsecond {each}" for each in number])
    videos = np.broadcast_to(np.uint8(10 * number)[:, None, None, None, None], (len(number), 4, 4, 4, 3))
    return {"video": videos, **captioned(text, self.split, 0, positions)}


@pytest.mark.parametrize("split", ["train", "test"])
def test_samples_are_told_the_caption_that_is_asked_for_and_what_is_swapped_is_the_next_clips(split):
  """A network that says what it reads: the number of a caption, and a hundred times whether it is the second one."""
  said = lambda text: int(text.split()[1]) / 1000 + (0.1 if text.startswith("second") else 0.0)
  echo = lambda params, x, t, cond, *_: jnp.broadcast_to(cond["text"][:, None, None, None, None], x.shape)
  config = get_config()
  config.model.classes, config.data = 0, Captioned()
  config.diffusion, config.sampler = RectifiedFlow(prediction="x0"), Sampler(steps=2)
  told = Conditions(config, lambda texts: {"text": np.array([said(text) for text in texts], np.float32)})
  runs = []
  evaluate.evaluate(
    config, Network(None, echo, echo, None), {}, {"probe": lambda run: runs.append(run) or {}}, Space(), told
  )
  made = lambda **how: runs[0].sample(6, split=split, **how)[:, 0]
  number = np.arange(6) / 1000
  np.testing.assert_allclose(made()[:, 0, 0, 0, 0], number, atol=1e-6)
  np.testing.assert_allclose(made(caption=1)[:, 0, 0, 0, 0], number + 0.1, atol=1e-6)
  np.testing.assert_allclose(made(caption=1, swapped=("caption",))[:, 0, 0, 0, 0], np.roll(number, -1) + 0.1, atol=1e-6)
  given = made(task="first_frame", swapped=("video",))
  np.testing.assert_allclose(given[:, 0, 0, 0, 0], np.roll(np.arange(6) * 10, -1) / 127.5 - 1, atol=1e-6)
  np.testing.assert_allclose(given[:, 1, 0, 0, 0], number, atol=1e-6)
  with pytest.raises(ValueError, match="caption 2 was asked for"):
    made(caption=2)

  echo_rate = lambda params, x, t, cond, *_: jnp.broadcast_to(cond["fps"][:, None, None, None, None] / 64, x.shape)
  config.model.classes, config.model.fps = 0, True
  probe = {"probe": lambda run: runs.append(run) or {}}
  evaluate.evaluate(config, Network(None, echo_rate, echo_rate, None), {}, probe, Space(), Conditions(config))
  for rate in (4.0, 16.0):
    found = runs[1].sample(6, split=split, fps=rate)
    np.testing.assert_allclose(found, np.full_like(found, rate / 64), atol=1e-6)


def test_a_picture_may_have_a_hole(tmp_path):
  np.save(tmp_path / "picture.npy", np.full((1, 16, 16, 3), 90, np.uint8))
  np.save(tmp_path / "hole.npy", np.pad(np.full((1, 8, 8, 3), 255, np.uint8), ((0, 0), (4, 4), (4, 4), (0, 0))))
  ask = Request(image=str(tmp_path / "picture.npy"), mask=str(tmp_path / "hole.npy"))
  videos, mask = placed(get_config(), ask, 2)
  assert mask.shape == (2, 8, 16, 16, 1) and (videos[:, 0] == 90).all()
  assert mask[:, 0].sum() == mask.sum() == 2 * (16 * 16 - 8 * 8) and not mask[:, 0, 4:12, 4:12].any()


def test_a_frame_is_given_with_all_that_its_patch_stands_for():
  whole = lambda mask: np.asarray(plans.whole_cells(jnp.asarray(mask), 2))
  mask = np.zeros((1, 6, 2, 2, 1))
  mask[:, [0, 1, 5]] = 1
  assert [number for number in (0, 1, 5) if not sample.whole_at(number, mask, whole)] == [5]


def test_the_plan_has_the_same_arrays(loaded):
  config, _, network, _ = loaded
  _, lowered = plan.lowered_step(config, Mesh(data=1).build(jax.devices()[:1]), network)
  assert "i32[8,12]" in lowered.as_text() or "8x12xi32" in lowered.as_text()
