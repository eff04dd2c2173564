r"""Published protocols of FVD: data sets, clips and counts as the papers have them; the videos are yours to bring.

  vdt ingest VIDEOS --out data/ucf101 --size 256 --fps 25 --frames 16 --stride 16 --test-sources TEST.txt \
    --captions CLASSES.csv
  vdt train --config experiments/protocols.py:ucf101 --workdir runs/ucf101
  vdt evaluate --workdir runs/ucf101 --json figures.json

Variants: ucf101 (with its classes, by CLASSES.csv of file, caption, label), sky-timelapse, face-forensics, taichi: 16
frames of 256 x 256, generated; kinetics600: 16 frames of 64 x 64, five given, eleven to make. Publications differ in
the number of clips and in the split that the real ones are from, which the card says. tiny: simulated clips and random
features, seconds.
Measured: nothing yet.
"""

from data_pipelines.clips import Clips, SimulatedClips
from vdt.config import AdamW, Config, Mesh
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.fvd import FVD
from vdt.evals.fvmd import FVMD
from vdt.evals.leakage import Leakage
from vdt.evals.prediction import Prediction
from vdt.evals.protocols import PROTOCOLS
from vdt.models import TransformerConfig


def get_config(variant: str = "ucf101") -> Config:
  config = Config(
    steps=300_000,
    data=Clips(name=variant, frames=16, size=(256, 256), batch_size=256, flip=True),
    model=TransformerConfig.sized("L", patch=(1, 16, 16), remat="dots"),
    diffusion=RectifiedFlow(),
    tasks=Tasks(generation=0.9, prediction=0.1),
    sampler=Sampler(method="heun", steps=32),
    optimizer=AdamW(lr=1e-4, warmup=5_000),
    mesh=Mesh(fsdp=4),
    micro_batches=2,
    topology="v5e:8x8",
    evals={"fvmd": FVMD(count=256), "leakage": Leakage(count=1024)},
  )
  match variant:
    case "ucf101":
      config.evals["fvd"] = FVD(count=2048, protocol=variant)
      config.model.classes = 101
    case "sky-timelapse" | "face-forensics" | "taichi":
      config.evals["fvd"] = FVD(count=2048, protocol=variant)
    case "kinetics600":
      config.data.size = (64, 64)
      config.model = TransformerConfig.sized("L", patch=(1, 4, 4), remat="dots")
      config.tasks = Tasks(generation=0.1, prediction=0.9)
      config.evals["fvd"] = FVD(count=2048, task="prediction", given_frames=5, protocol=variant)
      config.evals["prediction"] = Prediction(count=256, given_frames=5, lpips=True)
    case "tiny":
      config.data = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=8)
      config.model = TransformerConfig(depth=2, width=32, heads=2, patch=(1, 4, 4), dtype="float32")
      config.mesh, config.micro_batches, config.topology = Mesh(), 1, "v5e:2x4"
      config.sampler.steps = 4
      config.steps, config.log_every, config.save_every = 20, 5, 10
      config.evals = {
        "prediction": Prediction(count=8, repeats=2, given_frames=3),
        "fvd": FVD(count=16, features="random", controls=("noised",), task="prediction", given_frames=3),
        "leakage": Leakage(count=16),
      }
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose from {', '.join(PROTOCOLS)}, tiny")
  return config
