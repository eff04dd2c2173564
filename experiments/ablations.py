r"""What is worth its cost? Ablations of the attention layout, and of how ablations are read.

  vdt sweep --config experiments/ablations.py --workdir runs/layouts --workers 2
  vdt compare runs/layouts
  vdt sweep --config experiments/ablations.py --arms pairing --workdir runs/pairing --workers 2

Measured (experiments/results/layouts, three seeds): at equal cost the sequential layout is the best of those that see
time (object intact 0.97, interleaved 0.84, joint 0.94; trajectory residual 0.30, 0.35, 0.40 px), and without time
attention flicker is three times as high and no trajectory is left (1.59 px). Pairing runs by seed is worth six to
seven times as many runs in the held-out loss of two such ablations (experiments/results/pairing).

Variants: full (16 frames of 64 x 64, for an accelerator), tiny (8 frames of 16 x 16, a ball under gravity, minutes on a
CPU core), short (the same with less of everything, for studies of many runs).
"""

from data_pipelines.clips import SimulatedClips
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.motion import Motion
from vdt.evals.physics import Physics
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig
from vdt.sweep import BASE, Arm, chainit, product, seeds, vary


def get_config(variant: str = "full") -> Config:
  config = Config(
    steps=100_000,
    data=SimulatedClips(name="bouncing64", frames=16, size=(64, 64), batch_size=64),
    model=TransformerConfig.sized("S", patch=(1, 4, 4), classes=4, pattern=(("time", "space"),), remat="dots"),
    diffusion=RectifiedFlow(shift=3.0, prediction="x0"),
    tasks=Tasks(generation=0.7, prediction=0.3),
    sampler=Sampler(method="heun", steps=32, churn=0.4),
    optimizer=AdamW(lr=2e-4, warmup=1_000),
    topology="v5e:2x4",
    evals={
      "loss": ValLoss(tasks=("generation", "prediction"), count=128, every=10_000),
      "motion": Motion(),
      "physics": Physics(count=128),
    },
  )
  if variant == "full":
    return config
  if variant not in ("tiny", "short"):
    raise ValueError(f"unknown variant {variant!r}: choose full, tiny or short")
  config.data = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=16)
  small = dict(pattern=(("time", "space"),), remat="dots", dtype="float32")
  config.model = TransformerConfig(depth=3, width=64, heads=2, patch=(1, 4, 4), classes=4, **small)
  config.ema = 0.99
  config.steps, config.log_every, config.save_every, config.keep = 2_000, 10, 500, 1
  config.evals["loss"].every = 500
  if variant == "short":
    config.model.depth, config.model.width, config.model.heads = 2, 32, 1
    config.data.batch_size, config.sampler.steps = 8, 4
    config.steps, config.save_every = 200, 100
    config.evals = {"loss": ValLoss(tasks=("generation", "prediction"))}
  config.optimizer = Muon(lr=2e-3, warmup=50, decay=config.steps, scale=0.5)
  return config


def sweep():
  """Where attention looks, at equal cost: depths are such that the forward passes of :tiny are within 6 % in FLOPs."""
  layout = lambda name, depth, *pattern: Arm(name, {"model.pattern": pattern, "model.depth": depth})
  layouts = [
    layout("sequential", 3, ("time", "space")),
    layout("interleaved", 4, ("space",), ("time",)),
    layout("joint", 3, ("joint",)),
    layout("no time", 4, ("space",)),
  ]
  return product([Arm("", {"variant": "tiny"})], layouts, seeds(3))


def pairing():
  """Three real differences, many times, to see what pairing is worth; the base once more, to see none."""
  arms = chainit(
    [BASE],
    vary("optimizer.lr", [1e-3]),
    vary("model.pattern", joint=(("joint",),)),
    vary("ema", [0.95]),
  )
  runs = chainit(product(arms, seeds(16)), product([Arm("again")], seeds(16, first=16)))
  return product([Arm("", {"variant": "short"})], runs)
