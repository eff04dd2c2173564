r"""Two bodies that collide, or one that passes behind a bar: are momentum and permanence learned?

  vdt train --config experiments/contacts.py:tiny --workdir runs/collisions
  vdt train --config experiments/contacts.py:occlusion --workdir runs/occlusion

Measured: nothing yet. The validation loss is reported apart for unseen pairs of words (combinatorial) and for motion
faster than any in training (ood).

Variants: full (collisions, 16 frames of 64 x 64, for an accelerator), occlusion (the same, behind a bar), tiny and
tiny_occlusion (8 frames of 16 x 16, minutes on two CPU cores).
"""

from data_pipelines.clips import SimulatedClips
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.motion import Motion
from vdt.evals.physics import Physics
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig


def get_config(variant: str = "full") -> Config:
  sets = {"full": "collisions64", "occlusion": "occlusion64", "tiny": "collisions16", "tiny_occlusion": "occlusion16"}
  if variant not in sets:
    raise ValueError(f"unknown variant {variant!r}: choose from {', '.join(sets)}")
  hidden, tasks = "occlusion" in variant, ("generation", "prediction")
  config = Config(
    steps=100_000,
    data=SimulatedClips(name=sets[variant], frames=16, size=(64, 64), batch_size=64),
    model=TransformerConfig.sized("S", patch=(1, 4, 4), classes=12),
    diffusion=RectifiedFlow(),
    tasks=Tasks(generation=0.5, prediction=0.5),
    sampler=Sampler(method="heun", steps=32, churn=0.4),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    averages=(0.05, 0.1),
    topology="v5e:2x4",
    evals={
      "loss": ValLoss(tasks=tasks),
      "loss_combinatorial": ValLoss(tasks=tasks, split="combinatorial"),
      "loss_ood": ValLoss(tasks=tasks, split="ood"),
      "motion": Motion(),
      "physics": Physics(gravity=False, objects=1 if hidden else 2, occluder=hidden),
    },
  )
  if variant.startswith("tiny"):
    config.data = SimulatedClips(name=sets[variant], frames=8, size=(16, 16), batch_size=16)
    small = dict(pattern=(("space", "time"),), remat="dots", dtype="float32")
    config.model = TransformerConfig.sized("XS", patch=(1, 4, 4), classes=12, **small)
    config.diffusion = RectifiedFlow(shift=3.0, prediction="x0")
    config.ema = 0.99
    config.steps, config.log_every, config.save_every = 2_000, 10, 500
    config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
  return config
