"""Any second of a video, whatever its codec and container, is the frame that was on screen then."""

import fractions
import json
import os
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from data_pipelines import video

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "codecs"
BITS = 8


def bars(index, size=(48, 64)):
  """A frame that carries its index as a bar code, one bit a stripe."""
  stripes = [40 + 170 * (index >> bit & 1) for bit in range(BITS)]
  return np.repeat(np.repeat(np.array(stripes, np.uint8), size[1] // BITS)[None, :, None], size[0], 0).repeat(3, 2)


def read(picture):
  columns = picture.mean(axis=(0, 2)).reshape(BITS, -1)[:, 1:-1].mean(axis=1)
  return sum(int(value > 125) << bit for bit, value in enumerate(columns))


def write(path, times, codec, ticks, pix="yuv420p", **options):
  base = fractions.Fraction(1, ticks)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25, options={**options})
    stream.height, stream.width, stream.pix_fmt = 48, 64, pix
    stream.time_base = stream.codec_context.time_base = base
    stream.codec_context.gop_size = 12
    for index, seconds in enumerate(times):
      frame = av.VideoFrame.from_ndarray(bars(index), "rgb24").reformat(format=pix)
      frame.pts, frame.time_base = round(seconds * ticks), base
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


STEADY = np.arange(120) / 25
UNEVEN = np.concatenate([[0], np.cumsum(np.random.default_rng(3).integers(2, 16, 119) / 100)])


@pytest.mark.parametrize(
  ("name", "codec", "times", "ticks", "options"),
  [
    ("a.mp4", "libx264", UNEVEN, 90000, {"bf": "3"}),
    ("b.mkv", "libx264", UNEVEN, 1000, {"bf": "3", "x264-params": "open-gop=1"}),
    ("c.mp4", "libx265", UNEVEN, 90000, {"x265-params": "log-level=none:keyint=12:bframes=4"}),
    ("d.webm", "libvpx-vp9", UNEVEN, 1000, {"deadline": "realtime", "cpu-used": "8"}),
    ("e.webm", "libvpx", UNEVEN, 1000, {"deadline": "realtime", "cpu-used": "8", "b": "2M"}),
    ("f.mkv", "libsvtav1", UNEVEN, 1000, {"preset": "12", "svtav1-params": "keyint=12"}),
    ("g.gif", "gif", UNEVEN, 100, {}),
    ("h.mp4", "libx264", STEADY, 12800, {"bf": "2"}),
    ("i.ts", "mpeg2video", STEADY, 25, {"bf": "2", "b": "2M"}),
    ("j.avi", "mpeg4", STEADY, 25, {"b": "2M"}),
    ("k.mov", "mjpeg", STEADY, 12800, {}),
    ("l.mkv", "ffv1", UNEVEN, 1000, {}),
  ],
)
def test_random_seeks_give_the_frame_on_screen(tmp_path, name, codec, times, ticks, options):
  path = tmp_path / name
  pix = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
  write(path, times, codec, ticks, pix, **options)
  assert [read(picture) for picture in video.frames(path, 25, (48, 64))][:1] == [0]
  rng = np.random.default_rng(0)
  late = 1e-6 + min(0.5 / (90000 if name.endswith(".ts") else ticks), 1 / (8 * 25))  # containers round times to ticks
  for start in rng.uniform(0.001, times[-1], 12):
    fps, length = rng.choice([3, 7.3, 25]), rng.uniform(0.05, 1.0)
    got = [read(picture) for picture in video.frames(path, fps, (48, 64), start=start, end=start + length)]
    asked = start + np.arange(len(got)) / fps
    assert got == [int(np.flatnonzero(times <= time + late)[-1]) for time in asked], (start, fps)
    assert len(got) == np.ceil(length * fps - 1e-6) or asked[-1] + 1 / fps > times[-1]
  for index in rng.integers(1, len(times) - 1, 8):  # exactly where a frame begins, as curation has it
    (got,) = video.frames(path, 1, (48, 64), start=float(times[index]), end=float(times[index + 1]))
    assert read(got) == index


def test_a_seek_does_not_decode_what_is_before(tmp_path):
  write(tmp_path / "a.mp4", STEADY, "libx264", 90000, bf="3")
  progress = video.Progress()
  list(video.frames(tmp_path / "a.mp4", 25, (48, 64), progress, start=4.0, end=4.2))
  assert progress.decoded <= 12 + 6
  with pytest.raises(ValueError, match="before end"):
    next(video.frames(tmp_path / "a.mp4", 25, (48, 64), start=1.0, end=1.0))


@pytest.mark.skipif(not REAL.exists(), reason=f"no real videos at {REAL}")
def test_real_files_of_every_codec_are_sought_and_decoded_strictly(tmp_path):
  """Frames by their timestamps, by seeks as from the beginning; none of 36 is taken for damaged, and cut ones are."""
  rng = np.random.default_rng(1)
  for path in sorted(REAL.iterdir()):
    progress = video.Progress()
    times = [time for time, _ in video.decoded(path, progress)]
    assert times and np.all(np.diff(times) > 0) and not progress.errors and not progress.warnings, path.name
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      stamps = sorted(frame.pts for frame in container.decode(stream))
      assert np.allclose(times, [float((stamp - stamps[0]) * stream.time_base) for stamp in stamps]), path.name
    whole = list(video.frames(path, 50, (24, 24)))
    for place in rng.integers(0, len(whole), 3):
      part = list(video.frames(path, 50, (24, 24), start=place / 50, end=(place + 2) / 50))
      assert np.array_equal(part, whole[place : place + 2]), path.name
    data, cut = path.read_bytes(), tmp_path / path.name
    cut.write_bytes(data[: len(data) // 2])
    progress = video.Progress()
    try:
      list(video.decoded(cut, progress))
      assert any(each.startswith("truncated") for each in progress.warnings) or progress.errors, path.name
    except video.VideoError as error:
      assert error.reason.startswith(("not a readable video", "nothing decodes", "no ")), path.name


def test_mutated_files_end_with_frames_or_a_reason(tmp_path):
  """A bounded version of the benchmark: no crash, and nothing that takes 10 s."""
  out = tmp_path / "fuzz.json"
  script = ROOT / "experiments" / "benchmarks" / "fuzz_video.py"
  command = [sys.executable, script, "--files", "100", "--json", out, "--work", tmp_path / "work"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
  assert done.returncode == 0, done.stderr
  found = json.loads(out.read_text())
  assert found["files"] >= 100 and found["crashes"] == [] and found["slowest"] < 10, found
