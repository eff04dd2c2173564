"""The names and shapes that weights have elsewhere: Latte's, VDT's and diffusers' state dicts, from ours and back.

A layout is a list of rows, one for each of their arrays. Every way is a transposition, a slice or a concatenation, so
what goes there and comes back is equal bit for bit.
"""

import difflib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from vdt.models import PRESETS, TransformerConfig, sincos_tables

Arrays = Mapping[str, np.ndarray]


LAYOUTS = ("latte", "vdt", "diffusers", "plain")
PREFIXES = ("_orig_mod.", "module.", "model.")
"""What torch.compile, DistributedDataParallel and trainers' classes put before the names."""


def bare(keys: Iterable[str]) -> dict[str, str]:
  """Names without the PREFIXES that all of them have, each to the whole one."""
  names = {key: key for key in keys}
  while prefix := next((each for each in PREFIXES if names and all(key.startswith(each) for key in names)), ""):
    names = {key.removeprefix(prefix): whole for key, whole in names.items()}
  return names


class Tensors(Mapping):
  """The arrays of safetensors files by their `bare` names, each read when it is asked for.

  ValueError that names a file that is damaged, two that hold an array of one name, and an array that NumPy lacks.
  """

  def __init__(self, *paths: pathlib.Path):
    self.paths: dict[str, pathlib.Path] = {}
    self.open: dict[pathlib.Path, Any] = {}
    self.metadata: dict[str, str] = {}
    for path in paths:
      try:
        file = self.open[path] = safe_open(path, "numpy")
      except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is cut off, or no safetensors file") from error
      for key in file.keys():
        if key in self.paths:
          raise ValueError(f"{self.paths[key]} and {path} both hold {key}: name the one to take")
        self.paths[key] = path
      self.metadata |= file.metadata() or {}
    self.names = bare(self.paths)

  def __getitem__(self, key: str) -> np.ndarray:
    whole = self.names[key]
    path = self.paths[whole]
    try:
      return self.open[path].get_tensor(whole)
    except (SafetensorError, TypeError, AttributeError) as error:
      raise ValueError(f"{path}: {key} cannot be read ({error}): save it as float32, float16 or bfloat16") from error

  def __iter__(self) -> Iterator[str]:
    return iter(self.names)

  def __len__(self) -> int:
    return len(self.names)

  def shapes(self) -> dict[str, tuple[int, ...]]:
    part = lambda whole: self.open[self.paths[whole]].get_slice(whole)
    return {key: tuple(part(whole).get_shape()) for key, whole in self.names.items()}


class Row(NamedTuple):
  """One of their arrays. parts: ours that it holds, as (path, number of the layer in its stack, if it is stacked).

  kind: "matrix", a kernel, transposed, one after the other along its outputs; "vector", one after the other; "rows",
  each vector cut into rows of the model's width; "patch", the kernel of the patches' embedding as a convolution's;
  "same"; "fixed", a table that we compute. shape: theirs.
  """

  key: str
  parts: tuple[tuple[str, int | None], ...]
  kind: str
  shape: tuple[int, ...]


