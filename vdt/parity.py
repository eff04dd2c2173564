"""What a format's other side makes of the same weights and input: the largest differences, stage by stage."""

import dataclasses
import pathlib
from importlib import metadata
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from vdt import conditions, stablehlo, weights
from vdt.checkpoint import shapes
from vdt.config import Config
from vdt.models import PRESETS, TransformerConfig
from vdt.sharding import path_name

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "parity"
"""Arrays that the other implementations made, in a checkout of the sources."""
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}
"""The largest difference that is rounding, in values of up to 1, or of the largest value."""
TINY = {
  "latte_tiny_class": ("latte", PRESETS["latte"]("S", depth=4, width=64, heads=4, classes=10, dtype="float32")),
  "latte_tiny_uncond": ("latte", PRESETS["latte"]("S", depth=2, width=48, heads=3, dtype="float32")),
  "vdt_tiny": ("vdt", PRESETS["vdt"]("S", depth=2, width=48, heads=3, dtype="float32")),
  "diffusers_latte_tiny": ("diffusers", PRESETS["latte-1"](depth=4, width=32, heads=2, text=24, dtype="float32")),
}


def tree(like: Any, arrays: dict[str, np.ndarray]) -> Any:
  """Arrays by path as a tree of parameters like `like`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(arrays[path_name(path)]), like)


def golden(name: str) -> tuple[np.ndarray, np.ndarray]:
  """Our output and theirs (b f h w o), for the weights and the input of a golden file. FileNotFoundError without it."""
  with np.load(GOLDEN / f"{name}.npz") as file:
    theirs = {key: file[key] for key in file.files}
  layout, model = TINY[name]
  x = theirs["in/x"] if layout != "diffusers" else theirs["in/x"].swapaxes(1, 2)  # b f c h w
  x = rearrange(x, "b f c h w -> b f h w c")
  cells = model.cells(x.shape[1], x.shape[2:4])
  network = model.build(x.shape[1], x.shape[2:4], {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  held = {key[2:]: value for key, value in theirs.items() if key.startswith("w/")}
  ours = weights.adopt(layout, model, cells, shapes(like), held, name)
  t = np.broadcast_to((theirs["in/t"][:, None] + 1) / 1000, x.shape[:2]).astype(np.float32)
  cond = {"given": np.zeros((*x.shape[:4], 1), np.float32)}
  if "in/y" in theirs:
    cond |= {"label": theirs["in/y"], "null": {"label": theirs["in/y"] == model.classes}}
  elif model.classes:
    cond["label"] = np.zeros(len(x), np.int32)
  if model.text:
    cond |= {"text": theirs["in/text"], "text_seen": theirs["in/text_mask"] > 0}
  pattern = "b c f h w -> b f h w c" if layout == "diffusers" else "b f c h w -> b f h w c"
  return np.asarray(jax.jit(network.apply)(tree(like, ours), x, t, cond)), rearrange(
    theirs["out_masked" if model.text else "out"], pattern
  )


def sample_input(config: Config) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
  """One clip of noise of the config's shape, a time, and a condition of each kind."""
  rng, model = np.random.default_rng(0), config.model
  x = rng.standard_normal((1, config.data.frames, *config.data.size, model.channels)).astype(np.float32)
  cond = {**conditions.absent(config, 1), "given": np.zeros((*x.shape[:4], 1), np.float32)}
  cond["null"] = {name: np.zeros(1, bool) for name in model.conditions}
  if model.text and "text" not in cond:
    cond |= {"text": rng.standard_normal((1, 7, model.text)).astype(np.float32), "text_seen": np.ones((1, 7), bool)}
  return x, np.full(x.shape[:2], 0.5, np.float32), cond


