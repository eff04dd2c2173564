r"""Published architectures and the diffusion they were trained with: to import their weights, or to train them anew.

  vdt import ucf101.pt --config experiments/published.py:latte-xl-ucf101 --workdir runs/latte
  vdt sample --workdir runs/latte --count 4 --config.autoencoder=SD_VAE
  vdt export --workdir runs/latte --format latte
  vdt train --config experiments/published.py:tiny --workdir runs/published

Variants: latte-s, latte-b, latte-l, latte-xl (without classes), latte-xl-ucf101 (101 classes), vdt-s, vdt-l, latte-1
(text, in diffusers' layout), all of 16 frames of latents of 32 x 32, but for latte-1's 64 x 64; tiny, tiny-vdt and
tiny-latte-1: the three in small, on pixels of simulated clips, the last without its text. SD_VAE is a folder of
diffusers' AutoencoderKL (stabilityai/sd-vae-ft-ema, say), of which their latents are: the large ones are trained on
what `vdt encode` makes by it of clips of yours in data/own. Measured: nothing yet.
"""

from data_pipelines.clips import Clips, SimulatedClips
from data_pipelines.latents import Latents
from vdt.config import AdamW, Config
from vdt.diffusion import Gaussian, Sampler, Tasks
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig, presets

MODELS = {
  "latte-s": lambda: presets.latte("S"),
  "latte-b": lambda: presets.latte("B"),
  "latte-l": lambda: presets.latte("L"),
  "latte-xl": lambda: presets.latte("XL"),
  "latte-xl-ucf101": lambda: presets.latte("XL", classes=101),
  "vdt-s": lambda: presets.vdt("S"),
  "vdt-l": lambda: presets.vdt("L"),
  "latte-1": lambda: presets.latte_text(),
}


def get_config(variant: str = "latte-xl") -> Config:
  config = Config(
    steps=1_000_000,
    data=Latents(
      name="own_latents", frames=16, size=(32, 32), batch_size=40, source=Clips("own", 16, (256, 256), batch_size=40)
    ),
    model=TransformerConfig(),
    diffusion=Gaussian(variance=True),
    tasks=Tasks(),
    sampler=Sampler(method="dpm++", steps=25),
    optimizer=AdamW(lr=1e-4, warmup=0),
    topology="v5p:2x2x1",
  )
  small = dict(depth=2, width=32, heads=2, channels=3, patch=(1, 2, 2), dtype="float32")
  match variant:
    case "tiny" | "tiny-vdt" | "tiny-latte-1":
      config.data = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=8)
      config.model = {
        "tiny": lambda: presets.latte("S", **small, classes=4),
        "tiny-vdt": lambda: presets.vdt("S", **small, classes=4),
        "tiny-latte-1": lambda: presets.latte_text(**small, text=8),
      }[variant]()
      config.sampler.steps = 8
      config.ema = 0.99
      config.optimizer = AdamW(lr=1e-3, warmup=5)
      config.steps, config.log_every, config.save_every = 20, 5, 10
      config.evals = {"loss": ValLoss(count=8)}
    case "latte-1":
      config.model = MODELS[variant]()
      config.model.remat, config.data.batch_size = "full", 16
      config.data.size, config.data.source.size = (64, 64), (512, 512)
    case _ if variant in MODELS:
      config.model = MODELS[variant]()
      config.model.remat = "dots"
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose from {', '.join(MODELS)}, tiny, tiny-vdt, tiny-latte-1")
  return config
