"""Curation finds what was planted, says why, and is the same after a kill."""

import contextlib
import fractions
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import av
import cv2
import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="the extra [curation] is not installed")

from data_pipelines import ingest, video
from data_pipelines.curate import curate, main

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "clips"
FPS = 25
pytestmark = [
  pytest.mark.filterwarnings("ignore:label\\(\\) is deprecated:DeprecationWarning"),  # TFDS 4.9.10
  pytest.mark.filterwarnings("ignore::DeprecationWarning:apache_beam"),
]


def scene(seed, count=60, size=(144, 192), tint=None):
  """A disc and a box that wander over a still texture, all of them the seed's own."""
  rng = np.random.default_rng(seed)
  ground = cv2.resize(rng.integers(30, 200, (9, 12, 3)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
  ground = cv2.add(ground, rng.integers(0, 30, (*size, 3)).astype(np.uint8))
  if tint is not None:
    ground[..., [channel for channel in range(3) if channel != tint]] //= 4
  colours = rng.integers(0, 256, (2, 3)).tolist()
  speeds, phases = rng.uniform(0.5, 1.4, 4), rng.uniform(0, 6, 4)
  frames = []
  for index in range(count):
    image = ground.copy()
    swing = np.sin(speeds * index / FPS * 2 + phases)
    spot = [int(size[1] * (0.5 + 0.4 * swing[0])), int(size[0] * (0.5 + 0.4 * swing[1]))]
    box = [int(size[1] * (0.5 + 0.4 * swing[2])), int(size[0] * (0.5 + 0.4 * swing[3]))]
    cv2.circle(image, spot, 22, colours[0], -1)
    cv2.rectangle(image, (box[0] - 18, box[1] - 18), (box[0] + 18, box[1] + 18), colours[1], -1)
    frames.append(image)
  return frames


def write(path, frames, quality=18, scale=1.0, milliseconds=40):
  size = [round(side * scale) // 2 * 2 for side in frames[0].shape[:2]]
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=FPS, options={"crf": str(quality), "preset": "veryfast", "g": "50"})
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for index, image in enumerate(frames):
      image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
      frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
      frame.pts, frame.time_base = index * milliseconds, fractions.Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def bordered(image):
  image = image.copy()
  image[:20] = image[-20:] = 0
  return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Scenes of their own kind beside copies of them, and one file for each reason to drop it."""
  root = tmp_path_factory.mktemp("folder")
  (root / "deep").mkdir()
  for seed in range(6):
    write(root / f"a{seed}.mp4", scene(seed))
  write(root / "b0_again.mp4", scene(0), 36)
  write(root / "b1_half.mkv", scene(1), 24, 0.5)
  write(root / "b2_trimmed.mp4", scene(2)[13:-13], 28, 0.75)
  write(root / "b5_fewer.mp4", scene(5)[::3], 26, milliseconds=120)
  (root / "deep" / "b3_renamed.mp4").write_bytes((root / "a3.mp4").read_bytes())
  write(root / "b4_test.mp4", scene(4), 30, 0.75)
  write(root / "c_cut.mp4", scene(20, 41, tint=0) + scene(21, 50, tint=2))
  write(root / "d_still.mp4", scene(30)[:1] * 50)
  write(root / "e_dark.mp4", [image // 32 for image in scene(31)])
  write(root / "f_glaring.mp4", [255 - image // 64 for image in scene(32)])
  write(root / "g_blurred.mp4", [cv2.GaussianBlur(image, None, 20) for image in scene(33)])
  write(root / "h_bars.mp4", [bordered(image) for image in scene(34)])
  write(root / "i_short.mp4", scene(35, 20))
  write(root / "j_small.mp4", scene(36), scale=0.25)
  whole = write(root / "k_cut_off.mkv", scene(37)).read_bytes()
  (root / "k_cut_off.mkv").write_bytes(whole[: len(whole) // 2])
  flipped = bytearray(whole)
  for place in np.random.default_rng(0).integers(len(flipped) // 5, len(flipped), 80):
    flipped[place] ^= 8
  (root / "l_flipped.mkv").write_bytes(flipped)
  (root / "m_empty.mp4").write_bytes(b"")
  (root / "n_text.mp4").write_text("no video\n" * 300)
  (root / os.fsdecode(b"p_\xff.mp4")).write_text("a name that is no text")
  os.mkfifo(root / "q_pipe.mp4")
  (root / "a0.txt").write_text("a disc and a box\n\n two  things\n")
  (root / "deep" / "b3_renamed.mp4.json").write_text('{"caption": "again"}')
  (root / "a5.json").write_text("{broken")
  (root / "o_alone.txt").write_text("nothing's caption")
  return root


CLIP = {  # why the one clip of a file is dropped
  "b0_again.mp4": "near-duplicate: of a0.mp4, 0.00 to 2.40 s",
  "b1_half.mkv": "near-duplicate: of a1.mp4, 0.00 to 2.40 s",
  "b2_trimmed.mp4": "near-duplicate: of a2.mp4, 0.00 to 2.40 s",
  "b5_fewer.mp4": "near-duplicate: of a5.mp4, 0.00 to 2.40 s",
  "a4.mp4": "near-duplicate: of b4_test.mp4, 0.00 to 2.40 s",  # the copy is in the split test
  "d_still.mp4": "still: motion 0.0",
  "e_dark.mp4": "dark: brightness 0.0",
  "f_glaring.mp4": "glaring: brightness 0.9",
  "g_blurred.mp4": "blurred: sharpness ",
  "h_bars.mp4": "black bars: 28%",
  "i_short.mp4": "short: 0.80 s, at least 1 are asked for",
  "j_small.mp4": "small: 36 pixels, at least 64 are asked for",
}
FILE = {
  "a3.mp4": "duplicate: the same content as deep/b3_renamed.mp4",  # which has a caption
  "k_cut_off.mkv": "damaged: ",
  "l_flipped.mkv": "damaged: ",
  "m_empty.mp4": "empty file",
  "n_text.mp4": "not a readable video: Invalid data",
  "o_alone.txt": "not a readable video: ",
  "p_\\xff.mp4": "not a readable video: ",
  "q_pipe.mp4": "unreadable: not a regular file",
}


def outputs(out):
  return {name: (out / name).read_bytes() for name in ("clips.jsonl", "manifest.json", "sheet.html")}


@pytest.fixture(scope="module")
def curated(folder, tmp_path_factory):
  root = tmp_path_factory.mktemp("curated")
  (root / "tests.txt").write_text("b4_test.mp4\na1.mp4\n")
  return root / "out", curate(folder, root / "out", test_sources=root / "tests.txt"), root / "tests.txt"


def test_all_that_was_planted_is_found_and_nothing_else(folder, curated):
  out, manifest, _ = curated
  entries = {entry["file"]: entry for entry in manifest["sources"]}
  captions = {"a0.txt": "a0.mp4", "a5.json": "a5.mp4", "deep/b3_renamed.mp4.json": "deep/b3_renamed.mp4"}
  assert manifest["captions"] == captions
  assert entries.keys() | captions.keys() == {
    os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
    for path in folder.rglob("*")
    if not path.is_dir()
  }
  for name, entry in entries.items():
    if name in FILE:
      assert entry["reason"].startswith(FILE[name]) and not entry.get("clips"), name
      continue
    assert "reason" not in entry, name
    if name == "c_cut.mp4":
      assert entry["cuts"] == [41] and [clip.get("reason") for clip in entry["clips"]] == [None, None]
      continue
    (clip,) = entry["clips"]
    assert clip.get("reason", "").startswith(CLIP.get(name, "")) and ("reason" in clip) == (name in CLIP), (name, clip)
    assert entry["cuts"] == []
  assert sum(manifest["filters"].values()) == len(CLIP) and sum(manifest["files"].values()) == len(FILE)
  assert manifest["filters"]["near-duplicate"] == 5 and manifest["totals"]["clips"] == {"test": 2, "train": 6}
  kept = [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]
  names = ["a0.mp4", "a1.mp4", "a2.mp4", "a5.mp4", "b4_test.mp4", "c_cut.mp4", "c_cut.mp4", "deep/b3_renamed.mp4"]
  assert [clip["file"] for clip in kept] == names
  assert (
    kept[0]["caption"] == "a disc and a box\ntwo things"
    and kept[1]["split"] == "test"
    and kept[5]["end"] == kept[6]["start"]
  )
  assert manifest["warnings"][0].startswith("a5.json is beside a5.mp4, and no caption")
  page = (out / "sheet.html").read_text()
  for reason in [*CLIP.values(), *FILE.values()]:
    assert reason.replace("'", "&#39;") in page
  assert page.count("data:image/jpeg;base64,") >= 3 * (len(CLIP) + len(kept)) - 10 and 'src="http' not in page


def test_clips_become_a_data_set_that_crosses_no_cut(folder, curated, tmp_path):
  import tensorflow_datasets as tfds

  out, _, _ = curated
  settings = ingest.Settings(size=(36, 48), fps=12.5, frames=6, format="png")
  manifest = ingest.ingest(folder, tmp_path / "set", settings, clips=out / "clips.jsonl")
  assert manifest["totals"]["used"] == 7 and manifest["totals"]["dropped"] == 0
  builder = tfds.builder_from_directory(tmp_path / "set")
  stored = {split: list(builder.as_data_source(split)) for split in ("train", "test")}
  assert {clip["id"].decode().split("#")[0] for clip in stored["test"]} == {"a1.mp4", "b4_test.mp4"}
  spliced = [clip["video"].reshape(6, 36, 48, 3) for clip in stored["train"] if clip["id"].startswith(b"c_cut")]
  red = [clip[..., 0].mean(axis=(1, 2)) > clip[..., 2].mean(axis=(1, 2)) for clip in spliced]
  assert len(spliced) == 3 + 4 and all(each.all() or not each.any() for each in red)
  assert sum(each.all() for each in red) == 3  # 41 frames are 21 at 12.5 a second
  first = np.stack(list(video.frames(folder / "c_cut.mp4", 12.5, (36, 48), start=41 / 25))[:6])
  assert any(np.array_equal(first, clip) for clip in spliced)
  (caption,) = {clip["caption"] for clip in stored["train"] if clip["id"].startswith(b"a0.mp4")}
  assert caption == b"a disc and a box\ntwo things" and "a disc and a box" in builder.info.features["label"].names
  other = tmp_path / "other"
  other.mkdir()
  for line in (out / "clips.jsonl").read_text().splitlines():
    path = other / json.loads(line)["file"]
    path.parent.mkdir(exist_ok=True)
    write(path, scene(0, 10))
  half, (line, *others) = tmp_path / "half.jsonl", (out / "clips.jsonl").read_text().splitlines()
  half.write_text("\n".join([json.dumps(json.loads(line) | {"label": "disc"}), *others]))
  for wrong, match in (
    ({"source": other}, "is not the file that .* was made of: curate the folder again"),
    ({"captions": out / "clips.jsonl"}, "leave out --captions"),
    ({"clips": tmp_path / "none"}, "no list of clips"),
    ({"clips": out / "manifest.json"}, "is no clips.jsonl of `vdt curate`"),
    ({"clips": half}, "label every file or none, and curate again; without a label: a1.mp4"),
  ):
    options = {"clips": out / "clips.jsonl", **wrong}
    with pytest.raises((ValueError, FileNotFoundError), match=match):
      ingest.ingest(options.pop("source", folder), tmp_path / "never", settings, **options)


def test_other_limits_decode_nothing_anew(folder, curated, capsys):
  out, manifest, tests = curated
  before = outputs(out)
  records = {path: path.stat().st_mtime_ns for path in out.glob("records/*/*")}
  assert len(records) == 24 and all(path.suffix == ".json" for path in records)
  main([str(folder), "--out", str(out), "--test-sources", str(tests), "--min-motion", "0", "--max-bars=1"])
  said = capsys.readouterr()
  assert f"{out}: 2 test, 8 train clips" in said.out and "near-duplicate: 5 clips dropped" in said.err
  assert curate(folder, out, test_sources=tests) == manifest and outputs(out) == before
  assert records == {path: path.stat().st_mtime_ns for path in out.glob("records/*/*")}


def test_bad_input_is_named(folder, tmp_path, monkeypatch):
  def refused(match, *argv, out=tmp_path / "never"):
    with pytest.raises((ValueError, OSError), match=match) as caught:
      main([str(folder), "--out", str(out), *argv])
    assert "\n" not in str(caught.value) and not (tmp_path / "never").exists()

  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "file").write_text("")
  refused("was not made by curation: choose another", out=tmp_path / "other")
  refused("cannot write .*Not a directory", out=tmp_path / "other" / "file" / "x")
  refused("unknown flag --min-secnds; did you mean --min-seconds?", "--min-secnds=3")
  refused("unknown flag --min-secnds; did you mean --min-seconds?", "--min-secnds=3", "--runner=DataflowRunner")
  refused("unknown flag --speed", "--speed", "3")
  refused("unexpected argument 'more'", "more")
  refused("limits are at least 0", "--min-side=-1")
  refused("no captions file", "--captions", "nowhere.csv")
  refused("not in the folder: zebra.mp4", "--test-sources", str(listed(tmp_path, "zebra.mp4\n")))
  monkeypatch.setitem(sys.modules, "imagehash", None)
  refused(r"curation needs imagehash: pip install 'vdt\[curation\]'")
  monkeypatch.undo()
  with pytest.raises(FileNotFoundError, match="no folder"):
    main([str(tmp_path / "gone"), "--out", str(tmp_path / "never")])


def listed(folder, text):
  (folder / "listed.txt").write_text(text)
  return folder / "listed.txt"


@pytest.mark.parametrize("flags", [[], ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]])
def test_killed_in_the_middle_goes_on_to_the_same_bytes(folder, curated, tmp_path, flags):
  whole, _, tests = curated
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  for attempt in range(5):  # on a busy machine it may be done before it is killed
    out = tmp_path / f"out{attempt}"
    command = [sys.executable, "-m", "data_pipelines.curate", folder, "--out", out, "--test-sources", tests, *flags]
    with open(tmp_path / "log", "w") as log:
      process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 200
    while process.poll() is None and len(list(out.glob("records/*/*.json"))) < 4:
      assert time.monotonic() < deadline, (tmp_path / "log").read_text()
      time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in out.glob("records/*/*.json")}
    if killed and 4 <= len(done) < 24:
      break
  assert killed and 4 <= len(done) < 24 and not (out / "manifest.json").exists(), (tmp_path / "log").read_text()
  subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
  assert outputs(out) == outputs(whole)
  assert done.items() <= {path: path.stat().st_mtime_ns for path in out.glob("records/*/*.json")}.items()
  records = [{path.name: path.read_bytes() for path in each.glob("records/*/*")} for each in (out, whole)]
  assert records[0] == records[1]


@pytest.mark.skipif(not REAL.exists(), reason=f"no real videos at {REAL}")
def test_real_clips_with_planted_faults(tmp_path):
  """The benchmark with fewer copies: all that was planted is found, and no untouched clip is lost but the previews."""
  script = ROOT / "experiments" / "benchmarks" / "curation.py"
  command = [
    sys.executable,
    script,
    REAL,
    "--each",
    "3",
    "--work",
    tmp_path / "work",
    "--json",
    tmp_path / "found.json",
  ]
  done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "found.json").read_text())
  assert result["missed"] == []
  counts = result["counts"]
  for kind in ("re-encoded", "resized", "trimmed", "renamed", "spliced", "cut off", "bits flipped"):
    assert counts[kind] == [3, 3], kind
  lost, of = counts["untouched clips dropped"]
  assert lost <= 0.02 * of and of >= 38, result["lost"]
  assert counts["cuts in untouched files"][0] == counts["cuts too many in splices"][0] == 0
  films = ("bottle-detection", "car-detection", "one-by-one-person-detection")
  assert result["twins"] == [f"preview_{film}.gif 0.00" for film in films]
