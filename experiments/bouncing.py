r"""A ball under gravity, bouncing, in four colours: does a factorized transformer learn to move it?

  vdt train --config experiments/bouncing.py:demo --workdir runs/bouncing
  vdt train --config experiments/bouncing.py:tiny --workdir runs/tiny

Variants: full (16 frames of 64 x 64, bfloat16, for an accelerator), demo (8 frames of 16 x 16, minutes on two CPU
cores), tiny (the demo's shape, seconds, learns little), plans (the demo's, trained for all plans of what is given).

Measured, demo, one run on two CPU cores, its own 256 samples (results/bouncing_demo.json): intact 0.980, trajectory
residual 0.09 px, gravity 0.3505 px/frame^2 against 0.3500 on real clips. The sampler's steps and churn were chosen by
this metric on earlier checkpoints.

Measured, plans, one run of half an hour on one core that did other work as well (results/bouncing_plans.json), 64
held-out clips of 8 frames, the mean of 8 samples of each; mean squared errors where nothing is given, in [-1, 1]:

  given                     samples  copy-last  blend   better by (at least)  before pasting  seam
  the first frame           0.0507   0.0918     0.0918  0.0339                0.052           1.04
  the first and the last    0.0141   0.0690     0.0554  0.0360                0.053           0.98
  every fourth              0.0033   0.0549     0.0484  0.0396                0.052           0.98
  the first 3               0.0038   0.0785     0.0785  0.0664                0.053           0.99
  the last 3                0.0086   0.0788     0.0788  0.0617                0.051           0.98
  all but a hole            0.0149   0.0771     0.0677  0.0403                0.034           1.00

"Better by" is the lower end of a 95 % interval, against the better of copy-last and blend, clip by clip; "before
pasting" the root mean square of what the last step makes of given pixels, which are exact afterwards; "seam" the root
mean square of second differences across the border of what is given, over that of real clips.
"""

from data_pipelines.clips import SimulatedClips
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks, resolution_shift
from vdt.evals.fvd import FVD
from vdt.evals.fvmd import FVMD
from vdt.evals.leakage import Leakage
from vdt.evals.memorisation import Memorisation
from vdt.evals.motion import Motion
from vdt.evals.physics import Physics
from vdt.evals.plans import Plans
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig


def get_config(variant: str = "full") -> Config:
  config = Config(
    steps=100_000,
    data=SimulatedClips(name="bouncing64", frames=16, size=(64, 64), batch_size=64),
    model=TransformerConfig.sized("S", patch=(1, 4, 4), classes=4),
    diffusion=RectifiedFlow(shift=resolution_shift(tokens=16 * 16 * 16, base_tokens=32 * 32)),  # as an image of 32 x 32
    tasks=Tasks(generation=0.7, prediction=0.2, interpolation=0.1),
    sampler=Sampler(method="heun", steps=16),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    topology="v5e:2x4",
    evals={
      "loss": ValLoss(tasks=("generation", "prediction", "interpolation")),
      "motion": Motion(),
      "physics": Physics(count=256),  # of 64 samples a share of 0.97 is seen as 0.94 to 1
      "memorisation": Memorisation(),
    },
  )
  prediction = dict(task="prediction", given_frames=4)
  match variant:
    case "full":
      config.evals |= {
        "fvd": FVD(count=128),  # pip install -e '.[fvd]'
        "fvmd": FVMD(count=128),
        "leakage": Leakage(),
        **{f"physics_{split}": Physics(128, split=split, **prediction) for split in ("test", "combinatorial", "ood")},
      }
    case "demo" | "tiny" | "plans":
      config.data = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=16)
      # What "dots" saves in memory traffic is worth more than what it computes again.
      small = dict(pattern=(("space", "time"),), remat="dots", dtype="float32")
      config.model = TransformerConfig.sized("XS", patch=(1, 4, 4), classes=4, **small)
      config.diffusion = RectifiedFlow(shift=3.0, prediction="x0")  # the path of a bright ball is settled at t > 0.7
      config.sampler = Sampler(method="heun", steps=32, churn=0.4)  # without churn balls fade out for some frames
      config.ema = 0.99
      config.steps, config.log_every, config.save_every = 3_000, 10, 500
      config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
      if variant == "plans":
        each = dict(prediction=2.0, backward=1.0, interpolation=1.0, single_frame=1.0, keyframes=1.0, completion=1.0)
        config.tasks = Tasks(generation=1.0, **each)
        config.evals = {"plans": Plans()}
      if variant == "tiny":
        config.model.width, config.model.heads = 32, 1
        config.data.batch_size = 8
        config.steps, config.log_every, config.save_every = 20, 5, 10
        config.optimizer.decay = config.steps
        for each in config.evals.values():
          each.count = 8
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose full, demo, plans or tiny")
  return config
