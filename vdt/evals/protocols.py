"""Published ways to measure FVD, by name: what a figure must be made by before it may stand beside theirs.

Each fixes what its publications agree on; what they leave open or differ in (the split, the offset of clips, samplers)
is in the card. The data are the user's: `vdt ingest` makes clips of them.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Protocol:
  """frames, size, and the share of them that is given; count: of real and of generated clips, None where it differs."""

  source: str
  frames: int
  size: tuple[int, int]
  count: int | None
  given_frames: int | None = None

  def check(self, made: Any) -> None:
    """ValueError naming what of an `FVD` is otherwise."""
    task = "generation" if self.given_frames is None else "prediction"
    wanted = {"features": "i3d", "task": task, "given_frames": self.given_frames}
    if self.count:
      wanted["count"] = self.count
    differs(self.source, wanted, {name: getattr(made, name) for name in wanted})

  def check_clips(self, data: Any) -> None:
    """ValueError naming what of the clips is otherwise."""
    wanted = {"frames": self.frames, "size": self.size}
    differs(self.source, wanted, {"frames": data.frames, "size": tuple(data.size)})


def differs(source: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
  wrong = [f"{name} is {found[name]}, there {value}" for name, value in wanted.items() if found[name] != value]
  if wrong:
    raise ValueError(f"not the protocol of {source}: {'; '.join(wrong)}")


def of_2048(name: str) -> Protocol:
  return Protocol(f"{name}, as StyleGAN-V (arXiv:2112.14683) and Latte (arXiv:2401.03048)", 16, (256, 256), 2048)


PROTOCOLS = {
  "ucf101": of_2048("UCF-101"),
  "sky-timelapse": of_2048("SkyTimelapse"),
  "face-forensics": of_2048("FaceForensics"),
  "taichi": of_2048("Taichi-HD"),
  "kinetics600": Protocol("Kinetics-600 prediction, as DVD-GAN (arXiv:1907.06571)", 16, (64, 64), None, 5),
}
