"""Makes diffusers_latte_tiny.npz: diffusers' LatteTransformer3DModel with random weights, and what it makes of noise.

  python tests/parity/make_diffusers_latte.py    (needs extra [bench])

w/KEY: the state dict. in/x (b c f h w), in/t timesteps, in/text (b l e), in/text_mask (b l), 1 = there. out: with all
of the text; out_masked: with what the mask leaves, which this version has to be given once for each frame.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from diffusers import LatteTransformer3DModel

CONFIG = dict(
  num_attention_heads=2,
  attention_head_dim=16,
  in_channels=4,
  out_channels=8,
  num_layers=2,
  cross_attention_dim=32,
  caption_channels=24,
  sample_size=8,
  patch_size=2,
  attention_bias=True,
  activation_fn="gelu-approximate",
  norm_type="ada_norm_single",
  num_embeds_ada_norm=1000,
  norm_elementwise_affine=False,
  norm_eps=1e-6,
  video_length=4,
)

if __name__ == "__main__":
  torch.manual_seed(0)
  model = LatteTransformer3DModel(**CONFIG).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(0.1 * torch.randn(parameter.shape))
    x, text, t = torch.randn(2, 4, 4, 8, 8), torch.randn(2, 5, 24), torch.tensor([3, 777])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    out = model(x, timestep=t, encoder_hidden_states=text).sample
    each = mask.repeat_interleave(CONFIG["video_length"], 0).bool()
    masked = model(x, timestep=t, encoder_hidden_states=text, encoder_attention_mask=each).sample
  found = {f"w/{key}": value.numpy() for key, value in model.state_dict().items()}
  found |= {"in/x": x.numpy(), "in/t": t.numpy(), "in/text": text.numpy()}
  found |= {"in/text_mask": mask.numpy(), "out": out.numpy(), "out_masked": masked.numpy()}
  found["versions"] = np.array([f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch")])
  np.savez_compressed(Path(__file__).with_name("diffusers_latte_tiny.npz"), **found)
  print(float(out.abs().max()), float((out - masked).abs().max()))
