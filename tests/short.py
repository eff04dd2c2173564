"""An experiment of seconds, for tests that start processes."""

from data_pipelines.clips import SimulatedClips
from vdt.config import AdamW, Config
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig


def get_config(variant: str = "") -> Config:
  """Variant `evals` has a validation loss every 10 steps."""
  config = Config(
    steps=10,
    data=SimulatedClips(name="sprites16", frames=8, size=(16, 16), batch_size=8),
    model=TransformerConfig(depth=2, width=16, heads=2, patch=(1, 4, 4), classes=24, dtype="float32"),
    diffusion=RectifiedFlow(),
    tasks=Tasks(generation=1.0, prediction=1.0, completion=1.0),
    sampler=Sampler(steps=2),
    optimizer=AdamW(lr=1e-3, warmup=5),
    log_every=2,
    save_every=5,
  )
  if variant == "evals":
    config.evals = {"loss": ValLoss(count=8, bins=1, every=10)}
  return config
