r"""Prompts to videos: a coloured shape drifts in a direction, as its caption says; also in pairs never seen together.

  vdt train --config experiments/text_bouncing.py:demo --workdir runs/text
  vdt sample --workdir runs/text --prompt "a red ring moves fast to the left" --guidance 3
  vdt sweep --config experiments/text_bouncing.py:demo --workdir runs/text_seeds --workers 2
  vdt evaluate --workdir runs/text_seeds/ARM --json experiments/results/text_bouncing/seed_N.json

Six colours, four shapes and four directions; captions of the split combinatorial have a pair of colour and direction,
or of colour and shape, that no training clip has. Captions are read by a tokenizer trained on them, and by a small T5
encoder trained along. Variants: full (16 frames of 64 x 64, bfloat16, for an accelerator), demo (8 frames of 16 x 16),
rates (the demo on longer clips, of which each frame is taken or every other one, as the frame rate that is told says),
tiny (the demo's shape, seconds, learns little).

Measured, demo, three seeds (results/text_bouncing), 35 and 42 minutes of one core each, which other work slowed, 256
samples of each, without a first frame: captions like those of training 1.00, 1.00, 1.00 (all of colour, shape and
direction right); held-out pairs 0.87 (0.82, 0.90), 1.00, 1.00: shape 0.88, 1.00, 1.00, direction 0.99, 1.00, 1.00,
colour 1.00 each. Real clips 1.00; with the captions of others 0.14 to 0.26 each, all three 0.00 and 0.03 to 0.04.

Measured, rates, one run, 23 minutes of a core that did other work as well (results/text_bouncing_rates.json: the last
row of its metrics), 256 samples of each: asked for 4 frames a second in the place of 8, an object goes 1.84 (1.80,
1.89) times as far a frame, 2.00 in real clips: 0.654 px (0.618, 0.693), real 0.643, and 0.355 px (0.330, 0.383), real
0.321. Captions like those of training 0.88 (0.84, 0.92), held-out pairs 0.84 (0.79, 0.88), at 8 a second.

Directions are learned from clips that go on from a given first frame, three in ten: of held-out pairs 1.00 and 0.95
were right after 1,000 steps (seeds 0 and 1, of 64). Without such clips it was 0.31 and 0.73 after 1,000 and 1,500
(seed 1); noisier training (`diffusion.mean=0.5`), which shows directions more often, learned shapes later: 0.30 after
1,000 steps, not 0.58.
"""

from data_pipelines.clips import SimulatedClips
from data_pipelines.tokenizer import Pieces
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks, resolution_shift
from vdt.evals.prompts import Prompts
from vdt.evals.speed import Speed
from vdt.evals.val_loss import ValLoss
from vdt.models import T5Config, TransformerConfig
from vdt.sweep import seeds

SAYS = (
  ("colour", ("red", "green", "blue", "yellow", "magenta", "cyan")),
  ("shape", ("star", "triangle", "ring", "cross")),
  ("direction", ("to the left", "to the right", "up", "down")),
)


def get_config(variant: str = "full") -> Config:
  config = Config(
    steps=100_000,
    data=SimulatedClips(name="drifting64", frames=16, size=(64, 64), batch_size=64),
    text=Pieces(length=24, vocabulary=512),
    model=TransformerConfig.sized("S", patch=(1, 4, 4), pattern=(("space", "text"), ("time",)), text=256, pooled=True),
    diffusion=RectifiedFlow(shift=resolution_shift(tokens=16 * 16 * 16, base_tokens=32 * 32)),
    tasks=Tasks(generation=0.8, single_frame=0.1, prediction=0.1),
    sampler=Sampler(method="heun", steps=16, guidance_scale=3.0),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    topology="v5e:2x4",
    evals={
      "loss": ValLoss(),
      "seen": Prompts(SAYS, count=256),
      "held_out": Prompts(SAYS, count=256, split="combinatorial"),
    },
  )
  config.model.encoder = T5Config(vocabulary=512, width=256, depth=4, heads=4, mlp=512)
  match variant:
    case "full":
      pass
    case "demo" | "rates" | "tiny":
      config.data = SimulatedClips(name="drifting16", frames=8, size=(16, 16), batch_size=16)
      small = dict(pattern=(("space", "time", "text"),), dtype="float32", text=64, pooled=True)
      config.model = TransformerConfig.sized("XS", patch=(1, 4, 4), **small)
      config.model.encoder = T5Config(512, width=64, depth=1, heads=2, head_size=32, mlp=128, dtype="float32")
      config.diffusion = RectifiedFlow(shift=3.0, prediction="x0")
      config.sampler = Sampler(method="heun", steps=16, churn=0.4, guidance_scale=2.0)
      config.tasks = Tasks(generation=0.7, first_frame=0.3)  # what a clip does after its first frame, its caption says
      config.ema = 0.99
      config.steps, config.log_every, config.save_every = 3_000, 20, 500
      config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
      if variant == "rates":
        config.data.name, config.data.strides, config.model.fps = "drifting16x15", (1, 2), True
        config.sampler.guidance = (("fps", 1.0),)  # more of it would be faster than was asked for
        config.steps = config.optimizer.decay = 1_500
        config.evals["speed"] = Speed()
      elif variant == "tiny":
        config.data.batch_size = 8
        config.model.width, config.model.heads = 32, 1
        config.steps, config.log_every, config.save_every = 20, 5, 10
        config.optimizer.decay = config.steps
        for each in config.evals.values():
          each.count = 8
          if isinstance(each, Prompts):
            each.judged_by = 96
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose full, demo, rates or tiny")
  return config


def sweep():
  """Three seeds."""
  return seeds(3)
