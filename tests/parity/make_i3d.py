"""Makes i3d.npz: I3D in PyTorch with the weights that FVD uses, on noise; and cricket.jpg.

  python tests/parity/make_i3d.py [CRICKET.gif]    (needs extras [bench] and [fvd])

The input is `numpy.random.default_rng(0).uniform(-1, 1, shape)`, (b f h w c), out its logits. cricket.jpg
holds 16 frames of v_CricketShot_g04_c01 of github.com/google-deepmind/kinetics-i3d (Apache-2.0), one below the other.
"""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch.nn import functional

from vdt.evals import i3d

HERE = Path(__file__).parent
SHAPE = (1, 16, 224, 224, 3)


def padded(x: torch.Tensor, window: tuple[int, ...], stride: tuple[int, ...], value: float) -> torch.Tensor:
  """As TensorFlow pads for "SAME": the odd one behind."""
  sides = []
  for size, length, step in zip(x.shape[2:], window, stride):
    total = max((-(-size // step) - 1) * step + length - size, 0)
    sides = [total // 2, total - total // 2, *sides]
  return functional.pad(x, sides, value=value)


def conv(x: torch.Tensor, layer: dict, stride: int = 1) -> torch.Tensor:
  kernel = torch.from_numpy(layer["kernel"]).permute(4, 3, 0, 1, 2)
  x = functional.conv3d(padded(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
  mean, variance, bias = (torch.from_numpy(layer[name]) for name in ("mean", "var", "bias"))
  return functional.relu(functional.batch_norm(x, mean, variance, None, bias, eps=1e-3))


def pool(x: torch.Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
  return functional.max_pool3d(padded(x, window, stride, float("-inf")), window, stride)


def mixed(x: torch.Tensor, layers: dict) -> torch.Tensor:
  branches = [conv(x, layers["Branch_0/Conv3d_0a_1x1"])]
  for number in (1, 2):
    inner = conv(x, layers[f"Branch_{number}/Conv3d_0a_1x1"])
    branches.append(conv(inner, layers[f"Branch_{number}/Conv3d_0b_3x3"]))
  branches.append(conv(pool(x, (3, 3, 3), (1, 1, 1)), layers["Branch_3/Conv3d_0b_1x1"]))
  return torch.cat(branches, 1)


def logits(params: dict, x: torch.Tensor) -> torch.Tensor:
  """x (b c f h w)."""
  x = pool(conv(x, params["Conv3d_1a_7x7"], 2), (1, 3, 3), (1, 2, 2))
  x = conv(conv(x, params["Conv3d_2b_1x1"]), params["Conv3d_2c_3x3"])
  x = pool(x, (1, 3, 3), (1, 2, 2))
  for name in ("3b", "3c"):
    x = mixed(x, params[f"Mixed_{name}"])
  x = pool(x, (3, 3, 3), (2, 2, 2))
  for name in ("4b", "4c", "4d", "4e", "4f"):
    x = mixed(x, params[f"Mixed_{name}"])
  x = pool(x, (2, 2, 2), (2, 2, 2))
  for name in ("5b", "5c"):
    x = mixed(x, params[f"Mixed_{name}"])
  x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
  last = params["Logits/Conv3d_0c_1x1"]
  kernel = torch.from_numpy(last["kernel"]).permute(4, 3, 0, 1, 2)
  return functional.conv3d(x, kernel, torch.from_numpy(last["bias"])).mean((2, 3, 4))


if __name__ == "__main__":
  x = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
  out = logits(i3d.weights(), torch.from_numpy(x).permute(0, 4, 1, 2, 3))
  versions = np.array([f"torch {importlib.metadata.version('torch')}"])
  np.savez(HERE / "i3d.npz", out=out.numpy(), shape=SHAPE, versions=versions)
  print(out.abs().max())
  if len(sys.argv) > 1:
    with Image.open(sys.argv[1]) as film:
      frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    Image.fromarray(np.concatenate(frames[:16])).save(HERE / "cricket.jpg", quality=85)
