"""Published models as presets of the one transformer; what they were trained with is in their docstrings.

All take patches of 2 x 2 of latents with 4 channels (8 times smaller than the pixels, times 0.18215), put out noise and
variance, and were trained on 1000 timesteps of the linear schedule: `Gaussian(variance=True)`.
"""

from vdt.models.transformer import SIZES, TransformerConfig

PUBLISHED = dict(
  patch=(1, 2, 2), channels=4, qk_norm=False, given=False, variance=True, discrete=True, positions="late sincos"
)


def latte(size: str, **fields) -> TransformerConfig:
  """Latte S, B, L or XL (arXiv:2401.03048): space and time by turns. classes=101 for UCF-101."""
  return TransformerConfig(**{**SIZES[size], **PUBLISHED, "pattern": (("space",), ("time",)), **fields})


def vdt(size: str, **fields) -> TransformerConfig:
  """VDT S or L (arXiv:2305.13311): time attention without modulation, then space attention; its one class is 0."""
  sizes = {"S": SIZES["S"], "L": {**SIZES["XL"]}}
  own = dict(pattern=((("time", "projected"), "space"),), positions="sincos", classes=1)
  return TransformerConfig(**{**sizes[size], **PUBLISHED, **own, **fields})


def latte_text(**fields) -> TransformerConfig:
  """Latte-1 for text, as diffusers has it: adaLN-single, and attention to T5's embeddings of width 4096."""
  pattern = ((("space", "single"), ("text", "bare")), (("time", "single"),))
  return TransformerConfig(**{**SIZES["XL"], **PUBLISHED, "depth": 56, "pattern": pattern, "text": 4096, **fields})


PRESETS = {"latte": latte, "vdt": vdt, "latte-1": latte_text}
