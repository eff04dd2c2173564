r"""Does a damaged video file ever crash or hang what reads it?

  python experiments/benchmarks/fuzz_video.py [--files 6080] [--seed 0] [--json FILE]

Small sources of each codec and container are mutated (bits flipped, cut off, chunks swapped, chunks overwritten, their
head damaged) and read in other processes as ingestion reads them, from the start and from the middle, and as curation
does. A file ends with its frames, or with a reason; what is told is how many ended how, the slowest, and each that
killed its process or took longer than LIMIT.
"""

import argparse
import collections
import fractions
import json
import re
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "fuzz_video.json"
LIMIT = 10.0  # seconds of processor time a file, and six times that on the clock, of a machine with other work
SOURCES = {  # name: codec, pixels, options
  "h264.mp4": ("libx264", "yuv420p", {"bf": "2", "g": "10"}),
  "h264.mkv": ("libx264", "yuv420p", {"bf": "2", "g": "10"}),
  "h264_10bit.mp4": ("libx264", "yuv420p10le", {"g": "10"}),
  "h264.ts": ("libx264", "yuv420p", {"g": "10"}),
  "h264.avi": ("libx264", "yuv420p", {"bf": "0"}),
  "h264.flv": ("libx264", "yuv420p", {"g": "10"}),
  "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:keyint=10"}),
  "vp8.webm": ("libvpx", "yuv420p", {"deadline": "realtime", "g": "10"}),
  "vp9.webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "g": "10"}),
  "av1.mkv": ("libsvtav1", "yuv420p", {"preset": "12", "svtav1-params": "keyint=10"}),
  "mpeg4.mp4": ("mpeg4", "yuv420p", {"g": "10"}),
  "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "10"}),
  "mpeg2.ts": ("mpeg2video", "yuv420p", {"g": "10", "bf": "2"}),
  "mjpeg.mov": ("mjpeg", "yuvj420p", {}),
  "wmv2.asf": ("wmv2", "yuv420p", {"g": "10"}),
  "ffv1.mkv": ("ffv1", "yuv420p", {}),
  "prores.mov": ("prores_ks", "yuv422p10le", {}),
  "apng.apng": ("apng", "rgb24", {}),
  "gif.gif": ("gif", "rgb8", {}),
}


def write(path, codec, pix, options):
  """25 frames of 48 x 64 in which a square crosses noise."""
  import av

  av.logging.set_level(None)
  noise = np.random.default_rng(0).integers(60, 120, (48, 64, 3)).astype(np.uint8)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25, options=options)
    stream.height, stream.width, stream.pix_fmt = 48, 64, pix
    stream.time_base = stream.codec_context.time_base = fractions.Fraction(1, 25)
    for index in range(25):
      image = noise.copy()
      image[10:30, 2 * index : 2 * index + 12] = 220
      frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pix)
      frame.pts, frame.time_base = index, fractions.Fraction(1, 25)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def flip(data, rng):
  for place in rng.integers(0, len(data), 2 ** rng.integers(0, 9)):
    data[place] ^= 1 << rng.integers(8)
  return data


def cut(data, rng):
  return data[: rng.integers(1, len(data))]