def rows(layout: str, config: TransformerConfig, cells: tuple[int, int, int]) -> list[Row]:
  """The rows of a layout for a model of this config; cells: patches along (f, h, w). ValueError as `refuse`."""
  if wrong := refuse(layout, config):
    raise ValueError(f"layout {layout} cannot express {'; '.join(wrong)}")
  width, (_, p, q) = config.width, config.patch
  hidden, out = config.mlp_ratio * width, p * q * config.outputs
  made: list[Row] = []

  def dense(key: str, *paths: str, inputs: int = width, outputs: int = width, layer: int | None = None) -> None:
    """A dense layer of theirs that holds those of ours; outputs: of all."""
    parts = lambda name: tuple((f"{path}/{name}", layer) for path in paths)
    made.append(Row(f"{key}.weight", parts("kernel"), "matrix", (outputs, inputs)))
    made.append(Row(f"{key}.bias", parts("bias"), "vector", (outputs,)))

  def fixed(key: str, *sizes: int) -> None:
    made.append(Row(key, (), "fixed", (1, int(np.prod(sizes)), width)))

  def embed(key: str) -> None:
    made.append(Row(f"{key}.weight", (("embed/kernel", None),), "patch", (width, config.channels, p, q)))
    made.append(Row(f"{key}.bias", (("embed/bias", None),), "vector", (width,)))

  blocks = config.entries()
  order = [(index, layer) for layer in range(config.depth // len(blocks)) for index in range(len(blocks))]
  body = lambda index, number: f"pattern/blocks/{index}/attention/{number}"
  if layout == "diffusers":
    embed("pos_embed.proj")
    for index, layer in order:
      prefix = f"{('transformer_blocks', 'temporal_transformer_blocks')[index]}.{layer}"
      mlp = f"pattern/blocks/{index}/mlp"
      tables = ((f"{body(index, 0)}/table", layer), (f"{mlp}/table", layer))
      made.append(Row(f"{prefix}.scale_shift_table", tables, "rows", (6, width)))
      for number in range(len(blocks[index])):
        for theirs, ours in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out")):
          dense(f"{prefix}.attn{number + 1}.{theirs}", f"{body(index, number)}/body/{ours}", layer=layer)
      dense(f"{prefix}.ff.net.0.proj", f"{mlp}/body/up", outputs=hidden, layer=layer)
      dense(f"{prefix}.ff.net.2", f"{mlp}/body/down", inputs=hidden, layer=layer)
    dense("adaln_single.emb.timestep_embedder.linear_1", "time/up", inputs=256)
    dense("adaln_single.emb.timestep_embedder.linear_2", "time/down")
    dense("adaln_single.linear", "modulation", outputs=6 * width)
    dense("caption_projection.linear_1", "text_up", inputs=config.text)
    dense("caption_projection.linear_2", "text_down")
    made.append(Row("scale_shift_table", (("final_table", None),), "rows", (2, width)))
    dense("proj_out", "out", outputs=out)
    return made
  embed("x_embedder.proj")
  fixed("pos_embed", *cells[1:])
  fixed("temp_embed" if layout == "latte" else "time_embed", cells[0])
  dense("t_embedder.mlp.0", "time/up", inputs=256)
  dense("t_embedder.mlp.2", "time/down")
  if config.classes:
    embedding = (("label/embedding", None),)
    made.append(Row("y_embedder.embedding_table.weight", embedding, "same", (config.classes + 1, width)))
  for number, (index, layer) in enumerate(order):
    prefix, mlp, at = f"blocks.{number}", f"pattern/blocks/{index}/mlp", body(index, len(blocks[index]) - 1)
    attention = [("attn", at)]
    if layout == "vdt":
      time = body(index, 0)
      attention.append(("temporal_attn", time))
      for theirs, ours in (("weight", "scale"), ("bias", "bias")):
        made.append(Row(f"{prefix}.temporal_norm1.{theirs}", ((f"{time}/norm/{ours}", layer),), "vector", (width,)))
      dense(f"{prefix}.temporal_fc", f"{time}/projection", layer=layer)
    for theirs, ours in attention:
      three = [f"{ours}/body/{name}" for name in ("query", "key", "value")]
      dense(f"{prefix}.{theirs}.qkv", *three, outputs=3 * width, layer=layer)
      dense(f"{prefix}.{theirs}.proj", f"{ours}/body/out", layer=layer)
    dense(f"{prefix}.mlp.fc1", f"{mlp}/body/up", outputs=hidden, layer=layer)
    dense(f"{prefix}.mlp.fc2", f"{mlp}/body/down", inputs=hidden, layer=layer)
    both = (f"{at}/modulation", f"{mlp}/modulation")
    dense(f"{prefix}.adaLN_modulation.1", *both, outputs=6 * width, layer=layer)
  dense("final_layer.linear", "out", outputs=out)
  dense("final_layer.adaLN_modulation.1", "final_modulation", outputs=2 * width)
  return made


def refuse(layout: str, config: TransformerConfig) -> list[str]:
  """What of a model's config a layout cannot express, each by its field, with what it would have to be."""
  preset = PRESETS["latte-1"]() if layout == "diffusers" else PRESETS[layout]("S")
  fixed = ["pattern", "positions", "qk_norm", "given", "discrete"]
  pairs = {name: (getattr(config, name), getattr(preset, name)) for name in fixed}
  pairs["pattern"] = (config.entries(), preset.entries())
  if layout == "diffusers":
    pairs |= {"mlp_ratio": (config.mlp_ratio, 4), "classes": (config.classes, 0)}
  elif layout == "vdt" and not config.classes:
    pairs["classes"] = (config.classes, "at least 1")
  shown = lambda name, value: getattr(preset, name) if name == "pattern" else value
  wrong = [
    f"model.{name} {getattr(config, name)!r} (it is {shown(name, theirs)!r} there)"
    for name, (ours, theirs) in pairs.items()
    if ours != theirs
  ]
  patch = tuple(config.patch)
  if patch[0] != 1 or patch[1] != patch[2]:
    wrong.append(f"model.patch {patch} (it is of one frame, and square, there)")
  return wrong


def tables(layout: str, cells: tuple[int, int, int], width: int) -> dict[str, np.ndarray]:
  """The tables of positions that a layout stores, and we compute."""
  if layout not in ("latte", "vdt"):
    return {}
  time = "temp_embed" if layout == "latte" else "time_embed"
  return {key: table[None] for key, table in zip(("pos_embed", time), sincos_tables(cells, width))}


def there(row: Row, ours: Arrays, computed: Arrays) -> np.ndarray:
  """Their array, from ours by path and the computed tables."""
  if row.kind == "fixed":
    return computed[row.key]
  parts = [ours[path] if layer is None else ours[path][layer] for path, layer in row.parts]
  match row.kind:
    case "matrix":
      made = np.empty(row.shape, parts[0].dtype)
      for place, part in zip(np.split(made, len(parts)), parts):
        cv2.transpose(part, place)  # NumPy takes six times as long
      return made
    case "patch":
      d, c, p, q = row.shape
      return parts[0].reshape(p, q, c, d).transpose(3, 2, 0, 1)
    case "rows":
      return np.concatenate([part.reshape(-1, row.shape[1]) for part in parts])
    case "vector":
      return np.concatenate(parts)
  return parts[0]


def back(row: Row, theirs: np.ndarray) -> Iterator[tuple[str, int | None, np.ndarray]]:
  """Ours, from one of their arrays: path, number in the stack, array."""
  match row.kind:
    case "fixed":
      return
    case "patch":
      yield *row.parts[0], theirs.transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])
      return
    case "same":
      yield *row.parts[0], theirs
      return
  for (path, layer), part in zip(row.parts, np.split(theirs, len(row.parts))):
    yield path, layer, part.T if row.kind == "matrix" else part.reshape(-1)


