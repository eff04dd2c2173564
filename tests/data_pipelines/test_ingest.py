import fractions
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest

from data_pipelines import ingest, sources, video
from data_pipelines.clips import Clips
from data_pipelines.mixture import Buckets

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:label\\(\\) is deprecated:DeprecationWarning")  # TFDS 4.9.10
REAL = ROOT.parent / "shared" / "data"
STEP = 6  # grey levels between frames


def grey(index):
  return 40 + STEP * index


def index_of(picture):
  return round((float(picture.mean()) - 40) / STEP)


def write(
  path,
  times,
  codec="libx264",
  size=(48, 64),
  ticks=1000,
  pix="yuv420p",
  sound=False,
  faststart=False,
  detail=0,
  rate=25,
):
  """A video whose frames tell their index by their brightness, at the given times in seconds."""
  rng = np.random.default_rng(len(times))
  base = fractions.Fraction(1, ticks)
  options = {"movflags": "faststart"} if faststart else {}
  with av.open(str(path), "w", options=options) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width, stream.pix_fmt = *size, pix
    stream.time_base = stream.codec_context.time_base = base
    if sound:
      track = container.add_stream("aac", rate=16000, layout="mono")
    for index, seconds in enumerate(times):
      image = np.full((*size, 3), grey(index % 32), np.int16) + rng.integers(-detail, detail + 1, (*size, 3))
      frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), "rgb24").reformat(format=pix)
      frame.pts, frame.time_base = round(seconds * ticks), base
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
    if sound:
      chunk = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.float32), "fltp", "mono")
      chunk.sample_rate, chunk.pts = 16000, 0
      container.mux(track.encode(chunk))
      container.mux(track.encode())
  return path


def steady(count, fps=25):
  return np.arange(count) / fps


def rotated(source, target, matrix):
  """Copies an MP4 with another display matrix (a, b, c, d) in its track header (ISO/IEC 14496-12, 8.3.2)."""
  data = bytearray(source.read_bytes())
  place = data.index(b"tkhd") + 4 + 40
  a, b, c, d = (65536 * value for value in matrix)
  data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  target.write_bytes(data)
  return target


def read(out, split):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(out)
  return {clip["id"].decode(): clip for clip in builder.as_data_source(split)}, builder.info


def content(out):
  return {path.name: path.read_bytes() for path in pathlib.Path(out).iterdir()}