def swap(data, rng):
  size = int(rng.integers(1, max(2, len(data) // 8)))
  one, two = sorted(int(place) for place in rng.integers(0, len(data) - size, 2))
  data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
  return data


def overwrite(data, rng):
  size = int(rng.integers(1, max(2, len(data) // 8)))
  place = int(rng.integers(0, len(data) - size))
  data[place : place + size] = rng.integers(0, 256, size, np.uint8).tobytes() if rng.random() < 0.7 else bytes(size)
  return data


def head(data, rng):
  for place in rng.integers(0, min(len(data), 600), 2 ** rng.integers(0, 5)):
    data[place] = rng.choice([0, 255, int(rng.integers(256))])
  return data


MUTATIONS = (flip, cut, swap, overwrite, head)


def serve():
  """Reads files named on stdin, one a line; answers with a line of JSON each."""
  import warnings

  from data_pipelines import shots, video

  warnings.simplefilter("ignore")  # Pillow's, of pictures that claim to be huge
  for line in sys.stdin:
    path, ended, begin = line.rstrip("\n"), [], time.process_time()
    for options in ({}, {"start": 0.5, "end": 0.8}):
      try:
        count = sum(1 for _ in video.frames(path, 25, (32, 32), **options))
        ended.append(f"{count} frames")
      except video.VideoError as error:
        ended.append(error.reason)
      except (ValueError, OSError) as error:
        ended.append(f"{type(error).__name__}: {error}")
    record = shots.examine(path)
    ended.append(record.get("reason", f"{record.get('frames')} frames"))
    print(json.dumps([ended, time.process_time() - begin]), flush=True)


class Worker:
  """A process that reads files; another one takes its place when it dies."""

  def __init__(self):
    self.start()

  def start(self):
    command = [sys.executable, __file__, "--serve"]
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )

  def read(self, path):
    """(how the file ended, seconds of processor time); (None, exit code) for a crash, (None, LIMIT) for a hang."""
    self.process.stdin.write(f"{path}\n")
    with selectors.DefaultSelector() as selector:
      selector.register(self.process.stdout, selectors.EVENT_READ)
      ready = selector.select(6 * LIMIT)
      answer = self.process.stdout.readline() if ready else ""
    if answer:
      return json.loads(answer)
    if not ready:
      self.process.kill()
    code = self.process.wait()
    self.start()
    return None, code if ready else LIMIT

  def close(self):
    self.process.stdin.close()
    self.process.wait()


def kind(ended):
  """A class of ends: frames, or the reason without its particulars."""
  return "frames" if re.fullmatch(r"\d+ frames", ended) else ended.partition(":")[0]


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--files", type=int, default=6080)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", type=Path, default=RESULTS)
  parser.add_argument("--work", type=Path, help="where files that crash or hang are kept (default: a temporary folder)")
  parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.serve:
    return serve()
  work = options.work or Path(tempfile.mkdtemp())
  work.mkdir(parents=True, exist_ok=True)
  worker = Worker()
  table = {name: collections.Counter() for name in SOURCES}
  crashes, slowest, total = [], (0.0, ""), 0
  for name, source in SOURCES.items():
    write(work / name, *source)
    ended, _ = worker.read(work / name)
    assert ended and all(kind(each) == "frames" for each in ended), f"{name} itself: {ended}"
  for number in range(-(-options.files // (len(SOURCES) * len(MUTATIONS)))):
    for place, name in enumerate(SOURCES):
      for each, mutate in enumerate(MUTATIONS):
        rng = np.random.default_rng([options.seed, number, place, each])
        path = work / f"mutated_{mutate.__name__}_{number}_{name}"
        path.write_bytes(mutate(bytearray((work / name).read_bytes()), rng))
        ended, seconds = worker.read(path)
        total += 1
        if ended is None or seconds > LIMIT:
          crashes.append([path.name, seconds])
          table[name]["crash or hang"] += 1
          continue
        slowest = max(slowest, (round(seconds, 2), path.name))
        table[name]["strict: " + kind(ended[-1])] += 1
        table[name]["plain: " + kind(ended[0])] += 1
        path.unlink()
  worker.close()
  ways = sorted({way for counts in table.values() for way in counts})
  print(f"{'':16}" + " | ".join(ways))
  for name, counts in table.items():
    print(f"{name:16}" + " | ".join(f"{counts[way]:{len(way)}}" for way in ways))
  print(f"{total} files, {len(crashes)} crashes or hangs, the slowest took {slowest[0]} s")
  result = {
    "files": total,
    "crashes": crashes,
    "slowest": slowest[0],
    "slowest file": slowest[1],
    "limit": LIMIT,
    "seed": options.seed,
  }
  options.json.write_text(
    json.dumps(result | {"ends": {name: dict(counts) for name, counts in table.items()}}, indent=1) + "\n"
  )


if __name__ == "__main__":
  main()
