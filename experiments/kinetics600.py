r"""Kinetics-600, five frames given, eleven to make: the published protocol of video prediction at 64 x 64.

  vdt ingest VIDEOS --out data/kinetics600 --size 64 --fps 25 --frames 16 --stride 16 --test-sources TEST.txt
  vdt train --config experiments/kinetics600.py --workdir runs/k600
  vdt evaluate --workdir runs/k600 --json figures.json

Publications differ in the number of clips and in the split that the real ones are from, which the card says. The videos
are yours to bring. Variants: full, tiny (simulated clips and random features, seconds).
Measured: nothing yet.
"""

from data_pipelines.clips import Clips, SimulatedClips
from vdt.config import AdamW, Config
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.fvd import FVD
from vdt.evals.fvmd import FVMD
from vdt.evals.leakage import Leakage
from vdt.evals.prediction import Prediction
from vdt.models import TransformerConfig


def get_config(variant: str = "full") -> Config:
  config = Config(
    steps=300_000,
    data=Clips(name="kinetics600", frames=16, size=(64, 64), batch_size=256, flip=True),
    model=TransformerConfig.sized("L", patch=(1, 4, 4), remat="dots"),
    diffusion=RectifiedFlow(),
    tasks=Tasks(generation=0.1, prediction=0.9),
    sampler=Sampler(method="heun", steps=32),
    optimizer=AdamW(lr=1e-4, warmup=5_000),
    topology="v5e:8x8",
    evals={
      "prediction": Prediction(count=256, given_frames=5, lpips=True),
      "fvd": FVD(count=2048, task="prediction", given_frames=5, protocol="kinetics600"),
      "fvmd": FVMD(count=256),
      "leakage": Leakage(count=1024),
    },
  )
  match variant:
    case "full":
      pass
    case "tiny":
      config.data = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=8)
      config.model = TransformerConfig(depth=2, width=32, heads=2, patch=(1, 4, 4), dtype="float32")
      config.sampler.steps = 4
      config.steps, config.log_every, config.save_every = 20, 5, 10
      config.evals = {
        "prediction": Prediction(count=8, repeats=2, given_frames=3),
        "fvd": FVD(count=16, features="random", task="prediction", given_frames=3),
        "leakage": Leakage(count=16),
      }
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose full or tiny")
  return config
