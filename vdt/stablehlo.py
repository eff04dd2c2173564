"""The denoiser and the whole sampler as programs that run without vdt: StableHLO for CPU, CUDA and TPU."""

import pathlib
import zipfile
from functools import partial
from typing import Any

import flatbuffers
import jax
import jax.numpy as jnp
from jax import export

from vdt import conditions
from vdt.config import Config
from vdt.request import latent_label
from vdt.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")


def programs(config: Config, like: Any) -> dict[str, export.Exported]:
  """ "denoiser" `(params, x, t, cond)` and "sampler" `(params, key_data, clips, cond)`, for any number of videos.

  params: a list, in the order of `names`. key_data: (b, 2) uint32. The attention is the one of plain products, which
  all platforms compile.
  """
  network = config.model.build(config.data.frames, tuple(config.data.size), {})
  leaves, structure = jax.tree.flatten(like)
  apply = lambda params, x, t, cond: network.apply(jax.tree.unflatten(structure, params), x, t, cond, kernels=False)

  def sampler(params: list, key_data: jax.Array, clips: jax.Array, cond: dict) -> jax.Array:
    keys = jax.random.wrap_key_data(key_data)
    made = config.sampler.sample(config.diffusion, partial(apply, params), keys, clips, cond)
    return jnp.clip(made, -1.0, 1.0) if config.model.channels == 3 else made

  b, l = export.symbolic_shape("b, l")
  video = (b, config.data.frames, *config.data.size)
  array = lambda shape, dtype="float32": jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  cond = {name: array((b, *shape), dtype) for name, (shape, dtype) in conditions.shapes(config).items()}
  cond |= {"given": array((*video, 1)), "null": {name: array((b,), "bool") for name in config.model.conditions}}
  if config.model.text and "text" not in cond:
    cond |= {"text": array((b, l, config.model.text)), "text_seen": array((b, l), "bool")}
  clips, params = array((*video, config.model.channels)), [array(leaf.shape, leaf.dtype) for leaf in leaves]
  make = lambda function, *args: export.export(jax.jit(function), platforms=PLATFORMS)(*args)
  return {
    "denoiser": make(apply, params, clips, array(video[:2]), cond),
    "sampler": make(sampler, params, array((b, 2), "uint32"), clips, cond),
  }


def pieces(config: Config) -> int:
  """How many pieces of a prompt sample.py reads, by the tokenizer beside it; 0: none, as of frozen encoders."""
  shape, dtype = config.text.shapes(config.model.text)["text"] if config.text else ((0,), "int32")
  return shape[0] if dtype == "int32" else 0


def names(like: Any) -> list[str]:
  """The parameters in the order in which programs take them, as params.npz names them."""
  return [path_name(path).replace("/", ".") for path, _ in jax.tree_util.tree_leaves_with_path(like)]


