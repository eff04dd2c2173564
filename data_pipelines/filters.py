"""Which clips are of use: limits on what was measured of them, and the reason for each that is not."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
  """A clip outside of one of these is dropped; changing them decodes nothing anew.

  min_side: pixels of the short side. min_seconds: of a clip. min_motion: of the long side, a second, that the 1 % that
  moves most moves in the mean. min_sharpness: variance of the Laplacian, of a picture with a short side of 256.
  min_brightness, max_brightness: mean, 0 to 1. max_bars: share of the picture that is black bars.
  """

  min_side: int = 64
  min_seconds: float = 1.0
  min_motion: float = 0.001
  min_sharpness: float = 4.0
  min_brightness: float = 0.04
  max_brightness: float = 0.96
  max_bars: float = 0.03

  def __post_init__(self):
    if min(dataclasses.astuple(self)) < 0 or self.min_brightness >= self.max_brightness:
      raise ValueError(f"limits are at least 0, and min_brightness is below max_brightness: {self}")

  def reason(self, clip: dict[str, Any]) -> str | None:
    """Why a clip of `shots.examine` is dropped: the first limit it is outside of. None if it is within all."""
    found, seconds = clip["measures"], clip["end"] - clip["start"]
    side = min(found["height"], found["width"])
    checks = {
      "small": (side >= self.min_side, f"{side} pixels, at least {self.min_side} are asked for"),
      "short": (seconds >= self.min_seconds - 1e-6, f"{seconds:.2f} s, at least {self.min_seconds:g} are asked for"),
      "dark": (found["brightness"] >= self.min_brightness, f"brightness {found['brightness']:.3f}"),
      "glaring": (found["brightness"] <= self.max_brightness, f"brightness {found['brightness']:.3f}"),
      "black bars": (found["bars"] <= self.max_bars, f"{found['bars']:.0%} of the picture"),
      "blurred": (found["sharpness"] >= self.min_sharpness, f"sharpness {found['sharpness']:.2f}"),
      "still": (found["motion"] >= self.min_motion, f"motion {found['motion']:.5f}"),
    }
    return next((f"{kind}: {text}" for kind, (good, text) in checks.items() if not good), None)
