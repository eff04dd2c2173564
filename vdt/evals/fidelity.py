"""How near are reconstructions to the clips, and do they stand still where the clips do?"""

import dataclasses

import numpy as np
from jaxtyping import Float

from vdt.evals import Run, Table, real_videos


def psnr(made: Float[np.ndarray, "..."], real: Float[np.ndarray, "..."]) -> float:
  """Peak signal-to-noise ratio in dB of videos in [-1, 1], from the mean squared error over all of them."""
  error = np.mean(np.square(made.astype(np.float64) - real))
  return float(10.0 * np.log10(4.0 / max(error, 1e-20)))


def flicker(video: Float[np.ndarray, "b f h w c"]) -> float:
  """The root of the mean variance over time, of values taken from [-1, 1] to [0, 1]."""
  return float(0.5 * np.sqrt(video.astype(np.float64).var(axis=1).mean()))


@dataclasses.dataclass
class Fidelity:
  """Rows: "PSNR" of everything, the mean of the clips' own, and of each frame; "still", the temporal deviation of what
  comes back of each clip's first frame, repeated, in [0, 1]: its mean over clips, the most, and 1/255 beside it."""

  count: int = 64
  split: str = "test"
  every: int = 0

  @property
  def clips(self) -> int:
    return self.count

  def __call__(self, run: Run) -> Table:
    real = real_videos(run.data(self.split), self.count)
    made = run.reconstruct(real)
    frozen = run.reconstruct(np.repeat(real[:, :1], real.shape[1], axis=1))
    row = {"all": psnr(made, real), "mean of clips": float(np.mean([psnr(*pair) for pair in zip(made, real)]))}
    row |= {f"frame {number}": psnr(made[:, number], real[:, number]) for number in range(real.shape[1])}
    still = [flicker(video[None]) for video in frozen]
    return {"PSNR": row, "still": {"mean": float(np.mean(still)), "most": max(still), "1/255": 1 / 255}}