def write(folder: pathlib.Path, config: Config, like: Any) -> None:
  """denoiser.stablehlo, sampler.stablehlo, and sample.py, which runs the sampler with jax alone; for prompts it takes
  sentencepiece, and `conditions.KEPT` beside it.

  What jax reads programs with, and does not install, is put beside them: flatbuffers (Apache-2.0), 100 kB.
  """
  for name, program in programs(config, like).items():
    (folder / f"{name}.stablehlo").write_bytes(program.serialize())
  reader = pathlib.Path(flatbuffers.__file__).parent
  with zipfile.ZipFile(folder / "flatbuffers.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    for path in sorted(reader.rglob("*.py")):
      archive.write(path, path.relative_to(reader.parent))
  shape = (config.data.frames, *config.data.size, config.model.channels)
  classes, told = config.model.classes, conditions.shapes(config)
  if config.model.text and "text" not in told:
    told |= {"text": ((1, config.model.text), "float32"), "text_seen": ((1,), "bool")}
  said = {"SHAPE": shape, "CLASSES": classes, "DEFAULT": latent_label(None, classes), "LENGTH": pieces(config)}
  said |= {"TOLD": told, "NAMES": config.model.conditions}
  text = SCRIPT
  for name, value in said.items():
    text = text.replace(name, repr(value))
  (folder / "sample.py").write_text(text)


SCRIPT = '''\
"""Samples from the model in this folder with jax (and for prompts, sentencepiece) alone; writes videos.npy."""

import argparse
import pathlib
import sys

import jax
import numpy as np
from jax import export

here, shape = pathlib.Path(__file__).parent, SHAPE  # frames, height, width, channels
classes, told, names = CLASSES, TOLD, NAMES  # labels; arrays of the condition, and what of it may be dropped
length = LENGTH  # pieces that are read of a prompt; 0: this model reads none
sys.path.append(str(here / "flatbuffers.zip"))
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("count", nargs="?", type=int, default=8, help="how many videos (default 8)")
parser.add_argument("seed", nargs="?", type=int, default=0, help="video i depends on (seed, i) alone (default 0)")
parser.add_argument("label", nargs="?", type=int, default=DEFAULT, help="a class by its number, or -1 for none")
parser.add_argument("--prompt", help="what the videos show" if length else argparse.SUPPRESS)
args = parser.parse_args()
count, seed, label = args.count, args.seed, args.label
if count < 1 or not -1 <= label < max(classes, 0):
  sys.exit(f"COUNT {count}, LABEL {label}: at least 1 video, and a label below {classes}, or -1 for none")
if missing := [name for name in ("params.npz", "sampler.stablehlo", "flatbuffers.zip") if not (here / name).exists()]:
  sys.exit(f"{missing[0]} is missing beside sample.py: copy the whole export")
pieces = []
if args.prompt is not None:
  if not length:
    sys.exit("--prompt: this model reads no prompts")
  try:
    import sentencepiece
  except ImportError:
    sys.exit("--prompt takes sentencepiece: pip install sentencepiece")
  if not (here / "text.model").exists():
    sys.exit("text.model is missing beside sample.py: copy the whole export")
  reader = sentencepiece.SentencePieceProcessor(model_file=str(here / "text.model"))
  pieces = reader.encode(args.prompt)
  if len(pieces) >= length:
    print(f"the prompt has more than the {length - 1} pieces that this model reads, and is cut there", file=sys.stderr)
  pieces = [*pieces[: length - 1], reader.eos_id()]
  padding = max(reader.pad_id(), 0)
with np.load(here / "params.npz") as file:
  params = [file[name] for name in file.files]
sampler = export.deserialize(bytearray((here / "sampler.stablehlo").read_bytes()))
run, key, made = jax.jit(sampler.call), jax.random.split(jax.random.key(seed))[1], []
for begin in range(0, count, 32):  # as many at once as vdt makes: other numbers of rows round otherwise
  rows = np.minimum(np.arange(begin, begin + 32), count - 1)
  keys = jax.vmap(lambda number: jax.random.key_data(jax.random.fold_in(key, number)))(rows)
  clips, labels = np.zeros((32, *shape), np.float32), np.full(32, label, np.int32)  # a label below 0: none
  cond = {name: np.ones((32, *size), dtype) for name, (size, dtype) in told.items()}  # what is not told is dropped
  cond |= {"label": np.maximum(labels, 0)} if classes else {}
  cond |= {"text": 0 * cond["text"]} if "text" in cond else {}
  if pieces:
    cond["text"][:] = [*pieces, *[padding] * (length - len(pieces))]
    cond["text_seen"][:] = np.arange(length) < len(pieces)
  cond |= {"given": np.zeros((*clips.shape[:4], 1), np.float32)}
  kept = {"label": label >= 0, "text": bool(pieces)}
  cond |= {"null": {name: np.full(32, not kept.get(name, False)) for name in names}}
  made.append(np.asarray(run(params, keys, clips, cond)))
videos = np.concatenate(made)[:count]
np.save("videos.npy", np.round((videos + 1) * 127.5).astype(np.uint8) if shape[-1] == 3 else videos)
print(f"{count} videos: {pathlib.Path('videos.npy').resolve()}")
'''
