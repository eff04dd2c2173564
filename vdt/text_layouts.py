"""The names and shapes that the arrays of T5's and BERT's encoders have in transformers, and params by them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vdt import models, weights
from vdt.sharding import path_name
from vdt.weights import Row, Tensors


class Renamed(Mapping):
  """Some arrays of another mapping, by other names; each is read when it is asked for."""

  def __init__(self, arrays: Tensors, names: dict[str, str]):
    self.arrays, self.names, every = arrays, names, arrays.shapes()
    self.shapes = {key: every[theirs] for key, theirs in names.items()}

  def __getitem__(self, key: str) -> np.ndarray:
    return self.arrays[self.names[key]]

  def __iter__(self) -> Iterator[str]:
    return iter(self.names)

  def __len__(self) -> int:
    return len(self.names)


def t5_arrays(found: Tensors, name: str) -> Renamed:
  """T5's arrays but for the decoder's, with the tokens' under one name. ValueError where two of those differ."""
  tokens, alias = "shared.weight", "encoder.embed_tokens.weight"
  names = {key: key for key in found if not key.startswith(("decoder.", "lm_head."))}
  if tokens in names and alias in names and not np.array_equal(found[tokens], found[alias]):
    raise ValueError(f"{name} holds {tokens} and {alias}, which are one array, but differ")
  if alias in names:
    names[tokens] = names.pop(alias)
  return Renamed(found, names)


def bert_arrays(found: Tensors) -> Renamed:
  """BERT's arrays but for the pooler's, and the numbers from 0 on that it stores."""
  return Renamed(
    found, {key: key for key in found if not key.startswith("pooler.") and key != "embeddings.position_ids"}
  )


def t5_rows(config: models.T5Config) -> list[Row]:
  """The arrays of T5's encoder, by the names they have in transformers."""
  width, inner = config.width, config.heads * config.head_size
  made = [
    Row("shared.weight", (("embed/embedding", None),), "same", (config.vocabulary, width)),
    Row("encoder.final_layer_norm.weight", (("norm/scale", None),), "same", (width,)),
  ]
  first, second = ("wi_1", "wi_0") if config.gated else ("wi", None)
  for layer in range(config.depth):
    parts = {f"0.SelfAttention.{name[0]}": (f"attention/{name}", inner, width) for name in ("query", "key", "value")}
    parts["0.SelfAttention.o"] = ("attention/out", width, inner)
    parts[f"1.DenseReluDense.{first}"] = ("up", config.mlp, width)
    if second:
      parts[f"1.DenseReluDense.{second}"] = ("gate_up", config.mlp, width)
    parts["1.DenseReluDense.wo"] = ("down", width, config.mlp)
    at = f"encoder.block.{layer}.layer"
    for key, (path, *shape) in parts.items():
      made.append(Row(f"{at}.{key}.weight", ((f"layers/{path}/kernel", layer),), "matrix", tuple(shape)))
    for key, path in (("0.layer_norm", "attention_norm"), ("1.layer_norm", "mlp_norm")):
      made.append(Row(f"{at}.{key}.weight", ((f"layers/{path}/scale", layer),), "same", (width,)))
    if layer == 0 or config.bias_each:
      ours = ("layers/positions/table", layer) if config.bias_each else ("positions/table", None)
      key = f"{at}.0.SelfAttention.relative_attention_bias.weight"
      made.append(Row(key, (ours,), "same", (config.buckets, config.heads)))
  return made


def bert_rows(config: models.BertConfig) -> list[Row]:
  """The arrays of BERT's encoder, by the names they have in transformers."""
  width = config.width
  tables = {"word": ("embed/embedding", config.vocabulary), "position": ("positions", config.length)}
  tables["token_type"] = ("kinds", config.kinds)
  made = [
    Row(f"embeddings.{key}_embeddings.weight", ((path, None),), "same", (count, width))
    for key, (path, count) in tables.items()
  ]
  parts = {f"attention.self.{name}": (f"attention/{name}", width, width) for name in ("query", "key", "value")}
  parts["attention.output.dense"] = ("attention/out", width, width)
  parts |= {"intermediate.dense": ("up", config.mlp, width), "output.dense": ("down", width, config.mlp)}
  norms = {"embeddings.LayerNorm": ("norm", None)}
  for layer in range(config.depth):
    at = f"encoder.layer.{layer}"
    norms[f"{at}.attention.output.LayerNorm"] = ("layers/attention_norm", layer)
    norms[f"{at}.output.LayerNorm"] = ("layers/mlp_norm", layer)
    for key, (path, *shape) in parts.items():
      made.append(Row(f"{at}.{key}.weight", ((f"layers/{path}/kernel", layer),), "matrix", tuple(shape)))
      made.append(Row(f"{at}.{key}.bias", ((f"layers/{path}/bias", layer),), "same", (shape[0],)))
  for key, (path, layer) in norms.items():
    for theirs, ours in (("weight", "scale"), ("bias", "bias")):
      made.append(Row(f"{key}.{theirs}", ((f"{path}/{ours}", layer),), "same", (width,)))
  return made


def adopted(network: models.TextNetwork, rows: list[Row], found: Renamed, name: str) -> dict[str, Any]:
  """The network's params, on the host. ValueError that names all that are missing, left over, of another shape, or not
  finite."""
  weights.check(found.shapes, {row.key: row.shape for row in rows}, name)
  like = jax.eval_shape(network.init, jax.random.key(0))
  shapes = {path_name(key): leaf.shape for key, leaf in jax.tree_util.tree_leaves_with_path(like)}
  arrays = weights.fill(rows, shapes, found, name)
  return jax.tree_util.tree_map_with_path(lambda key, _: np.asarray(arrays.pop(path_name(key))), like)
