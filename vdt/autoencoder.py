"""Videos to latents and back: one object for autoencoders that were trained here, taef2, and diffusers'."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from vdt import files, models, torch_file, weights, workdirs
from vdt.checkpoint import Checkpointer
from vdt.encoder import made
from vdt.sharding import path_name
from vdt.weights import Tensors

CHANNELS = "channels.json"
"""In a workdir: the mean and standard deviation of each channel of the latents, and of which step they are."""
Video = Float[Array | np.ndarray, "b f h w c"]
Out = Float[Array, "b g i j o"]
Part = Callable[[Any, Array, list[Array] | None], tuple[Array, list[Array]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
  """`load(path)` makes one. Videos are (b f h w 3) in [-1, 1], latents (b f' h' w' z), standardised.

    autoencoder = load("runs/ae")
    latents = autoencoder.encode(autoencoder.params, video)       # the mean of the posterior, (mean - shift) / scale
    video = autoencoder.decode(autoencoder.params, latents)       # clipped to [-1, 1]

  Both may be traced, and take `chunk`, the latent frames that are worked off at once, and `tile`, the rows and
  columns of latents that are: what comes out is the same, for less memory. params: "weights", as the parts take them,
  and "shift" and "scale" (z,). factor: (frames, rows, columns) of pixels for one of latents; the first frame has one
  for itself where that is more than one. channels: z. reach: latents on each side that a latent, or its pixels,
  depends on; None where that is the whole frame, which then has no tiles. by_frame: no latent depends on other frames
  than its own. settings: all that beside weights decides.
  """

  params: dict[str, Any]
  factor: tuple[int, int, int]
  channels: int
  reach: int | None
  settings: dict[str, Any]
  encode_part: Part
  decode_part: Part
  by_frame: bool = False

  def frames(self, count: int) -> int:
    """Latent frames of so many frames. ValueError for a number that does not divide."""
    if count < 1 or (count - 1) % self.factor[0]:
      raise ValueError(f"{count} frames: this autoencoder takes 1 + {self.factor[0]} k of them")
    return 1 + (count - 1) // self.factor[0]

  def encode(self, params: dict[str, Any], video: Video, chunk: int = 0, tile: int = 0) -> Out:
    """ValueError for a video that does not divide, or tiles where there are none."""
    if video.shape[2] % self.factor[1] or video.shape[3] % self.factor[2]:
      raise ValueError(f"frames of {video.shape[2:4]} are not multiples of {self.factor[1:]}")
    self.frames(video.shape[1])
    latents = self.tiled(self._encode, params["weights"], video, chunk, tile, self.factor, (1, 1, 1))
    return (latents - wide(params["shift"])) / wide(params["scale"])

  def decode(self, params: dict[str, Any], latents: Video, chunk: int = 0, tile: int = 0) -> Out:
    """ValueError for tiles where there are none."""
    z = latents * wide(params["scale"]) + wide(params["shift"])
    return jnp.clip(self.tiled(self._decode, params["weights"], z, chunk, tile, (1, 1, 1), self.factor), -1.0, 1.0)

  @functools.cached_property
  def _encode(self) -> Part:
    return jax.jit(self.encode_part)

  @functools.cached_property
  def _decode(self) -> Part:
    return jax.jit(self.decode_part)

  def fingerprint(self) -> str:
    """A hash of the weights, of how latents are standardised, and of the settings."""
    digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(self.params), key=lambda pair: path_name(pair[0])):
      digest.update(f"{path_name(path)} {leaf.shape} {leaf.dtype}".encode())
      digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]

  def chunked(self, part: Part, weights: Any, x: Video, chunk: int, frames: int) -> Out:
    """`part` of all of `x`, `chunk` latent frames at a time; frames: of `x`, for each latent one but the first."""
    if not chunk:
      return part(weights, x, None)[0]
    first, past, found = 1 + frames * (chunk - 1), None, []
    bounds = [0, *range(first, x.shape[1], frames * chunk), x.shape[1]]
    for begin, end in zip(bounds, bounds[1:]):
      made, past = part(weights, x[:, begin:end], past)
      found.append(made)
    return jnp.concatenate(found, 1)

  def tiled(self, part: Part, weights: Any, x: Video, chunk: int, tile: int, inner: tuple, outer: tuple) -> Out:
    """`chunked` of windows that hold what their middle depends on. inner, outer: pixels of `x`, and of what is made,
    for each latent."""
    if not tile:
      return self.chunked(part, weights, x, chunk, inner[0])
    if self.reach is None:
      raise ValueError("this autoencoder looks at whole frames, in its norms or attention: it has no exact tiles")
    rows = [spans(x.shape[2 + axis] // inner[1 + axis], tile, self.reach) for axis in range(2)]

    def window(row: tuple[int, int, int, int], column: tuple[int, int, int, int]) -> Array:
      (_, _, y, height), (_, _, left, width) = row, column
      cut = x[:, :, y * inner[1] : (y + height) * inner[1], left * inner[2] : (left + width) * inner[2]]
      whole = self.chunked(part, weights, cut, chunk, inner[0])
      keep = [
        slice((begin - start) * o, (end - start) * o) for (begin, end, start, _), o in zip((row, column), outer[1:])
      ]
      return whole[:, :, keep[0], keep[1]]

    return jnp.concatenate([jnp.concatenate([window(r, c) for c in rows[1]], 3) for r in rows[0]], 2)


def wide(x: Array) -> Array:
  return jnp.asarray(x)[None, None, None, None]


def spans(size: int, tile: int, reach: int) -> list[tuple[int, int, int, int]]:
  """Tiles of `size` latents as (begin, end, start, length): the window from `start` on holds `reach` more on each side,
  or the border; all windows have one length, so one program does."""
  length = min(tile + 2 * reach, size)
  bounds = [(begin, min(begin + tile, size)) for begin in range(0, size, tile)]
  return [(begin, end, min(max(begin - reach, 0), size - length), length) for begin, end in bounds]


def load(path: str) -> Autoencoder:
  """The autoencoder in a workdir of ours, also gs://, in a folder of taef2, or in one of diffusers.

  FileNotFoundError where there is none; ValueError for weights that are damaged, or not of what is said beside them.
  """
  if files.remote(path):
    return trained(path)
  folder = pathlib.Path(path)
  if (folder / "taef2_encoder.npz").exists():
    return taef2(folder)
  folder = folder / "vae" if (folder / "vae" / "config.json").exists() else folder
  config = epath.Path(path if folder.name != "vae" else folder) / "config.json"
  if not config.exists():
    raise FileNotFoundError(f"no autoencoder in {path}: name a run's workdir, a folder of taef2, or one of diffusers")
  said = json.loads(config.read_text())
  if "_class_name" in said:
    return diffusers(folder, said)
  return trained(path)


def trained(workdir: str) -> Autoencoder:
  """The average weights of a run of ours at its end, standardised as CHANNELS says."""
  stored = workdirs.read(workdir)["config"]
  if stored["model"]["_"] != "VideoAutoencoder":
    raise ValueError(f"{workdir} holds a {stored['model']['_']}, no autoencoder")
  model = made(models, stored["model"])
  with Checkpointer(workdir, create=False) as checkpoints:
    step = checkpoints.there(None)
    ema = checkpoints.arrays(step, ("ema",))["ema"]
  path = epath.Path(workdir) / CHANNELS
  said = json.loads(path.read_text()) if path.exists() else {}
  if said.get("step") != step:
    there = f"of step {said['step']}" if said else "not there"
    raise ValueError(f"{path} is {there}, the weights are of step {step}: train to the end, which measures the latents")
  data = stored["data"]
  while "parts" in data:  # a mixture has the shape of its first part
    data = data["parts"][0]
  network = model.build(data["frames"], tuple(data["size"]), {})
  like = jax.eval_shape(network.init, jax.random.key(0))
  named = {path_name(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(ema)}
  ema = jax.tree_util.tree_map_with_path(lambda key, _: jnp.asarray(named[path_name(key)]), like)
  shift, scale = jnp.asarray(said["mean"], jnp.float32), jnp.maximum(jnp.asarray(said["std"], jnp.float32), 1e-6)
  settings = {"kind": "VideoAutoencoder", **{name: value for name, value in stored["model"].items() if name != "remat"}}
  params = {"weights": ema, "shift": shift, "scale": scale}
  return Autoencoder(params, model.factor, model.latents, model.reach, settings, network.encode, network.decode)


def taef2(folder: pathlib.Path) -> Autoencoder:
  """The tiny image autoencoder, from its two .npz."""
  found, network = {}, models.taef2()
  for half in ("encoder", "decoder"):
    path = folder / f"taef2_{half}.npz"
    try:
      with open(path, "rb") as opened, np.load(opened) as stored:  # a path stays open if it is not a zip file
        found |= {f"{half}.{key}": stored[key] for key in stored.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
      raise ValueError(f"{path} is damaged ({error}): copy it again") from error
  arrays, ones = adopted(found, network.needed, str(folder)), jnp.ones(network.channels)
  params = {"weights": arrays, "shift": 0 * ones, "scale": ones}
  return of(network, params, {"kind": "taef2"}, by_frame=True)


def of(network: models.Published, params: dict[str, Any], settings: dict[str, Any], by_frame: bool) -> Autoencoder:
  parts = network.encode, network.decode
  return Autoencoder(params, network.factor, network.channels, None, settings, *parts, by_frame=by_frame)


FREE = {
  "AutoencoderKL": ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups"),
  "AutoencoderKLWan": ("base_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "z_dim"),
}
"""What diffusers' config.json has to say."""
FIXED = {
  "AutoencoderKL": {"in_channels": 3, "out_channels": 3, "act_fn": "silu"},
  "AutoencoderKLWan": {
    "in_channels": 3,
    "out_channels": 3,
    "attn_scales": [],
    "is_residual": False,
    "patch_size": None,
  },
}
"""What it may say, but no other value."""
OPTIONAL = ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "decoder_base_dim")
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention's arrays in AutoencoderKL's older files, where they are convolutions or matrices."""


def diffusers(folder: pathlib.Path, said: dict[str, Any]) -> Autoencoder:
  """AutoencoderKL or AutoencoderKLWan (as Wan 2.1 has it). ValueError for what of its config is not known here."""
  kind = said["_class_name"]
  if kind not in FREE:
    raise ValueError(f"{folder} holds a {kind}: {' and '.join(FREE)} are known")
  if missing := [name for name in FREE[kind] if name not in said]:
    raise ValueError(f"{folder}/config.json does not say {', '.join(missing)}")
  if wrong := [f"{name} {said[name]!r}" for name, value in FIXED[kind].items() if said.get(name, value) != value]:
    raise ValueError(f"{folder} is a {kind} with {', '.join(wrong)}, which is not known here")
  blocks = [*said.get("down_block_types", []), *said.get("up_block_types", [])]
  if strange := {*blocks} - {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
    raise ValueError(f"{folder} is a {kind} with {', '.join(sorted(strange))}, which is not known here")
  config = {name: said[name] for name in (*FREE[kind], *OPTIONAL) if name in said} | FIXED[kind]
  wan = kind == "AutoencoderKLWan"
  network = models.wan(config) if wan else models.kl(config)
  channels, arrays = network.channels, adopted(read(folder), network.needed, str(folder))
  mean, std, ones = said.get("latents_mean"), said.get("latents_std"), np.ones(channels, np.float32)
  if wan or mean is not None:
    shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    scale = scale if wan else scale / said.get("scaling_factor", 0.18215)  # as StableDiffusionXLPipeline decodes them
  else:
    shift, scale = (said.get("shift_factor") or 0.0) * ones, ones / said.get("scaling_factor", 0.18215)
  if shift.shape != (channels,) or scale.shape != (channels,):
    raise ValueError(f"{folder}: latents_mean and latents_std hold {shift.shape}, {scale.shape}, not {(channels,)}")
  params = {"weights": arrays, "shift": jnp.asarray(shift), "scale": jnp.asarray(scale)}
  return of(network, params, {"kind": kind, **config}, by_frame=not wan)


def read(folder: pathlib.Path) -> Mapping[str, np.ndarray]:
  """The arrays beside a config.json of diffusers'. FileNotFoundError where there are none."""
  files = sorted(folder.glob("*.safetensors"))
  if files:
    found = Tensors(*files)
  elif (path := folder / "diffusion_pytorch_model.bin").exists():
    found = torch_file.read(path)
    found = {name: found[whole] for name, whole in weights.bare(found).items()}
  else:
    raise FileNotFoundError(f"no .safetensors and no diffusion_pytorch_model.bin in {folder}")
  renamed = {}
  for key in found:
    *before, layer, part = key.split(".")
    name = ".".join([*before, OLD.get(layer, layer), part]) if "attentions" in before else key
    array = found[key]
    renamed[name] = array[..., 0, 0] if name != key and array.ndim == 4 else array
  return renamed


def adopted(found: Mapping[str, np.ndarray], needed: dict[str, tuple[int, ...]], name: str) -> dict[str, Array]:
  """The arrays as float32. ValueError that names all that are missing, left over or of another shape."""
  weights.check({key: tuple(array.shape) for key, array in found.items()}, needed, name)
  return {key: jnp.asarray(np.asarray(array, np.float32)) for key, array in found.items()}
