r"""Do pictures teach videos? Few clips, many single frames, equal compute.

  for seed in 0 1 2; do
    vdt train --config experiments/images.py:images --workdir runs/images/$seed \
      --config.seed=$seed --config.data.seed=$seed
  done
  vdt sweep --config experiments/images.py --workdir runs/images_help --workers 2
  vdt compare runs/images_help --align share --base '*-64:scratch-64' --base '*-512:scratch-512'

Balls under gravity: pictures are the frames of 6,000 clips, videos are 64 or 512 of these. Arms: `scratch`; `all` and
`time`, which go on from the model of pictures of the same seed, with all parameters or with the attentions over time
alone; `joint`, clips and pictures in turn. As many clips are looked at by scratch and joint as by the others, the
pictures counted in (8 of them are a clip); what a step costs in attention over time is not counted.

Variants: full (16 frames of 64 x 64, for an accelerator: joint), images (the model of pictures), ARM-CLIPS (say
time-64; two minutes of a CPU core), tiny (joint, seconds).

Measured, three seeds, 24 runs in 22 minutes on two threads of a core (experiments/results/images_help), 77 to 138 s
each from its start to its report, after 39 to 47 s of pictures for all and time; 95 % intervals of effects:

  held-out loss  scratch  joint                      all                        time
  64 clips       0.282    0.267 (-0.031, +0.001)     0.277 (-0.039, +0.027)     0.550 (+0.195, +0.341)
  512 clips      0.287    0.264 (-0.067, +0.020)     0.277 (-0.109, +0.089)     0.551 (+0.240, +0.288)

In two minutes pictures do not surely help, and attentions over time alone are not enough. With 800 steps, and 32 of
the sampler (results/images_help_800; 155 to 171 s of steps) joint surely does with 64 clips: 0.181 to 0.161
(-0.027, -0.013); with 512 it does not (-0.039, +0.024), nor does all.
"""

from data_pipelines.clips import SimulatedClips
from data_pipelines.mixture import Buckets
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.motion import Motion
from vdt.evals.physics import Physics
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig
from vdt.sweep import Arm, chainit, product, seeds, zipit

STEPS = 480  # of 16 clips, in all
SHARE = 0.4  # of them are of pictures, where there are any
ARMS, COUNTS = ("scratch", "all", "time", "joint"), (64, 512)
PICTURES = [f"runs/images/{seed}" for seed in range(3)]  # models of them


def get_config(variant: str = "full") -> Config:
  videos = SimulatedClips(name="bouncing64", frames=16, size=(64, 64), batch_size=64)
  pictures = SimulatedClips(name="bouncing64", frames=1, size=(64, 64), batch_size=1024)
  pattern = (("space", "time"),)
  config = Config(
    steps=100_000,
    data=Buckets((videos, pictures), (1 - SHARE, SHARE)),
    model=TransformerConfig.sized(
      "S", patch=(1, 4, 4), pattern=pattern, classes=4, positions="rope+places", remat="dots"
    ),
    diffusion=RectifiedFlow(shift=3.0, prediction="x0"),
    tasks=Tasks(),
    sampler=Sampler(method="heun", steps=32, churn=0.4),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    topology="v5e:2x4",
    evals={"loss": ValLoss(count=128), "motion": Motion(), "physics": Physics(count=64)},
  )
  if variant == "full":
    return config
  arm, _, count = variant.partition("-")
  limit = int(count) if count.isdecimal() else 0
  if variant not in ("images", "tiny") and not (arm in ARMS and limit):
    raise ValueError(f"unknown variant {variant!r}: choose full, images, tiny or ARM-CLIPS, of {', '.join(ARMS)}")
  small = dict(size=(16, 16), name="bouncing16")
  videos = SimulatedClips(frames=8, batch_size=16, limit=limit, **small)
  pictures = SimulatedClips(frames=1, batch_size=128, **small)
  config.model = TransformerConfig(3, 64, 2, (1, 4, 4), pattern, classes=4, positions="rope+places", dtype="float32")
  config.ema = 0.99
  config.steps, config.log_every, config.save_every, config.keep = STEPS, 20, 160, 1
  config.sampler.steps = 16
  match arm:
    case "images":
      config.data, config.steps, config.evals = pictures, int(SHARE * STEPS), {"loss": ValLoss(count=128)}
      config.model.pattern = (("space",),)
    case "scratch" | "all" | "time":
      config.data = videos
      if arm != "scratch":
        config.steps, config.init_from = STEPS - int(SHARE * STEPS), PICTURES[0]
      if arm == "time":
        config.freeze = "^(?!.*attention/1/)"
    case "joint":
      config.data = Buckets((videos, pictures), (1 - SHARE, SHARE))
    case "tiny":
      videos.batch_size, pictures.batch_size, videos.limit = 4, 8, 64
      config.data = Buckets((videos, pictures), (1 - SHARE, SHARE))
      config.steps, config.log_every, config.save_every, config.sampler.steps = 20, 5, 10, 4
      config.topology = "v5e:2x2"
      for each in config.evals.values():
        each.count = 8
  config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
  return config


def sweep():
  """Each arm with so many clips, three times."""
  arms = lambda names: [Arm(f"{arm}-{count}", {"variant": f"{arm}-{count}"}) for count in COUNTS for arm in names]
  on = zipit(seeds(3), [Arm("", {"init_from": path}) for path in PICTURES])
  return chainit(product(arms(("scratch", "joint")), seeds(3)), product(arms(("all", "time")), on))
