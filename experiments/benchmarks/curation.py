r"""Does curation find what was planted, and leave the rest alone?

  python experiments/benchmarks/curation.py FOLDER [--each 12] [--work runs/curation] [--json FILE]

Beside the videos of FOLDER lie copies of `--each` of them, of every kind: re-encoded (crf 34), resized
(to a half), trimmed (a fifth off both ends, and re-encoded), renamed (the same bytes); broken ones: cut off, with bits
flipped, empty, text; and splices of two, whose cut is known. Counted is what curation makes of each, and how many of
the untouched clips it drops. A copy counts as found if no clip of it is kept beside the original's.
"""

import argparse
import fractions
import json
import shutil
import time
from pathlib import Path

import av
import cv2
import numpy as np

from data_pipelines.curate import curate

RESULTS = Path(__file__).parent / "results" / "curation.json"
MOST = 300  # frames of a planted copy
TESTS = 4  # untouched files of the split test


def decode(path):
  """(seconds, RGB) of the first frames."""
  found = []
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    for frame in container.decode(stream):
      found.append((float(frame.pts * stream.time_base), frame.to_ndarray(format="rgb24")))
      if len(found) == MOST:
        break
  return found


def encode(path, frames, quality, scale=1.0):
  """Writes (seconds, RGB) as H.264, the first at 0 s."""
  height, width = (round(side * scale) // 2 * 2 for side in frames[0][1].shape[:2])
  base = fractions.Fraction(1, 1000)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=30, options={"crf": str(quality), "preset": "veryfast"})
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.time_base = stream.codec_context.time_base = base
    for seconds, image in frames:
      image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
      frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
      frame.pts, frame.time_base = round((seconds - frames[0][0]) * 1000), base
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def plant(source, target, each):
  """Fills `target`; returns {kind: {planted: (originals ...)}} and the frame at which each splice is cut."""
  files = sorted(path for path in source.iterdir() if path.is_file())
  for path in files:
    shutil.copyfile(path, target / path.name)
  spread = lambda shift: [files[(round(i * len(files) / each) + shift) % len(files)] for i in range(each)]
  planted, cuts = {}, {}

  def name(kind, number, suffix, *originals):
    planted.setdefault(kind, {})[f"zz_{kind}_{number}{suffix}"] = [path.name for path in originals]
    return target / f"zz_{kind}_{number}{suffix}"

  for number, (one, two, three) in enumerate(zip(spread(0), spread(1), spread(2))):
    encode(name("re-encoded", number, ".mp4", one), decode(one), 34)
    encode(name("resized", number, ".mkv", two), decode(two), 24, 0.5)
    frames = decode(three)
    fifth = len(frames) // 5
    encode(name("trimmed", number, ".mp4", three), frames[fifth:-fifth], 28)
    shutil.copyfile(one, name("renamed", number, one.suffix, one))
    first, second = decode(two)[:120], decode(one)[:120]
    size = first[0][1].shape[1::-1]
    shift = first[-1][0] + 1 / 25 - second[0][0]
    join = first + [(seconds + shift, cv2.resize(image, size)) for seconds, image in second]
    cuts[name("spliced", number, ".mp4", two, one).name] = len(first)
    encode(target / f"zz_spliced_{number}.mp4", join, 23)
    whole = (target / f"zz_re-encoded_{number}.mp4").read_bytes() if number % 2 else three.read_bytes()
    suffix = ".mp4" if number % 2 else three.suffix
    name("cut off", number, suffix, three).write_bytes(whole[: int(0.6 * len(whole))])
    flipped, rng = bytearray(three.read_bytes()), np.random.default_rng(number)
    for place in rng.integers(len(flipped) // 10, len(flipped), 100):
      flipped[place] ^= 1 << rng.integers(8)
    name("bits flipped", number, three.suffix, three).write_bytes(flipped)
  name("empty", 0, ".mp4").write_bytes(b"")
  name("text", 0, ".mp4").write_text("no video\n" * 500)
  return planted, cuts, [path.name for path in files]


def judge(manifest, planted, cuts, untouched):
  """Counts, and what was missed, of each kind."""
  entries = {entry["file"]: entry for entry in manifest["sources"]}
  clips = lambda name: entries[name].get("clips", [])
  dropped_for = lambda clip, name: clip.get("reason", "").startswith(f"near-duplicate: of {name},")
  same_as = lambda name: entries[name].get("reason", "").removeprefix("duplicate: the same content as ")

  def found(name, originals):
    """Every clip of the copy is dropped, or an original's is dropped for it; or one of two equal files is."""
    if same_as(name) in originals or any(same_as(original) == name for original in originals):
      return True
    others = [clip for original in originals for clip in clips(original)]
    gone = all("reason" in clip for clip in clips(name)) or any(dropped_for(clip, name) for clip in others)
    return bool(clips(name)) and gone

  counts, missed = {}, []
  for kind, copies in planted.items():
    if kind in ("cut off", "bits flipped", "empty", "text"):
      good = {name for name in copies if "reason" in entries[name]}
      unseen = {name for name, of in copies.items() if name not in good and found(name, of)}
      if unseen:
        counts[f"{kind}, decoded without an error, dropped as duplicates"] = [len(unseen), len(copies)]
      good |= unseen
    elif kind == "spliced":
      near = lambda name: any(abs(cut - cuts[name]) <= 1 for cut in entries[name].get("cuts", ()))
      good = {name for name in copies if near(name)}
      counts["cuts too many in splices"] = [sum(len(entries[name].get("cuts", ())) for name in copies) - len(good), 0]
      both = {name for name, of in copies.items() if all("reason" in clip for clip in clips(name)) or found(name, of)}
      counts["spliced, found as duplicates"] = [len(both), len(copies)]
    else:
      good = {name for name, of in copies.items() if found(name, of)}
    counts[kind] = [len(good), len(copies)]
    missed += sorted(copies.keys() - good)
  mine = [(name, clip) for name in untouched for clip in clips(name)]
  lost = {f"{name} {clip['start']:.2f}": clip["reason"] for name, clip in mine if "reason" in clip}
  lost |= {name: entries[name]["reason"] for name in untouched if "reason" in entries[name]}
  twins = {
    clip: why for clip, why in lost.items() if why.split(", ")[0].removeprefix("near-duplicate: of ") in untouched
  }
  counts["untouched clips dropped"] = [len(lost) - len(twins), len(mine)]
  counts["previews dropped for the films they are of"] = [len(twins), len(mine)]
  copies = [name for kind in ("re-encoded", "resized", "trimmed") for name in planted[kind]]
  counts["cuts in copies of one shot"] = [sum(len(entries[name].get("cuts", ())) for name in copies), 0]
  counts["cuts in untouched files"] = [sum(len(entries[name].get("cuts", ())) for name in untouched), 0]
  everything = [*manifest["sources"], *(clip for entry in manifest["sources"] for clip in entry.get("clips", ()))]
  border = sum(
    "near-duplicate" in clip.get("reason", "") and entry["split"] == "test"
    for entry in entries.values()
    for clip in entry.get("clips", ())
  )
  counts["test clips dropped as duplicates"] = [border, 0]
  return {"counts": counts, "missed": missed, "lost": {**lost}, "twins": sorted(twins), "rows": len(everything)}


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=Path)
  parser.add_argument("--each", type=int, default=12)
  parser.add_argument("--work", type=Path, default=Path("runs/curation"))
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  target = options.work / "videos"
  shutil.rmtree(options.work, ignore_errors=True)
  target.mkdir(parents=True)
  planted, cuts, untouched = plant(options.folder, target, options.each)
  tests = options.work / "tests.txt"
  tests.write_text("\n".join(untouched[3 :: len(untouched) // TESTS]))
  start = time.process_time()
  manifest = curate(target, options.work / "out", test_sources=tests)
  seconds = time.process_time() - start
  result = judge(manifest, planted, cuts, untouched) | {
    "files": manifest["totals"]["files"],
    "seconds": round(seconds, 1),
  }
  result |= {"reasons of files": manifest["files"], "reasons of clips": manifest["filters"]}
  for kind, (count, of) in result["counts"].items():
    print(f"{kind:60} {count}" + (f" of {of}" if of else ""))
  print(f"missed: {result['missed']}\nlost: {result['lost']}")
  print(f"files dropped: {manifest['files']}; clips dropped: {manifest['filters']}; {seconds:.0f} s of processor time")
  options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
