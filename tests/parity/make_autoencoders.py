"""Makes autoencoder_kl.npz and autoencoder_wan.npz: diffusers' autoencoders with random weights, and what they make.

  python tests/parity/make_autoencoders.py    (needs extra [bench])

config: their config.json. w/KEY: the state dict, as float16 holds it. in (b f h w c) in [-1, 1]; mean: of the latents,
as they are there; z, and out, what is decoded of it. AutoencoderKL takes each frame as an image.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan

KL = dict(
  block_out_channels=(8, 16, 16),
  down_block_types=("DownEncoderBlock2D",) * 3,
  up_block_types=("UpDecoderBlock2D",) * 3,
  layers_per_block=1,
  norm_num_groups=4,
  latent_channels=4,
)
WAN = dict(
  base_dim=4,
  z_dim=4,
  dim_mult=[1, 2, 2],
  num_res_blocks=1,
  temperal_downsample=[True, True],
  latents_mean=[0.1, -0.2, 0.3, 0.0],
  latents_std=[1.5, 0.5, 2.0, 1.0],
)


def randomised(model):
  """Weights that keep signals at their size, and pixels below it; norms are not one and biases not zero."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
      scale *= 0.2 if name == "decoder.conv_out.weight" else 1.0  # Wan's pixels are clipped
      value = scale * torch.randn(parameter.shape)
      value += 1.0 if "gamma" in name or ("norm" in name and name.endswith("weight")) else 0.0
      parameter.copy_(value.half().float())
  return model.eval()


def frames_first(x):
  return x.permute(0, 2, 3, 4, 1).numpy()


def autoencoder_kl():
  model, images, z = randomised(AutoencoderKL(**KL)), torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 4, 4, 6)
  with torch.no_grad():
    mean, out = model.encode(images).latent_dist.mean, model.decode(z).sample
  return model, [frames_first(x[:, :, None]) for x in (images, mean, z, out)]


def autoencoder_wan():
  model, video, z = (
    randomised(AutoencoderKLWan(**WAN)),
    torch.rand(1, 3, 13, 16, 24) * 2 - 1,
    torch.randn(1, 4, 4, 4, 6),
  )
  with torch.no_grad():
    mean, out = model.encode(video).latent_dist.mean, model.decode(z).sample
  return model, [frames_first(x) for x in (video, mean, z, out)]


if __name__ == "__main__":
  for make in (autoencoder_kl, autoencoder_wan):
    torch.manual_seed(0)
    model, arrays = make()
    found = {f"w/{key}": value.numpy().astype(np.float16) for key, value in model.state_dict().items()}
    found |= dict(zip(("in", "mean", "z", "out"), arrays))
    found["config"] = np.array(model.to_json_string())
    found["versions"] = np.array([f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch")])
    path = Path(__file__).with_name(f"{make.__name__}.npz")
    np.savez_compressed(path, **found)
    print(path.name, path.stat().st_size, [(x.shape, float(abs(x).max())) for x in arrays])