@pytest.mark.parametrize(
  ("name", "codec", "ticks", "pix"),
  [
    ("a.mp4", "libx264", 90000, "yuv420p"),
    ("a.mkv", "libx264", 1000, "yuv420p"),
    ("a.webm", "libvpx-vp9", 1000, "yuv420p"),
    ("a.gif", "gif", 100, "rgb8"),
  ],
)
def test_variable_frame_rate_gives_the_frame_on_screen(tmp_path, name, codec, ticks, pix):
  gaps = np.random.default_rng(3).integers(3, 20, 29) / 100
  times = np.concatenate([[0], np.cumsum(gaps)])
  path = write(tmp_path / name, times, codec, ticks=ticks, pix=pix)
  with av.open(str(path)) as container:
    shown = [index_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
  for fps in (3, 7.3, 24):
    got = [index_of(picture) for picture in video.frames(path, fps, (32, 32))]
    late = 0.005 + 1e-6 if name == "a.gif" else 0.0005 + 1e-6  # half a tick of the container
    want = [shown[np.flatnonzero(times <= k / fps + late)[-1]] for k in range(len(got))]
    assert got == want
    assert abs(len(got) / fps - times[-1]) < 0.3


def test_equal_rate_keeps_every_frame_once_and_sound_changes_nothing(tmp_path):
  for name, codec, ticks in (("a.mkv", "libx264", 1000), ("b.mp4", "libx264", 30000), ("c.avi", "libx264", 30)):
    path = write(tmp_path / name, steady(30, 30), codec, ticks=ticks, sound=name != "c.avi", rate=30)
    assert [index_of(picture) for picture in video.frames(path, 30, (16, 16))] == list(range(30)), name
  assert video.probe(tmp_path / "b.mp4").sound


def test_rotation_mirroring_and_pixels_follow_the_header(tmp_path):
  source = tmp_path / "plain.mp4"
  with av.open(str(source), "w") as container:
    stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
    stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv444p"
    image = np.zeros((48, 96, 3), np.uint8)
    image[:24, :48], image[:24, 48:], image[24:, :48] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
    container.mux(stream.encode())
  turns = {
    (1, 0, 0, 1): image,
    (0, 1, -1, 0): np.rot90(image, -1),
    (-1, 0, 0, -1): np.rot90(image, 2),
    (0, -1, 1, 0): np.rot90(image, 1),
    (-1, 0, 0, 1): image[:, ::-1],
    (0, 1, 1, 0): image.transpose(1, 0, 2),
  }
  for matrix, want in turns.items():
    path = rotated(source, tmp_path / "turned.mp4", matrix)
    (got,) = video.read_clip(path, 1, want.shape[:2], 10)
    assert np.abs(got.astype(int) - want).mean() < 4, matrix
  wide = video.fit(image, (24, 24))
  assert wide.shape == (24, 24, 3)
  assert np.array_equal(wide, cv2.resize(image, (48, 24), interpolation=cv2.INTER_AREA)[:, 12:36])


def test_read_clip_equals_ingestion_and_takes_images(tmp_path):
  path = write(tmp_path / "in.mp4", steady(50), size=(49, 65), pix="yuv444p", detail=20)
  clip = video.read_clip(path, 8, (32, 40), 10)
  assert clip.shape == (8, 32, 40, 3) and clip.dtype == np.uint8
  assert np.array_equal(clip, np.stack(list(video.frames(path, 10, (32, 40)))[:8]))
  assert len(video.read_clip(path, 21, (32, 40), 10)) == 20  # all there are
  for name in ("a.png", "a.jpg"):
    cv2.imwrite(str(tmp_path / name), np.full((50, 80, 3), (10, 120, 240), np.uint8))
    image = video.read_clip(tmp_path / name, 8, (32, 32), 10)
    assert image.shape == (1, 32, 32, 3) and np.abs(image[0, 0, 0].astype(int) - (240, 120, 10)).max() <= 3
  picture = np.zeros((40, 60, 3), np.uint8)
  picture[:20, :30] = 250
  jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
  upright = {2: picture[:, ::-1], 5: picture.transpose(1, 0, 2), 6: np.rot90(picture, -1), 8: np.rot90(picture)}
  for orientation, want in upright.items():
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    (tmp_path / "turned.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    (got,) = video.read_clip(tmp_path / "turned.jpg", 1, want.shape[:2], 1)
    assert np.abs(got.astype(int) - want).mean() < 5, orientation
  clear = np.zeros((20, 20, 4), np.uint8)
  clear[:10, :, 3] = 255
  cv2.imwrite(str(tmp_path / "clear.png"), clear)
  picture = video.read_clip(tmp_path / "clear.png", 1, (20, 20), 1)[0]
  assert picture[:10].max() == 0 and picture[10:].min() == 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Good files of many kinds beside every kind of bad one."""
  root = tmp_path_factory.mktemp("folder")
  (root / "deep").mkdir()
  write(root / "a_red-ball.mp4", steady(60), sound=True)
  write(root / "deep" / "b.webm", steady(50), "libvpx-vp9", size=(45, 67))
  write(root / "c.gif", steady(50), "gif", ticks=100, pix="rgb8")
  write(root / "d.mkv", np.cumsum(np.random.default_rng(0).integers(20, 90, 60)) / 1000)
  whole = write(root / "e_whole.mp4", steady(120), faststart=True, detail=60).read_bytes()
  (root / "f_cut.mp4").write_bytes(whole[: int(0.6 * len(whole))])
  (root / "g_again.mp4").write_bytes((root / "a_red-ball.mp4").read_bytes())
  (root / "h_empty.mp4").write_bytes(b"")
  (root / "i_text.mp4").write_text("not a video\n" * 300)
  (root / "j_notes.txt").write_text("not a video either\n" * 300)
  (root / "k_headless.mp4").write_bytes((root / "a_red-ball.mp4").read_bytes()[:-3000])  # its index comes last
  write(root / "l_short.mp4", steady(10))
  flipped = bytearray(whole)
  for place in np.random.default_rng(5).integers(len(whole) // 2, len(whole), 60):
    flipped[place] ^= 16
  (root / "m_flipped.mp4").write_bytes(flipped)
  with av.open(str(root / "n_sound.m4a"), "w") as container:
    track = container.add_stream("aac", rate=16000, layout="mono")
    chunk = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.float32), "fltp", "mono")
    chunk.sample_rate = 16000
    container.mux(track.encode(chunk))
    container.mux(track.encode())
  (root / "o_dangling.mp4").symlink_to(root / "nowhere.mp4")
  (root / "p_list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.ts\n#EXT-X-ENDLIST\n")
  return root


SETTINGS = ingest.Settings(size=(32, 48), fps=10, frames=6, stride=4, format="png")


def test_every_file_is_accounted_for_and_the_clips_are_right(folder, tmp_path, capfd):
  tests = tmp_path / "tests.txt"
  tests.write_text("b.webm\ne_whole.mp4\n")
  manifest = ingest.ingest(folder, tmp_path / "out", SETTINGS, test_sources=tests)
  assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
  reported = capfd.readouterr().err
  entries = {entry["file"]: entry for entry in manifest["sources"]}
  assert sorted(entries) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
  reasons = {
    "g_again.mp4": "duplicate: the same content as a_red-ball.mp4",
    "h_empty.mp4": "empty file",
    "i_text.mp4": "not a readable video: Invalid data",
    "j_notes.txt": "no video stream",
    "k_headless.mp4": "not a readable video: Invalid data",
    "l_short.mp4": "too short: 4 frames at 10 fps, a clip has 6",
    "n_sound.m4a": "no video stream",
    "o_dangling.mp4": "unreadable",
    "p_list.m3u8": "not a readable video: a playlist",
  }
  assert {name for name, entry in entries.items() if "reason" in entry} == set(reasons)
  for name, reason in reasons.items():
    assert entries[name]["reason"].startswith(reason) and f"dropped {name}: {reason}" in reported
  assert sum(manifest["reasons"].values()) == manifest["totals"]["dropped"] == len(reasons)
  cut = entries["f_cut.mp4"]
  assert f"truncated: decoded {cut['decoded']} of 120 frames" in cut["warnings"] and 40 < cut["decoded"] < 110
  assert entries["m_flipped.mp4"]["warnings"] and entries["m_flipped.mp4"]["clips"]
  assert not any(entries[name]["warnings"] for name in ("a_red-ball.mp4", "deep/b.webm", "c.gif", "d.mkv"))

  import tensorflow_datasets as tfds

  stored = {}
  for split in ("train", "test"):
    clips, info = read(tmp_path / "out", split)
    names = {name.rsplit("#", 1)[0] for name in clips}
    used = {name for name, entry in entries.items() if entry["split"] == split and "reason" not in entry}
    assert names == used and (split == "train" or names == {"deep/b.webm", "e_whole.mp4"})
    assert len(clips) == sum(entries[name]["clips"] for name in used) == manifest["totals"]["clips"][split]
    stored |= clips
  assert isinstance(info.features["video"], tfds.features.Image)
  assert info.metadata["frames"] == 6 and info.metadata["size"] == [32, 48] and info.metadata["fps"] == 10
  assert entries["e_whole.mp4"]["clips"] == 1 + (48 - 6) // 4  # 120 frames at 25 fps are 48 at 10
  pictures = np.stack(list(video.frames(folder / "e_whole.mp4", 10, (32, 48))))
  for k in range(entries["e_whole.mp4"]["clips"]):
    clip = stored[f"e_whole.mp4#{k}"]
    assert np.array_equal(clip["video"].reshape(6, 32, 48, 3), pictures[4 * k : 4 * k + 6])
  clip = stored["a_red-ball.mp4#0"]
  assert clip["caption"].decode() == "a red ball" and clip["fps"] == 10
  assert info.features["label"].names[clip["label"]] == "a red ball"


def test_captions_labels_and_errors_name_the_culprit(folder, tmp_path, capfd):
  rows = [("a_red-ball.mp4", "a ball, red", "ball"), ("./deep/b.webm", "ein Würfel", "cube"), ("gone.mp4", "x", "cube")]
  table = tmp_path / "captions.csv"
  table.write_text("\ufefffile,caption,label\n" + "".join(f'{f},"{c}",{l}\n' for f, c, l in rows), "utf-8")
  lines = tmp_path / "captions.jsonl"
  lines.write_text("".join(json.dumps({"file": f, "caption": c, "label": l}) + "\n" for f, c, l in rows))
  outs = [tmp_path / "csv", tmp_path / "jsonl"]
  for out, captions in zip(outs, (table, lines)):
    manifest = ingest.ingest(folder, out, SETTINGS, captions, test_fraction=0)
    assert manifest["labels"] == ["ball", "cube"] and manifest["totals"]["used"] == 2
    assert "1 captions are for files that do not exist: gone.mp4" in manifest["warnings"]
    assert manifest["reasons"]["no label"] >= 5
  assert content(outs[0]) == content(outs[1])
  clips, info = read(outs[0], "train")
  assert clips["deep/b.webm#0"]["caption"].decode() == "ein Würfel"
  assert info.features["label"].names[clips["deep/b.webm#0"]["label"]] == "cube"
  assert "gone.mp4" in capfd.readouterr().err

  def refused(kind, match, source=folder, out=tmp_path / "never", **options):
    with pytest.raises(kind, match=match) as caught:
      ingest.ingest(source, out, options.pop("settings", SETTINGS), **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "never").exists()

  def text(name, value):
    (tmp_path / name).write_bytes(value.encode() if isinstance(value, str) else value)
    return tmp_path / name

  refused(FileNotFoundError, "no folder", source=tmp_path / "absent")
  refused(FileNotFoundError, "no captions file", captions=tmp_path / "absent.csv")
  refused(ValueError, "cannot read the captions", captions=text("b.csv", b"\xff\xfe\x00\x80file"))
  refused(ValueError, "cannot read the captions", captions=text("b.jsonl", '{"file": '))
  refused(ValueError, "entry 1: needs the columns file and caption", captions=text("n.csv", "name,text\na,b\n"))
  twice = "file,caption,label\na.mp4,b,one\na.mp4,c,two\n"
  refused(ValueError, "a.mp4 was labelled before", captions=text("t.csv", twice))
  refused(ValueError, "names none of the files", captions=text("w.csv", "file,caption\nq.mp4,b\n"))
  refused(ValueError, "without a label: b", captions=text("l.csv", "file,caption,label\na,b,c\nb,c,\n"))
  refused(ValueError, "not in the folder: zebra.mp4", test_sources=text("t.txt", "c.gif\nzebra.mp4\n"))
  (tmp_path / "bad").mkdir()
  refused(ValueError, "no files in", source=tmp_path / "bad")
  text("bad/a.mp4", "text"), text("bad/b.mp4", "")
  refused(ValueError, "no usable video among the 2 files", source=tmp_path / "bad")
  refused(OSError, "cannot write .*lines/out", out=text("lines", "") / "out")
  refused(ValueError, "lines is there and is not an ingested", out=tmp_path / "lines")
  with pytest.raises(ValueError, match="use --format png"):
    ingest.Settings(frames=600, size=(128, 128))


def test_splits_follow_the_name_and_a_finished_set_is_left_alone(folder, tmp_path, capfd):
  out = tmp_path / "out"
  argv = [str(folder), "--out", str(out), "--size", "24", "--fps", "10", "--frames", "8", "--test-fraction", "0.4"]
  ingest.main(argv)
  manifest = json.loads((out / "manifest.json").read_text())
  split = {entry["file"]: entry["split"] for entry in manifest["sources"]}
  assert set(split.values()) == {"train", "test"}
  before, times = content(out), {path: path.stat().st_mtime_ns for path in out.iterdir()}
  capfd.readouterr()
  ingest.main(argv)
  assert "nothing to do" in capfd.readouterr().err
  assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}
  for other in (["--stride", "4"], ["--test-fraction", "0"]):
    with pytest.raises(ValueError, match="made from other files or settings: choose another --out or remove it"):
      ingest.main([*argv, *other])
  assert content(out) == before and not (tmp_path / "out.partial").exists()
  more = tmp_path / "more"
  more.mkdir()
  for name in ("a_red-ball.mp4", "c.gif", "d.mkv", "e_whole.mp4"):
    (more / name).write_bytes((folder / name).read_bytes())
  fewer = ingest.ingest(more, tmp_path / "few", SETTINGS, test_fraction=0.4)
  assert all(split[entry["file"]] == entry["split"] for entry in fewer["sources"])


def test_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
  source = tmp_path / "source"
  source.mkdir()
  for index in range(10):
    write(source / f"v{index}.mp4", steady(80 + index), size=(160, 240), detail=30)
  settings = ingest.Settings(size=(32, 32), fps=10, frames=8)
  whole = ingest.ingest(source, tmp_path / "whole", settings)
  for attempt in range(5):  # on a busy machine it may be done before it is killed
    out = tmp_path / f"out{attempt}"
    command = [sys.executable, "-m", "data_pipelines.ingest", source, "--out", out, "--size", "32", "--fps", "10"]
    with open(tmp_path / "log", "w") as log:
      process = subprocess.Popen(
        [*command, "--frames", "8", "--workers", "1"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
      )
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(tmp_path.glob(f"{out.name}.partial/*/*.json"))) < 3:
      assert time.monotonic() < deadline, (tmp_path / "log").read_text()
      time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"{out.name}.partial/*/*.json")}
    if killed and 3 <= len(done) < 10:
      break
  assert killed and 3 <= len(done) < 10 and not out.exists(), (tmp_path / "log").read_text()
  decoded = []
  frames = video.frames
  monkeypatch.setattr(video, "frames", lambda path, *rest: decoded.append(path) or frames(path, *rest))
  assert ingest.ingest(source, out, settings) == whole
  assert len(decoded) == len(set(decoded)) == 10 - len(done)
  assert content(out) == content(tmp_path / "whole")
  assert not out.with_name(f"{out.name}.partial").exists() and os.listdir(tmp_path).count(out.name) == 1


def test_each_file_goes_to_the_bucket_of_its_shape_as_it_is_shown(tmp_path):
  heap = tmp_path / "heap"
  heap.mkdir()
  for name, size in {"wide": (48, 80), "square": (48, 56), "long": (64, 128)}.items():
    write(heap / f"{name}.mp4", steady(25), size=size)
  rotated(heap / "wide.mp4", heap / "tall.mp4", (0, 1, -1, 0))
  sizes, data = ["24x40", "32", "40x24"], []
  for size in sizes:
    beside = ",".join(other for other in sizes if other != size)
    out = tmp_path / f"mine_{size}"
    ingest.main([str(heap), f"--out={out}", f"--size={size}", f"--beside={beside}", "--frames=4", "--test-fraction=0"])
    shape = (24, 40) if size == "24x40" else (40, 24) if size == "40x24" else (32, 32)
    data.append(Clips(out.name, frames=4, size=shape, batch_size=2, data_dir=str(tmp_path)))
  buckets = Buckets(tuple(data), (2.0, 1.0, 1.0))
  buckets.prepare()
  used = [sorted({name.partition(".")[0] for name in part.read(np.arange(len(part)))["id"].tolist()}) for part in data]
  assert used == [["long", "wide"], ["square"], ["tall"]]
  assert buckets.census() == [
    "4 x 24 x 40: 4 clips of mine_24x40, 50.0% of steps, 2 each; files without: 2 another bucket",
    "4 x 32 x 32: 2 clips of mine_32, 25.0% of steps, 2 each; files without: 3 another bucket",
    "4 x 40 x 24: 2 clips of mine_40x24, 25.0% of steps, 2 each; files without: 3 another bucket",
  ]
  manifest = json.loads((tmp_path / "mine_32" / "manifest.json").read_text())
  reasons = {each["file"]: each.get("reason") for each in manifest["sources"]}
  assert reasons["tall.mp4"] == "another bucket: its shape is nearer to 40x24" and reasons["square.mp4"] is None


def test_a_shape_midway_belongs_to_one_bucket_and_sizes_of_one_shape_have_the_same_files():
  low, wide = ingest.Settings((80, 48), beside=((48, 80),)), ingest.Settings((48, 80), beside=((80, 48),))
  assert low.elsewhere(1.0) == (48, 80) and wide.elsewhere(1.0) is None
  assert low.elsewhere(0.9) is None and wide.elsewhere(0.9) == (80, 48)
  for size, other in (((64, 64), (128, 128)), ((128, 128), (64, 64))):
    assert ingest.Settings(size, beside=(other,)).elsewhere(1.3) is None


def test_a_share_of_the_files_is_held_out_and_one_at_least():
  names = {f"{i}.mp4": ROOT for i in range(1000)}
  chosen = sources.choose_tests(names, None, 0.1)
  assert 70 < len(chosen) < 130
  few = {name: ROOT for name in sorted(names.keys() - chosen)[:2]}
  assert len(sources.choose_tests(few, None, 0.1)) == 1
  assert not sources.choose_tests(few, None, 0.0) and not sources.choose_tests(dict(list(few.items())[:1]), None, 0.1)


def test_full_disk_is_one_clear_line(folder, tmp_path):
  limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
  code = limit + "from data_pipelines import ingest; ingest.main(sys.argv[1:])"
  argv = [str(folder), "--out", str(tmp_path / "out"), "--fps", "10", "--frames", "8"]
  result = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
  last = result.stderr.splitlines()[-1]
  assert result.returncode and last.startswith("OSError: cannot write") and "File too large" in last
  assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not REAL.exists(), reason=f"no real videos at {REAL}")
def test_real_files_of_every_codec(tmp_path):
  manifest = ingest.ingest(REAL / "codecs", tmp_path / "out", ingest.Settings(frames=4, fps=8, size=(32, 32)))
  dropped = {entry["file"] for entry in manifest["sources"] if "reason" in entry}
  assert dropped == {"frame_exceeds_screen.gif", "gradient.gif", "testsrc2_mpeg4.mp4", "transparent.gif"}
  assert manifest["reasons"] == {"too short": 4} and manifest["totals"]["files"] == 36
  assert not any(entry.get("warnings") for entry in manifest["sources"])
  codecs = {entry["codec"] for entry in manifest["sources"]}
  assert codecs >= {"h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg2video", "gif"}
  train, _ = read(tmp_path / "out", "train")
  assert all(clip["video"].shape == (128, 32, 3) for clip in train.values())
