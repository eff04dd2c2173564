"""Makes diffusers_latte_tiny.npz: diffusers' LatteTransformer3DModel with random weights, and what it makes of noise.

  python tests/parity/make_diffusers_latte.py    (needs extra [bench])

w/KEY: the state dict. in/x (b c f h w), in/t timesteps, in/text (b l e). A mask of the text is left out: this version
does not repeat it for each frame, and fails.
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
    out = model(x, timestep=t, encoder_hidden_states=text).sample
  found = {f"w/{key}": value.numpy() for key, value in model.state_dict().items()}
  found |= {"in/x": x.numpy(), "in/t": t.numpy(), "in/text": text.numpy()}
  found["out"] = out.numpy()
  found["versions"] = np.array([f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch")])
  np.savez_compressed(Path(__file__).with_name("diffusers_latte_tiny.npz"), **found)
  print(float(out.abs().max()))
