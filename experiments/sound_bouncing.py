r"""Sound to videos: a ball lands when its impact is heard.

  vdt train --config experiments/sound_bouncing.py:demo --workdir runs/sound
  vdt sample --workdir runs/sound --audio FILE
  vdt sweep --config experiments/sound_bouncing.py:demo --workdir runs/sound_seeds

One clip in three of the simulated balls lands while it lasts, with the sound of an impact in the middle of that step;
the others are silent. Variants: full (16 frames of 64 x 64, bfloat16, for an accelerator), demo (8 frames of 16 x 16,
minutes on two CPU cores), tiny (the demo's shape, seconds, learns little).

Measured, demo, one run, half an hour of a core that did other work as well (results/sound_bouncing_demo.json), of 256
held-out clips:

  92 with an impact turn within a frame of it     0.935 (0.865, 0.970), real clips 0.957
  the same beside the sound of the next one       0.337, real clips 0.348
  164 where none is heard do not turn             0.976 (0.939, 0.991), real clips 1.000
"""

from data_pipelines.clips import SimulatedClips
from data_pipelines.sound import LogMel
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks, resolution_shift
from vdt.evals.impacts import Impacts
from vdt.evals.physics import Physics
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig
from vdt.sweep import seeds


def get_config(variant: str = "full") -> Config:
  config = Config(
    steps=100_000,
    data=SimulatedClips(name="sounding64", frames=16, size=(64, 64), batch_size=64),
    sound=LogMel(),
    model=TransformerConfig.sized("S", patch=(1, 4, 4), pattern=(("space", "sound"), ("time",)), sound=64),
    diffusion=RectifiedFlow(shift=resolution_shift(tokens=16 * 16 * 16, base_tokens=32 * 32)),
    tasks=Tasks(generation=0.8, prediction=0.2),
    sampler=Sampler(method="heun", steps=16, guidance_scale=2.0),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    topology="v5e:2x4",
    evals={"loss": ValLoss(), "sound": Impacts(), "physics": Physics(count=128)},
  )
  match variant:
    case "full":
      pass
    case "demo" | "tiny":
      config.data = SimulatedClips(name="sounding16x6000", frames=8, size=(16, 16), batch_size=16)
      small = dict(pattern=(("space", "time", "sound"),), remat="dots", dtype="float32", sound=64)
      config.model = TransformerConfig.sized("XS", patch=(1, 4, 4), **small)
      config.diffusion = RectifiedFlow(shift=3.0, prediction="x0")
      config.sampler = Sampler(method="heun", steps=16, churn=0.4, guidance_scale=2.0)
      config.tasks = Tasks()
      config.ema = 0.99
      config.steps, config.log_every, config.save_every = 2_000, 20, 500
      config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
      if variant == "tiny":
        config.model.width, config.model.heads = 32, 1
        config.data.name, config.data.batch_size = "sounding16", 8
        config.steps, config.log_every, config.save_every = 20, 5, 10
        config.optimizer.decay = config.steps
        config.evals["loss"].count, config.evals["sound"].count, config.evals["physics"].count = 8, 16, 8
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose full, demo or tiny")
  return config


def sweep():
  """Three seeds."""
  return seeds(3)