def check(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], name: str) -> None:
  """ValueError that names every array that is missing, left over, renamed as it seems, or of another shape."""
  missing, extra = sorted({*wanted} - {*found}), sorted({*found} - {*wanted})
  lines = [
    f"{key} is {found[key]}, not {wanted[key]}" for key in sorted({*found} & {*wanted}) if found[key] != wanted[key]
  ]
  for key in missing[:]:
    alike = [other for other in extra if found[other] == wanted[key]]
    if close := difflib.get_close_matches(key, alike, 1, 0.8):
      lines.append(f"{key} seems to be named {close[0]}")
      missing.remove(key)
      extra.remove(close[0])
  lines += [f"{key} is missing" for key in missing] + [f"{key} is left over" for key in extra]
  if lines:
    raise ValueError(f"{name} does not hold this model: {'; '.join(lines)}")


def guess(keys: Any) -> str:
  """The layout whose names these are. ValueError if none."""
  signs: dict[str, Callable[[str], bool]] = {
    "diffusers": lambda key: key.startswith("transformer_blocks."),
    "vdt": lambda key: ".temporal_attn." in key,
    "latte": lambda key: key.startswith("blocks.") and ".attn.qkv." in key,
    "plain": lambda key: key.startswith("pattern."),
  }
  for layout, sign in signs.items():
    if any(map(sign, keys)):
      return layout
  raise ValueError(f"the arrays are named as in none of {', '.join(LAYOUTS)}: {', '.join(sorted(keys)[:5])} ...")


def read(theirs: Arrays, key: str, name: str) -> np.ndarray:
  """One of their arrays as float32. ValueError where its numbers are not finite, or no floating-point ones."""
  array = theirs[key]
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(f"{name}: {key} holds {array.dtype}, not floating-point numbers")
  array = np.asarray(array, np.float32)
  if not np.isfinite(array).all():
    raise ValueError(f"{name}: {key} holds numbers that are not finite")
  return array


def fill(known: list[Row], shapes: dict[str, tuple[int, ...]], theirs: Arrays, name: str) -> dict[str, np.ndarray]:
  """Our arrays by path, of these shapes, from the rows of theirs. ValueError as `read`."""
  ours = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
  for row in known:
    for path, layer, part in back(row, read(theirs, row.key, name)):
      ours[path][... if layer is None else layer] = part
  return ours


def adopt(
  layout: str,
  config: TransformerConfig,
  cells: tuple[int, int, int],
  shapes: dict[str, tuple[int, ...]],
  theirs: Arrays,
  name: str,
) -> dict[str, np.ndarray]:
  """Our parameters, path to float32 array, from their arrays. shapes: of ours, by path; name: of theirs, for errors.

  ValueError as `check`, as `rows`, where a stored table of positions is not the computed one, and for numbers that are
  not finite or no floating-point ones.
  """
  own = {path.replace("/", "."): path for path in shapes}
  found = theirs.shapes() if isinstance(theirs, Tensors) else {key: theirs[key].shape for key in theirs}
  known = [] if layout == "plain" else rows(layout, config, cells)
  check(found, {row.key: row.shape for row in known} or {key: shapes[path] for key, path in own.items()}, name)

  for key, table in tables(layout, cells, config.width).items():
    if (apart := np.abs(read(theirs, key, name) - table).max()) > 5e-3:  # bfloat16 rounds 1 to so much
      raise ValueError(
        f"{name}: {key} is no table of sines and cosines ({apart:.2g} apart): it was trained, ours is not"
      )
  if layout == "plain":
    return {path: read(theirs, key, name) for key, path in own.items()}
  return fill(known, shapes, theirs, name)
