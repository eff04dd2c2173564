"""Temporal consistency by optical flow. No row means anything alone: read each beside the dynamic degree."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from vdt.evals import Run, Table
from vdt.evals.controls import ALL, columns

SMALLEST_SIDE = 64  # DIS flow needs some pixels: smaller frames are enlarged for the flow only


def _sampled(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
  """image (h, w, ...) read at x + flow(x), bilinear."""
  rows, cols = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
  return cv2.remap(image, cols + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _visible(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
  """True where going forward and back returns: equation 5 of Sundaram, Brox, Keutzer, ECCV 2010."""
  returned = _sampled(backward, forward)
  gap = np.square(forward + returned).sum(-1)
  height, width = forward.shape[:2]
  rows, cols = np.mgrid[:height, :width]
  x, y = cols + forward[..., 0], rows + forward[..., 1]
  inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
  return inside & (gap < 0.01 * (np.square(forward).sum(-1) + np.square(returned).sum(-1)) + 0.5)


def enlarged(
  video: Float[np.ndarray, "f h w c"],
) -> tuple[Float[np.ndarray, "f H W c"], list[UInt8[np.ndarray, "H W"]]]:
  """Frames in [0, 1], and grey, as `flow` sees them: larger by a whole factor, so that no side is below 64 px."""
  height, width = video.shape[1:3]
  scale = -(-SMALLEST_SIDE // min(height, width))
  size = (width * scale, height * scale)
  frames = [cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) for frame in (video + 1) / 2]
  frames = np.stack(frames).reshape(len(video), size[1], size[0], -1)
  return frames, [np.clip(np.rint(frame.mean(-1) * 255), 0, 255).astype(np.uint8) for frame in frames]


def flow(grey: Sequence[UInt8[np.ndarray, "H W"]]) -> Float[np.ndarray, "pairs H W 2"]:
  """From each frame to the next, in px (x, y): dense inverse search (arXiv:1603.03590)."""
  search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  return np.stack([search.calc(one, two, None) for one, two in zip(grey, grey[1:])])


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
  return float(values[mask].mean()) if mask.any() else float("nan")


def motion(video: Float[np.ndarray, "f h w c"]) -> dict[str, float]:
  """The rows of `Motion` for one clip of at least 3 frames; NaN where no pixel could be followed."""
  if len(video) < 3:
    raise ValueError(f"motion needs clips of at least 3 frames, got {len(video)}")
  frames, grey = enlarged(video)
  forward, backward = flow(grey), flow(grey[::-1])[::-1]
  visible = np.stack([_visible(there, back) for there, back in zip(forward, backward)])
  scale = forward.shape[1] // video.shape[1]
  speed = np.linalg.norm(forward, axis=-1) / scale
  residual = np.stack([_sampled(after, there) - now for now, after, there in zip(frames, frames[1:], forward)])
  residual = residual.reshape(*visible.shape, -1)
  window = (max(frames.shape[1] // 4, 1),) * 2
  flickers, accelerations = [], []
  for change, seen in zip(residual.mean(-1), visible):
    share = cv2.blur(seen.astype(np.float32), window)
    local = cv2.blur((change * seen).astype(np.float32), window) / np.maximum(share, 1e-6)
    flickers.append(_mean(np.abs(local), seen))
  for now, after, seen, seen_after in zip(forward, forward[1:], visible, visible[1:]):
    both = seen & (_sampled(seen_after.astype(np.float32), now) > 0.5)
    accelerations.append(_mean(np.linalg.norm(_sampled(after, now) - now, axis=-1) / scale, both))
  fastest = np.quantile(speed, 0.95, axis=(1, 2), keepdims=True)
  return {
    "dynamic degree": float(speed.mean()),
    "fast motion": float(speed[speed >= fastest].mean()),
    "warping error": _mean(np.square(residual).mean(-1), visible),
    "flicker": float(np.mean(flickers)),
    "acceleration": float(np.mean(accelerations)),
    "followed": float(visible.mean()),
  }


@dataclasses.dataclass
class Motion:
  """Means over clips of: dynamic degree, fast motion, warping error, flicker, acceleration, followed.

  dynamic degree: length of the optical flow, px a frame; fast motion: of its fastest 5 % of pixels (as VBench,
    arXiv:2311.17982, does), which a large still background does not dilute.
  warping error: mean square difference, pixels in [0, 1], between a frame and the next one warped back by the flow,
    where forward and backward flow agree (arXiv:1808.00449, equation 6, as a mean). A still video scores 0: read it
    only beside the dynamic degree.
  flicker: absolute change of luminance that is left after that warping and an average over windows of a quarter of
    the height, in which the errors of small motions cancel.
  acceleration: length of the change of the flow from a frame to the next along the motion, px per frame squared.
  followed: share of pixels whose flow is consistent; the others are left out above.

  The columns "frozen", "jitter" (1 px), "shuffled", "reversed", "flicker" and "noised" are the same real clips
  corrupted; "real floor" is a second, disjoint part of the real clips. Reversed videos score as real ones: these
  rows are blind to the arrow of time.
  """

  count: int = 64
  split: str = "test"
  every: int = 0

  @property
  def clips(self) -> int:
    return 2 * self.count

  def __call__(self, run: Run) -> Table:
    table: Table = {}
    for column, videos in columns(run, self.split, self.count, ALL):
      clips = [motion(video) for video in videos]
      for row in clips[0]:
        values = np.array([clip[row] for clip in clips])
        if not np.isnan(values).all():
          table.setdefault(row, {})[column] = float(np.nanmean(values))
    return table