def report(format: str, config: Config, ours: dict[str, np.ndarray], theirs: Any) -> str:
  """What the other side makes of weights that come in or go out, against ours: text for the terminal.

  ours: our arrays by path. theirs: theirs by name, or the folder of a program. diffusers' model runs where diffusers is
  installed, an exported program always. Otherwise it is the network that is compared, with the original's golden
  arrays, where they are. ValueError where they are further apart than rounding takes them.
  """
  limit = LIMITS[config.model.dtype if format == "stablehlo" else "float32"]
  if format == "stablehlo":
    title, errors = "the program, loaded again, against the network", program_errors(config, theirs)
  elif format == "diffusers" and (version := installed("diffusers")) and installed("torch"):
    title, errors = f"diffusers {version} against ours", diffusers_errors(config, ours, theirs)
  elif format in ("orbax", "safetensors", "plain"):
    return "parity: the layout is our own, there is no other side"
  else:
    names = [name for name, (layout, _) in TINY.items() if layout == format and (GOLDEN / f"{name}.npz").exists()]
    if not names:
      return f"parity: not checked: {format}'s own code is not installed, and no golden arrays are in {GOLDEN}"
    title = f"{format}'s own code is not installed; of its golden arrays, not of these weights"
    errors = {name: difference(*golden(name)) for name in names}
  lines = [f"  {name:24} {error:.2g} of {size:.3g}" for name, (error, size) in errors.items()]
  text = "\n".join([f"parity: {title}, the largest differences:", *lines])
  if any(not error <= limit * max(size, 1.0) for error, size in errors.values()):  # NaN as well
    raise ValueError(f"the two sides disagree by more than {limit:g}: {text}")
  return text


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
  """The largest difference, and the largest value."""
  return float(np.abs(np.asarray(ours, np.float32) - theirs).max()), float(np.abs(theirs).max())


def installed(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ""


def diffusers_config(config: Config) -> dict[str, Any]:
  """config.json of diffusers' LatteTransformer3DModel for a model that `weights.refuse` lets pass."""
  model: TransformerConfig = config.model
  return {
    "_class_name": "LatteTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": model.width // model.heads,
    "caption_channels": model.text,
    "cross_attention_dim": model.width,
    "in_channels": model.channels,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
    "num_attention_heads": model.heads,
    "num_embeds_ada_norm": 1000,
    "num_layers": model.depth // 2,
    "out_channels": model.outputs,
    "patch_size": model.patch[1],
    "sample_size": config.data.size[0],
    "video_length": config.data.frames,
  }


def program_errors(config: Config, folder: pathlib.Path) -> dict[str, tuple[float, float]]:
  """Of the denoiser that is stored in `folder`, with its parameters, from the network it was made of."""
  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  with np.load(folder / "params.npz") as file:
    params = [file[name] for name in stablehlo.names(like)]
  x, t, cond = sample_input(config)
  stored = jax.export.deserialize(bytearray((folder / "denoiser.stablehlo").read_bytes())).call(params, x, t, cond)
  ours = jax.jit(network.apply)(jax.tree.unflatten(jax.tree.structure(like), params), x, t, cond)
  return {"out": difference(np.asarray(ours), np.asarray(stored))}


def diffusers_errors(config: Config, ours: dict[str, np.ndarray], theirs: Any) -> dict[str, tuple[float, float]]:
  """Of each stage, in float32: diffusers' model with their arrays, by name, against the network with ours."""
  import torch
  from diffusers import LatteTransformer3DModel

  x, t, cond = sample_input(config)
  model, found = LatteTransformer3DModel.from_config(diffusers_config(config)).eval(), {}
  model.load_state_dict({key: torch.from_numpy(np.array(theirs[key], np.float32)) for key in theirs})
  frames, cells = config.data.frames, config.model.cells(config.data.frames, tuple(config.data.size))

  def keep(name: str, pattern: str, **sizes: int) -> Any:
    return lambda module, inputs, out: found.update({name: rearrange(out.numpy(), pattern, **sizes)})

  model.pos_embed.register_forward_hook(keep("embedding", "(b f) n d -> b f n d", f=frames))
  for number, block in enumerate(model.temporal_transformer_blocks):
    block.register_forward_hook(keep(f"repeat {number}", "(b n) f d -> b f n d", n=cells[1] * cells[2]))
  with torch.no_grad():
    out = model(
      torch.from_numpy(rearrange(x, "b f h w c -> b c f h w")),
      timestep=torch.full((1,), 499),
      encoder_hidden_states=torch.from_numpy(cond["text"]),
    )
  found["out"] = rearrange(out.sample.numpy(), "b c f h w -> b f h w c")
  network = dataclasses.replace(config.model, dtype="float32").build(frames, tuple(config.data.size), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  stages = jax.jit(network.stages)(tree(like, ours), x, t, cond)
  return {name: difference(np.asarray(stages[name]), theirs) for name, theirs in found.items()}
