"""Sound: kept beside clips, heard by a model where it happens, and muxed into what is sampled."""

import dataclasses
import fractions
import json
import wave
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short import get_config
from test_cli import fails

from data_pipelines import ingest, sound
from data_pipelines.clips import Clips, SimulatedClips
from data_pipelines.mixture import Mixture
from data_pipelines.sound import RATE, LogMel, cut, impacts, track
from vdt import cli
from vdt.config import Mesh
from vdt.evals import Run, pixels
from vdt.evals import impacts as judge
from vdt.evals.statistics import wilson
from vdt.models import TransformerConfig

EXPERIMENT = f"--config={Path(__file__).parent}/short.py:hearing"


def written(path, samples, rate=RATE, channels=1):
  with wave.open(str(path), "wb") as file:
    file.setnchannels(channels), file.setsampwidth(2), file.setframerate(rate)
    file.writeframes(np.repeat(samples[:, None], channels, 1).astype(np.int16).tobytes())
  return path


def film(path, seconds, tone, late=0.0, video=True):
  """A grey film at 8 frames a second, with a tone (Hz) that begins `late` seconds after its first picture."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=8) if video else None
    heard = container.add_stream("aac", rate=44_100, layout="stereo")
    if video:
      stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
      for index in range(8 * seconds):
        picture = np.full((48, 48, 3), 20 * index % 200, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
      container.mux(stream.encode())
    time = np.arange(int((seconds - late) * 44_100)) / 44_100
    both = np.repeat(0.5 * np.sin(2 * np.pi * tone * time)[None].astype(np.float32), 2, 0)
    frame = av.AudioFrame.from_ndarray(both, "fltp", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = 44_100, round(late * 44_100), fractions.Fraction(1, 44_100)
    container.mux(heard.encode(frame))
    container.mux(heard.encode())
  return path


def drawn(network, *shapes):
  """Weights large enough to say something, and arrays of these shapes."""
  rng, normal = np.random.default_rng(0), lambda shape: rng.standard_normal(shape).astype(np.float32)
  params = jax.tree.map(lambda x: np.asarray(x) + 0.3 * normal(x.shape), jax.jit(network.init)(jax.random.key(0)))
  return params, [jnp.asarray(normal(shape)) for shape in shapes]


def pitch(samples):
  return np.fft.rfftfreq(len(samples), 1 / RATE)[np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax()]


def test_impacts_are_heard_in_their_frame_and_the_features_say_so():
  contact = np.zeros((8, 2), bool)
  contact[2, 0] = contact[5:7, 1] = True  # the second rests for a frame
  made = impacts(contact, 8.0, np.array([500.0, 900.0]))
  assert made.dtype == np.int16 and made.shape == (RATE,) and (np.abs(made) < 2**15).all()
  assert judge.impacts(made, 8).tolist() == [1.5, 4.5]
  assert pitch(made[3000:4000]) == pytest.approx(500, abs=20) and pitch(made[9000:10000]) == pytest.approx(900, abs=20)
  heard = LogMel()(made[None], 8)
  assert heard.shape == (1, 8, 64) and heard.dtype == np.float32
  assert heard[0].max(-1).argsort()[-2:].tolist() in ([1, 4], [4, 1]) and heard[0, [0, 7]].max() < -1.2
  tones = [np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE) for hertz in (200, 1000, 5000)]
  bands = LogMel(windows=1)(np.stack([sound.stored(0.5 * tone) for tone in tones]), 8).mean(1).argmax(-1)
  assert (np.diff(bands) > 0).all(), "higher tones are in higher bands"


def test_tracks_begin_with_the_pictures_and_what_does_not_decode_is_silent(tmp_path):
  noise = np.random.default_rng(0).integers(-(2**14), 2**14, 4000)
  np.testing.assert_array_equal(track(written(tmp_path / "a.wav", noise)), noise)
  both = track(written(tmp_path / "b.wav", noise, 8000, channels=2))
  assert both.dtype == np.int16 and len(both) == pytest.approx(8000, abs=64)
  late = track(film(tmp_path / "late.mkv", 2, 1000, late=0.5))
  assert np.abs(late[: RATE // 2 - 1500]).max() < 500 and len(late) == pytest.approx(2 * RATE, abs=3000)
  assert pitch(late[RATE : RATE + 4000]) == pytest.approx(1000, abs=10)
  assert len(track(film(tmp_path / "alone.m4a", 1, 300, video=False))) == pytest.approx(RATE, abs=2500)
  whole = film(tmp_path / "whole.mkv", 2, 500).read_bytes()
  (tmp_path / "half.mkv").write_bytes(whole[: len(whole) // 2])
  assert 0 < len(track(tmp_path / "half.mkv")) <= 2 * RATE + 3000
  np.testing.assert_array_equal(cut(np.arange(5, dtype=np.int16), 3 / RATE, 4), [3, 4, 0, 0])
  pieces = [(0.0, np.ones(2)), (None, np.full(2, 2)), (4 / RATE + 0.001, np.full(1, 3)), (0.1, np.full(1, 4))]
  joined = sound.joined(pieces, 1 / RATE)
  assert joined[:5].tolist() == [1, 2, 2, 3, 0], "times that are rounded tear nothing"
  assert np.flatnonzero(joined == 4).tolist() == [RATE // 10 - 1] and len(joined) == RATE // 10
  back = sound.joined([(0.0, np.ones(RATE)), (0.2, np.full(RATE, 2)), (1.2, np.full(RATE, 3))], 0.0)
  assert [len(back), *back[[0, RATE, 2 * RATE]]] == [3 * RATE, 1, 2, 3], "as in films that are joined"
  leap = sound.joined([(0.0, np.ones(RATE)), (90_000.0, np.full(RATE, 2)), (90_002.0, np.full(RATE, 3))], 0.0)
  assert [len(leap), *leap[[0, RATE, 2 * RATE, 3 * RATE]]] == [4 * RATE, 1, 2, 0, 3], "one second is a pause"
  far = sound.joined([(1e6, np.ones(RATE)), (1e6 + 1, np.full(RATE, 2))], 0.0)
  assert [len(far), *far[[0, RATE]]] == [2 * RATE, 1, 2], "so is the first time"
  (tmp_path / "bad.wav").write_bytes(b"nothing of the kind")
  with pytest.raises(ValueError, match="not a readable sound"):
    track(tmp_path / "bad.wav")


def test_ingestion_keeps_the_sound_of_each_clip(tmp_path):
  folder = tmp_path / "films"
  folder.mkdir()
  film(folder / "low.mp4", 4, 400), film(folder / "high.mkv", 4, 2000, late=1.0)
  cli.main(
    ["ingest", str(folder), f"--out={tmp_path / 'mine'}", "--size=16", "--frames=8", "--sound", "--test-fraction=0"]
  )
  data = Clips("mine", frames=4, size=(16, 16), batch_size=8, data_dir=str(tmp_path))
  assert data.batch(0)["sound"].shape == (8, RATE // 2)
  assert "sound" not in Clips("mine", 4, (16, 16), 8, data_dir=str(tmp_path), strides=(1, 2)).batch(0)
  whole = Clips("mine", frames=8, size=(16, 16), batch_size=8, data_dir=str(tmp_path)).batch(0)
  heard = dict(zip(whole["id"].tolist(), whole["sound"]))
  assert len(heard) == 8 and np.abs(heard["high.mkv#0"][: RATE - 3000]).max() < 500, "it begins after a second"
  for name, each in heard.items():
    if name != "high.mkv#0":
      assert pitch(each[2000:-2000]) == pytest.approx(400 if name.startswith("low") else 2000, abs=10), name
  slow = ["--fps=4", "--frames=4", "--size=16", "--sound", "--test-fraction=0"]
  cli.main(["ingest", str(folder), f"--out={tmp_path / 'slow'}", *slow])
  unlike = Mixture((data, dataclasses.replace(data, name="slow")), batch_size=8)
  with pytest.raises(ValueError, match=r"sound is \(8000,\) and \(16000,\): ingest its parts alike"):
    unlike.prepare()
  manifest = json.loads((tmp_path / "mine" / "manifest.json").read_text())
  assert manifest["settings"]["sound"] is True
  assert "sound" not in ingest.Settings().recipe(), "sets that were made without are what they were"


@pytest.mark.parametrize("patch_frames", [1, 2])
def test_a_frame_hears_what_is_next_to_it_and_nothing_else(patch_frames):
  model = TransformerConfig(
    1, 16, 2, patch=(patch_frames, 4, 4), pattern=(("space", "sound"),), sound=6, dtype="float32"
  )
  frames = 6 * patch_frames
  network = model.build(frames, (8, 8), {})
  params, (x, heard) = drawn(network, (1, frames, 8, 8, 3), (1, frames, 6))
  cond = {"given": jnp.zeros((1, frames, 8, 8, 1)), "sound": heard}
  say = jax.jit(lambda cond: network.apply(params, x, jnp.full((1, frames), 0.5), cond))
  own = say(cond)
  for place in (0, 3, 5):
    other = heard + (np.arange(frames) == place * patch_frames)[None, :, None].astype(np.float32)
    changed = np.abs(np.asarray(say(cond | {"sound": other}) - own)).max((0, 2, 3, 4)).reshape(6, -1).max(1)
    near = np.abs(np.arange(6) - place) <= 1
    assert (changed[near] > 1e-4).all() and (changed[~near] == 0).all()
  null = {"null": {"sound": jnp.ones(1, bool)}}
  silent = say(cond | null)
  np.testing.assert_array_equal(silent, say(cond | null | {"sound": 5 * heard}))
  np.testing.assert_allclose(silent, say({"given": cond["given"]}), atol=1e-5)
  assert np.abs(silent - own).max() > 1e-3


def test_hearing_is_the_same_on_eight_devices_also_with_frames_that_do_not_divide():
  model = TransformerConfig(1, 16, 2, patch=(1, 4, 4), pattern=(("space", "time", "sound"),), sound=6, dtype="float32")
  made = []
  for mesh in (Mesh(data=1), Mesh(data=2, sequence=2, tensor=2)):
    mesh = mesh.build()
    with jax.set_mesh(mesh):
      network = model.build(5, (8, 8), dict(mesh.shape))
      params, (x, heard) = drawn(network, (2, 5, 8, 8, 3), (2, 5, 6))
      cond = {"given": jnp.zeros((2, 5, 8, 8, 1)), "sound": heard}
      made.append(jax.device_get(jax.jit(network.apply)(params, x, jnp.full((2, 5), 0.5), cond)))
  np.testing.assert_allclose(made[1], made[0], atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  workdir = tmp_path_factory.mktemp("hearing")
  changed = ("steps=2", "save_every=2", "mesh.data=1", f"data.data_dir={data_dir}")
  cli.main(["train", f"--workdir={workdir}", EXPERIMENT, *(f"--config.{field}" for field in changed)])
  return workdir


def test_samples_hear_a_file_and_carry_its_sound(run, tmp_path, capsys):
  tone = sound.stored(0.5 * np.sin(2 * np.pi * 700 * np.arange(RATE) / RATE))
  written(tmp_path / "tone.wav", tone)
  asked = ["sample", f"--workdir={run}", "--count=2", f"--audio={tmp_path / 'tone.wav'}"]
  cli.main([*asked, f"--out={tmp_path / 'out'}"])
  heard = track(tmp_path / "out" / "0001.mp4")
  assert pitch(heard[2000:6000]) == pytest.approx(700, abs=10) and len(heard) == pytest.approx(RATE // 2, abs=2500)
  with av.open(str(tmp_path / "out" / "0001.mp4")) as container:
    assert len([*container.decode(video=0)]) == 4
  assert json.loads((tmp_path / "out" / "samples.json").read_text())["audio"].endswith("tone.wav")
  cli.main([*asked, f"--out={tmp_path / 'both'}", "--prompt=a red ball", "--guidance=text=2,sound=3"])
  said = json.loads((tmp_path / "both" / "samples.json").read_text())
  assert said["prompts"] == ["a red ball"] * 2 and said["audio"].endswith("tone.wav")
  assert len(track(tmp_path / "both" / "0001.mp4")) == len(heard)
  (tmp_path / "bad.wav").write_bytes(b"nothing of the kind")
  film(tmp_path / "mute.mp4", 1, 300)
  with av.open(str(tmp_path / "mute.mp4")) as source, av.open(str(tmp_path / "silent.mp4"), "w") as target:
    stream = target.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(source.streams.video[0]):
      if packet.dts is not None:
        packet.stream = stream
        target.mux(packet)
  for name, message in (("bad", "not a readable sound"), ("gone", "gone.wav"), ("silent.mp4", "has no sound track")):
    path = tmp_path / (name if "." in name else f"{name}.wav")
    assert message in fails(capsys, "sample", f"--workdir={run}", f"--out={tmp_path / 'no'}", f"--audio={path}")


def test_a_model_that_hears_needs_sound_and_says_so(data_dir, tmp_path, capsys):
  wrong = {
    "data.name=bouncing16": "batches of SimulatedClips bouncing16 have no sound",
    "model.sound=9": "4 bands x 2 windows = 8 numbers a frame, model.sound is 9",
    "sound.bands=0": "sound.bands is 0",
    "model.pattern=(('space','text'),)": "model.sound is 8, without sound in model.pattern",
  }
  for field, message in wrong.items():
    flags = (EXPERIMENT, f"--config.{field}", f"--config.data.data_dir={data_dir}", "--config.mesh.data=1")
    assert message in fails(capsys, "train", f"--workdir={tmp_path / 'no'}", *flags)
  config = get_config("hearing")
  config.sound = None
  with pytest.raises(ValueError, match=r"model\.sound is 8, config\.sound None"):
    config.check()


def judged(data, videos):
  """The table of these videos as samples."""
  return judge.Impacts()(Run(None, 1, lambda split: data, lambda count, split: videos[:count, None]))


def test_the_judge_hears_and_sees_the_same_in_real_clips_and_not_in_others(data_dir):
  data = SimulatedClips("sounding16", 8, (16, 16), 256, split="test", data_dir=data_dir)
  data.prepare()
  rows = data.batch(0)
  heard = [judge.impacts(each, 8) for each in rows["sound"]]
  loud = [number for number, times in enumerate(heard) if len(times)]
  least = judge.LEAP * judge.usual_leap(pixels(rows["video"])[loud], [heard[number] for number in loud])
  seen = [judge.turns(video, least) for video in pixels(rows["video"])]
  share = lambda pairs: np.mean([judge.together(seen[one], heard[other]) for one, other in pairs])
  table = judged(data, pixels(rows["video"]))
  row = table["impacts"]
  low, high = wilson(round(row["real"] * len(loud)), len(loud))
  assert row["clips"] == len(loud) and (row["low"], row["high"]) == (low, high)
  assert row["samples"] == row["real"] == share([(each, each) for each in loud])
  assert row["shuffled"] == row["chance"] == share(list(zip(loud, loud[1:] + loud[:1])))
  of_others = judged(data, np.roll(pixels(rows["video"]), 1, 0))["impacts"]
  assert of_others["samples"] < 0.5 and of_others["real"] == row["real"], "clips of others are not right"
  always = judged(data, pixels(rows["video"])[np.resize(loud, len(heard))])
  assert always["silence"]["samples"] < 0.2 and table["silence"]["samples"] >= 0.95, "bouncing without sound is seen"
  assert len(loud) > 60 and share([(each, each) for each in loud]) >= 0.95
  assert share(list(zip(loud, loud[1:] + loud[:1]))) < 0.5
  quiet = sorted({*range(len(heard))} - {*loud})
  assert share([(each, each) for each in quiet]) >= 0.95, "where nothing is heard, nothing turns"
  still = np.repeat(pixels(rows["video"])[:1, :1], 8, 1)[0]
  assert not judge.together(judge.turns(still, least), np.array([3.5])) and not judge.together(None, np.array([]))
