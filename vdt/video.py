"""Videos as files a person can open: MP4, animated WebP, and contact sheets."""

import io
from fractions import Fraction

import av
import numpy as np
from jaxtyping import Float, Int16, UInt8
from PIL import Image

SEEN = 128
"""Smaller pictures are enlarged to at least this many pixels, whole pixels at a time, wherever a person looks."""


def to_uint8(video: Float[np.ndarray, "*b f h w c"]) -> UInt8[np.ndarray, "*b f h w c"]:
  """[-1, 1] to bytes."""
  return np.round((np.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def enlarged(video: UInt8[np.ndarray, "f h w c"]) -> UInt8[np.ndarray, "f h2 w2 c"]:
  """Every pixel repeated until the short side reaches `SEEN`."""
  times = max(-(-SEEN // min(video.shape[1:3])), 1)
  return video.repeat(times, axis=1).repeat(times, axis=2)


def mp4(
  video: UInt8[np.ndarray, "f h w 3"], fps: float, sound: tuple[Int16[np.ndarray, " n"], int] | None = None
) -> bytes:
  """H.264 in every player's pixel format, with sound (of one channel, and its samples a second) as AAC; odd sizes are
  padded by their last row or column."""
  video = enlarged(video)
  _, h, w, _ = video.shape
  video = np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
    stream.options = {"crf": "12", "preset": "veryfast"}
    track = None if sound is None else container.add_stream("aac", rate=sound[1], layout="mono")
    for frame in video:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
    container.mux(stream.encode())
    if track is not None:
      heard = av.AudioFrame.from_ndarray(sound[0][None].astype(np.float32) / 2**15, "fltp", "mono")
      heard.sample_rate, heard.pts = sound[1], 0
      container.mux(track.encode(heard))
      container.mux(track.encode())
  return buffer.getvalue()


def webp(video: UInt8[np.ndarray, "f h w 3"], fps: float) -> bytes:
  """A lossless animation that loops, as browsers and chat programs show it."""
  first, *rest = map(Image.fromarray, enlarged(video))
  buffer = io.BytesIO()
  duration = max(round(1000 / fps), 20)
  first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
  return buffer.getvalue()


def contact_sheet(videos: UInt8[np.ndarray, "b f h w 3"], columns: int = 16) -> UInt8[np.ndarray, "y x 3"]:
  """A row a video, its frames from left to right (at most `columns` of them, evenly spaced)."""
  frames = np.linspace(0, videos.shape[1] - 1, min(columns, videos.shape[1])).round().astype(int)
  gap = 2
  rows = []
  for video in videos[:, frames]:
    tiles = enlarged(video) if min(videos.shape[2:4]) >= SEEN else video.repeat(4, axis=1).repeat(4, axis=2)
    rows.append(np.concatenate([np.pad(t, ((0, gap), (0, gap), (0, 0)), constant_values=255) for t in tiles], axis=1))
  return np.concatenate(rows)


def png(picture: UInt8[np.ndarray, "y x 3"]) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return buffer.getvalue()


def read_frames(path: str) -> UInt8[np.ndarray, "f h w 3"]:
  """The frames in a .npy file. ValueError unless they are (f, h, w, 3) bytes."""
  try:
    frames = np.load(path, allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f"{path} is no .npy file of numbers ({error})") from error
  if frames.ndim != 4 or not len(frames) or frames.shape[-1] != 3 or frames.dtype != np.uint8:
    raise ValueError(f"{path} holds {frames.dtype} of shape {frames.shape}: given frames are uint8 (f, h, w, 3)")
  return frames
