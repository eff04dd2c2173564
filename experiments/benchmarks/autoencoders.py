r"""What does an autoencoder lose, beside an image autoencoder, and JPEG of as many bits?

  vdt train --config experiments/autoencoder.py:simulated --workdir runs/ae_simulated       (and :real)
  python experiments/benchmarks/autoencoders.py runs/ae_simulated runs/ae_real [--taef2 FOLDER] [--clips 32]

PSNR in dB over the first held-out clips of each run's data set (from the mean squared error of all of them, values in
[0, 1]), of each run's autoencoder, of taef2, frame by frame, and of JPEG (cv2, the better of 4:2:0 and 4:4:4) at the
highest quality, one for all frames, whose mean bytes are at most those of the latents in bfloat16: two for each number.
Bytes of JPEG are those from the start of its scan on; the headers, about 600 bytes a frame, are not counted. "still":
the deviation over time, in [0, 1], of what comes back of each first frame, repeated: the root of its mean square, and
its mean over pixels; 1/255 is 0.0039.
Then what holds exactly: how far latents move when later frames are edited, and how far parts and tiles are from the
whole.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import flags

from vdt import command_line
from vdt.autoencoder import load
from vdt.distributed import in_chunks
from vdt.evals import real_videos
from vdt.evals.fidelity import flicker, psnr
from vdt.video import to_uint8

RESULTS = Path(__file__).parent / "results" / "autoencoders.json"
CHUNK = 4


def jpeg(videos, budget):
  """What comes back at the highest quality whose mean bytes a clip are within the budget, that quality, its bytes."""
  frames = to_uint8(videos).reshape(-1, *videos.shape[2:])
  best = None
  for sampling in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444):
    for quality in range(100, 0, -1):
      options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
      coded = [cv2.imencode(".jpg", frame[..., ::-1], options)[1] for frame in frames]
      size = sum(len(each) - each.tobytes().index(b"\xff\xda") for each in coded) / len(videos)
      if size <= budget:
        break
    back = np.stack([cv2.imdecode(each, cv2.IMREAD_COLOR)[..., ::-1] for each in coded]) / 127.5 - 1.0
    found = (psnr(back.reshape(videos.shape), videos), quality, size)
    best = max(best or found, found)
  return best


def of(autoencoder, videos):
  """The figures of one autoencoder, and of JPEG at as many bits."""
  there = jax.jit(lambda x: autoencoder.decode(autoencoder.params, autoencoder.encode(autoencoder.params, x)))
  made = in_chunks(there, (videos,), CHUNK)
  frozen = np.repeat(videos[:, :1], videos.shape[1], axis=1)
  if not autoencoder.by_frame:  # frame by frame, equal frames come back equal
    frozen = in_chunks(there, (frozen,), CHUNK)
  height, width = (size // factor for size, factor in zip(videos.shape[2:4], autoencoder.factor[1:]))
  values = autoencoder.frames(videos.shape[1]) * height * width * autoencoder.channels
  quality = jpeg(videos, 2 * values)
  return {
    "numbers a clip": values,
    "pixel values over numbers": videos[0].size / values,
    "PSNR": psnr(made, videos),
    "PSNR, mean of clips": float(np.mean([psnr(*pair) for pair in zip(made, videos)])),
    "still": flicker(frozen),
    "still, mean of pixels": float(0.5 * frozen.std(axis=1).mean()),
    "JPEG": dict(zip(("PSNR", "quality", "bytes a clip"), quality)),
  }


def exactness(autoencoder, videos):
  """Largest differences that are to be zero, or that of rounding."""
  params, video = autoencoder.params, videos[:1]
  latents = np.asarray(autoencoder.encode(params, video))
  edited = video.copy()
  edited[:, 1 + autoencoder.factor[0] :] *= -1
  moved = np.abs(np.asarray(autoencoder.encode(params, edited)) - latents)
  apart = lambda other, whole: float(np.abs(np.asarray(other) - np.asarray(whole)).max())
  pixels = autoencoder.decode(params, latents)
  large = np.concatenate([np.concatenate([video, video[:, :, ::-1]], 2)] * 2, 3)
  whole = np.asarray(autoencoder.encode(params, large))
  return {
    "earlier latents, later frames edited": float(moved[:, :2].max()),
    "later latents, the same": float(moved[:, 2:].max()),
    "encoded in parts": apart(autoencoder.encode(params, video, chunk=2), latents),
    "decoded in parts": apart(autoencoder.decode(params, latents, chunk=2), pixels),
    "encoded in tiles": apart(autoencoder.encode(params, large, tile=4), whole),
    "decoded in tiles": apart(autoencoder.decode(params, whole, tile=4), autoencoder.decode(params, whole)),
    "largest latent": float(np.abs(whole).max()),
  }


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("workdirs", nargs="+")
  parser.add_argument("--taef2", help="the folder of the tiny image autoencoder's .npz files")
  parser.add_argument("--clips", type=int, default=32, help="of each data set, at most")
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  found = {}
  for workdir in options.workdirs:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run", flag_values=values)
    config, _ = command_line.parse([f"--workdir={workdir}"], values)
    data = dataclasses.replace(config.data, split="test")
    data.prepare()
    videos = real_videos(data, min(options.clips, len(data)))
    own = load(workdir)
    rows = {"ours": of(own, videos)}
    if options.taef2:
      rows["taef2"] = of(load(options.taef2), videos)
    found[config.data.name] = {"clips": len(videos), **rows, "exactness": exactness(own, videos)}
    print(f"{config.data.name}, {len(videos)} held-out clips of {videos.shape[1:4]}")
    for name, row in rows.items():
      coded = row["JPEG"]
      print(
        f"  {name:6} {row['PSNR']:.2f} dB ({row['PSNR, mean of clips']:.2f} mean of clips), "
        f"{row['pixel values over numbers']:.1f} times fewer numbers, still {row['still']:.4f} "
        f"({row['still, mean of pixels']:.4f} mean of pixels); JPEG of as many bits "
        f"{coded['PSNR']:.2f} dB (quality {coded['quality']})"
      )
    print("  " + "\n  ".join(f"{name}: {value:.3g}" for name, value in found[config.data.name]["exactness"].items()))
    options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
