"""The Fréchet video distance (arXiv:1812.01717), with what it was made by: a figure without its card says nothing."""

import dataclasses
from typing import Any

from vdt.evals import Run, Table, card, controls
from vdt.evals.features import check_name, extract, network
from vdt.evals.protocols import PROTOCOLS
from vdt.evals.statistics import compared, extrapolated, frechet_distance, kernel_distance


@dataclasses.dataclass
class FVD:
  """Rows: a Fréchet and a kernel distance from real clips, each with its 95 % interval, and its excess over the real
  floor with the paired one; the Fréchet distance at infinitely many clips (see `extrapolated`). Columns: see
  `controls.columns`.

  The real floor is what as many other real clips have: a model at the floor cannot be told from the data at this
  count; a low end of the excess above 0 is sure to be worse. "memorised" is what no distance between distributions
  exposes, and what one from the training split rewards: see `Memorisation`.
  features: see `features.network`; "i3d" and "vgg" need extra [fvd]. protocol: one of `protocols.PROTOCOLS`, with which
  the clips must agree. task, given_frames: what is sampled. What the network makes of real clips and of controls is
  stored beside the data set. ValueError for an unknown network, control or protocol, or fewer than 16 clips; a network
  of the user's is made when it is first needed, so that a run is sampled from and exported also without it.
  """

  count: int = 256
  features: str = "i3d"
  controls: tuple[str, ...] = controls.ALL
  split: str = "test"
  every: int = 0
  protocol: str = ""
  task: str = "generation"
  given_frames: int | None = None

  def __post_init__(self):
    check_name(self.features)
    controls.check(self.controls)
    if not isinstance(self.count, int) or self.count < 16:
      raise ValueError(f"FVD of {self.count} clips: take a whole number, at least 16")
    if self.protocol:
      if self.protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {self.protocol!r}: choose from {', '.join(PROTOCOLS)}")
      PROTOCOLS[self.protocol].check(self)

  @property
  def clips(self) -> int:
    return 2 * self.count

  def prepare(self, data: Any) -> None:
    """Before training, not after it. FileNotFoundError without the network's weights, ValueError for other clips."""
    controls.check_task(self.task, self.given_frames, data.frames)
    network(self.features).check(data)
    network(self.features).function()
    if self.protocol:
      PROTOCOLS[self.protocol].check_clips(data)

  def card(self, run: Run) -> dict[str, Any]:
    made_by = network(self.features)
    return {
      **card(self, run),
      "protocol": PROTOCOLS[self.protocol].source if self.protocol else "none published",
      "frames seen by the network": f"{made_by.size}, bilinear, not antialiased, not cropped"
      if made_by.size
      else "as they are",
      "network": made_by.name,
      "network's hash": made_by.hash(),
    }

  def __call__(self, run: Run) -> Table:
    made_by, data = network(self.features), run.data(self.split)
    if self.protocol:
      PROTOCOLS[self.protocol].check_clips(data)
    made_by.check(data)
    function, features = made_by.function(), {}
    for name, videos in controls.columns(run, self.split, self.count, self.controls, self.task, self.given_frames):
      features[name] = extract(made_by, function, run, videos, None if name == "samples" else data)
    real, (frechet, kernel) = features.pop("real"), made_by.measures
    table = compared(frechet, frechet_distance, real, features) | compared(kernel, kernel_distance, real, features)
    return table | {f"{frechet}, infinitely many": {name: extrapolated(real, made) for name, made in features.items()}}
