"""Makes vdt_tiny.npz: a small VDT in PyTorch with random weights, and what it makes of noise; and latte_tiny*.pt.

  python tests/parity/make_vdt.py    (needs extra [bench])

Written from a description of the architecture (arXiv:2305.13311) and of its state dict, not from its code, which is not
free. The parts that it shares with Latte are checked on latte_tiny_*.npz, which Latte's own code made. latte_tiny.pt is
as Latte's trainers save, with the average under the names that torch.compile makes; latte_tiny_args.pt has arguments
beside.
"""

import argparse
import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

HERE = Path(__file__).parent
WIDTH, DEPTH, HEADS, FRAMES, SIDE, PATCH, CHANNELS = 48, 2, 3, 4, 8, 2, 4


def axis_table(count: np.ndarray, width: int) -> np.ndarray:
  angles = np.outer(count, 1 / 10000 ** (np.arange(width // 2) / (width / 2)))
  return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def picture_table(side: int, width: int) -> np.ndarray:
  row, column = np.divmod(np.arange(side**2), side)
  return np.concatenate([axis_table(column, width // 2), axis_table(row, width // 2)], 1)


def linear(x: torch.Tensor, w: dict, name: str) -> torch.Tensor:
  return functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def attention(x: torch.Tensor, w: dict, name: str, heads: int) -> torch.Tensor:
  b, n, d = x.shape
  q, k, v = linear(x, w, f"{name}.qkv").reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
  weights = ((q @ k.transpose(-1, -2)) * (d // heads) ** -0.5).softmax(-1)
  return linear((weights @ v).transpose(1, 2).reshape(b, n, d), w, f"{name}.proj")


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
  return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def zero_block(x: torch.Tensor, c: torch.Tensor, w: dict, name: str, heads: int) -> torch.Tensor:
  """adaLN-Zero: attention over the second axis of x (b n d), then the MLP."""
  shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
    linear(functional.silu(c), w, f"{name}.adaLN_modulation.1").unsqueeze(1).chunk(6, -1)
  )
  x = x + gate * attention(modulated(x, shift, scale), w, f"{name}.attn", heads)
  hidden = functional.gelu(linear(modulated(x, mlp_shift, mlp_scale), w, f"{name}.mlp.fc1"), approximate="tanh")
  return x + mlp_gate * linear(hidden, w, f"{name}.mlp.fc2")


def network(kind: str, w: dict, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None, heads: int) -> torch.Tensor:
  """x (b f c h w), timesteps t (b,), labels y (b,)."""
  b, f, _, h, _ = x.shape
  angles = t[:, None].float() * torch.exp(-np.log(10000.0) * torch.arange(128) / 128)
  waves = torch.cat([angles.cos(), angles.sin()], -1)
  c = linear(functional.silu(linear(waves, w, "t_embedder.mlp.0")), w, "t_embedder.mlp.2")
  if y is not None:
    c = c + w["y_embedder.embedding_table.weight"][y]
  p = w["x_embedder.proj.weight"].shape[-1]
  x = functional.conv2d(x.flatten(0, 1), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=p)
  x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
  n, d = x.shape[1:]
  by_time = lambda x: x.reshape(b, f, n, d).transpose(1, 2).reshape(b * n, f, d)
  by_space = lambda x: x.reshape(b, n, f, d).transpose(1, 2).reshape(b * f, n, d)
  each = lambda c, count: c.repeat_interleave(count, 0)
  depth = len({key.split(".")[1] for key in w if key.startswith("blocks.")})
  if kind == "vdt":
    x = by_space(by_time(x) + w["time_embed"])
  for i in range(depth):
    if kind == "vdt":
      time = by_time(x)
      name = f"blocks.{i}.temporal"
      normed = functional.layer_norm(time, (d,), w[f"{name}_norm1.weight"], w[f"{name}_norm1.bias"], eps=1e-5)
      x = by_space(time + linear(attention(normed, w, f"{name}_attn", heads), w, f"{name}_fc"))
      x = zero_block(x, each(c, f), w, f"blocks.{i}", heads)
    elif i % 2 == 0:
      x = zero_block(x, each(c, f), w, f"blocks.{i}", heads)
    else:
      time = by_time(x) + (w["temp_embed"] if i == 1 else 0)
      x = by_space(zero_block(time, each(c, n), w, f"blocks.{i}", heads))
  shift, scale = linear(functional.silu(each(c, f)), w, "final_layer.adaLN_modulation.1").unsqueeze(1).chunk(2, -1)
  x = linear(modulated(x, shift, scale), w, "final_layer.linear")
  side = h // p
  return x.reshape(b, f, side, side, p, p, -1).permute(0, 1, 6, 2, 4, 3, 5).reshape(b, f, -1, h, h)


def vdt_weights() -> dict[str, torch.Tensor]:
  """Random, of VDT's names and shapes; its tables of positions are fixed."""
  d, shapes = WIDTH, {}

  def dense(name: str, inputs: int, outputs: int) -> None:
    shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

  shapes |= {"x_embedder.proj.weight": (d, CHANNELS, PATCH, PATCH), "x_embedder.proj.bias": (d,)}
  dense("t_embedder.mlp.0", 256, d)
  dense("t_embedder.mlp.2", d, d)
  shapes["y_embedder.embedding_table.weight"] = (2, d)
  for i in range(DEPTH):
    name = f"blocks.{i}"
    shapes |= {f"{name}.temporal_norm1.weight": (d,), f"{name}.temporal_norm1.bias": (d,)}
    for kind in ("temporal_attn", "attn"):
      dense(f"{name}.{kind}.qkv", d, 3 * d)
      dense(f"{name}.{kind}.proj", d, d)
    dense(f"{name}.temporal_fc", d, d)
    dense(f"{name}.mlp.fc1", d, 4 * d)
    dense(f"{name}.mlp.fc2", 4 * d, d)
    dense(f"{name}.adaLN_modulation.1", d, 6 * d)
  dense("final_layer.linear", d, PATCH**2 * 2 * CHANNELS)
  dense("final_layer.adaLN_modulation.1", d, 2 * d)
  w = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
  table = lambda array: torch.from_numpy(array).float()[None]
  w["pos_embed"] = table(picture_table(SIDE // PATCH, d))
  w["time_embed"] = table(axis_table(np.arange(FRAMES), d))
  return w


def check(name: str, heads: int) -> dict[str, torch.Tensor]:
  """The weights of a golden file of Latte's, once what is shared with it is right."""
  stored = {key: torch.from_numpy(value) for key, value in np.load(HERE / f"{name}.npz").items()}
  w = {key[2:]: value for key, value in stored.items() if key.startswith("w/")}
  assert torch.equal(
    w["pos_embed"][0],
    torch.from_numpy(picture_table(int(w["pos_embed"].shape[1] ** 0.5), w["pos_embed"].shape[2])).float(),
  )
  out = network("latte", w, stored["in/x"], stored["in/t"], stored.get("in/y"), heads)
  apart = float((out - stored["out"]).abs().max())
  print(name, apart)
  assert apart < 1e-5
  return w


if __name__ == "__main__":
  torch.manual_seed(0)
  check("latte_tiny_class", 4)
  latte = check("latte_tiny_uncond", 3)
  w = vdt_weights()
  x, t = torch.randn(2, FRAMES, CHANNELS, SIDE, SIDE), torch.tensor([3, 777])
  out = network("vdt", w, x, t, torch.zeros(2, dtype=torch.long), HEADS)
  found = {f"w/{key}": value.numpy() for key, value in w.items()}
  found |= {"in/x": x.numpy(), "in/t": t.numpy(), "out": out.numpy()}
  found["versions"] = np.array([f"torch {importlib.metadata.version('torch')}"])
  np.savez_compressed(HERE / "vdt_tiny.npz", **found)
  print("vdt_tiny", float(out.abs().max()))
  average = {f"_orig_mod.{key}": 1.5 * value for key, value in latte.items()}
  torch.save({"model": latte, "ema": average}, HERE / "latte_tiny.pt")
  few = {key: latte[key] for key in ("x_embedder.proj.weight", "x_embedder.proj.bias")}
  torch.save({"ema": few, "args": argparse.Namespace(a=1)}, HERE / "latte_tiny_args.pt")
