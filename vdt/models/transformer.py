"""VideoDiT: a diffusion transformer whose attention is a pattern over the axes of a video."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from vdt.models import layout, positions
from vdt.models.attention import AXES, Attention, CrossAttention
from vdt.models.layers import MLP, MODULATIONS, REMAT, Dense, Residual, TimeEmbedding, Told, modulate, zeros
from vdt.models.text import T5Config, T5Encoder

TEXT, SOUND = BESIDE = ("text", "sound")  # axes that are not the video's own
POSITIONS = ("rope", "sincos", "rope+sincos", "late sincos", "rope+places")
NEAR = 1  # frames, of patches, that are heard before and after each
SIZES = {  # depth counts blocks, space and time alike, as Latte does (arXiv:2401.03048, table 1)
  "XS": dict(depth=4, width=128, heads=4),  # ours: for minutes on a CPU
  "S": dict(depth=12, width=384, heads=6),
  "B": dict(depth=12, width=768, heads=12),
  "L": dict(depth=24, width=1024, heads=16),
  "XL": dict(depth=28, width=1152, heads=16),  # heads of 72 waste TPU lanes: kept for published weights
  "XL-9x128": dict(depth=28, width=1152, heads=9),
  "XL-10x128": dict(depth=28, width=1280, heads=10),
  "2B": dict(depth=28, width=2048, heads=16),  # ours
}


class Network(NamedTuple):
  """`params = init(key)`; `raw = apply(params, x, t, cond)`; params is a plain nested dict of float32 arrays.

  `apply(..., kernels=False)` keeps to what `jax.jvp` and every platform can do. `learn` is `apply` for a loss that is
  differentiated, where `TransformerConfig.scan` counts. `stages(params, x, t, cond)` is a dict:
  the tokens (b f n d) as they enter, after each repeat of the pattern, and "out", which is `raw`.
  """

  init: Callable
  apply: Callable
  learn: Callable
  stages: Callable


@dataclasses.dataclass
class TransformerConfig:
  """Patchified video in, as many values a pixel out.

  patch: (frames, height, width) of a patch. pattern: blocks, repeated until there are `depth` of them; each block lists
  its attention sub-layers, an axis ("space", "time", "causal", "joint", or "text", from the tokens to the text's, or
  "sound", to what is heard in their frame and in those next to it) or a pair (axis, modulation), modulation being
  "zero" (the default), "single", "none", "projected" or "bare" (see `layers.Residual`); its MLP is modulated like the
  last of them but for text and sound, and what comes out at the end by a table where none is "zero". classes: 0 = no
  labels. text: numbers of a token of text, 0 = no text; encoder: what makes them of the numbers of its pieces, trained
  along, so wide; pooled: whether the mean of these tokens is added to the time as well. sound: numbers that are heard
  in a frame. fps, size: whether the frames a second, and the height and width of a video, are told, beside its time.
  remat: what the backward pass computes again, "none", "dots" (all but matmuls), "full", "offload" (as "dots", with
  what is kept in the host's memory), or "dots+params" (as "dots", but the parameters of a repeat are gathered over
  `fsdp` once, in `dtype`, and kept, where otherwise the backward pass gathers them again). scan: whether a training
  step's repeats of the pattern are compiled once, as a loop; written out they take the compiler three times as long,
  and a step on a TPU less (what a loop keeps for the backward pass it copies into a stack, and out of it). dtype: of
  the computation; parameters are float32 always.
  positions: "rope" turns queries and keys, so attention sees distances; "sincos" adds tables to the tokens, so a block
  sees where the picture ends; the default is both; "late sincos" adds that of time before the second block (Latte's);
  "rope+places" turns, and adds that of places in a frame alone: with it, a model of images (pattern (("space",),), say)
  goes on by `init_from` as one of videos whose attentions over time are new, and which makes at first of each frame
  what it made of the image. given: whether the mask of what was given is a channel more of the input; without it a
  frame's time of 0 says so. variance: whether as many channels more come out. discrete: see `TimeEmbedding`.
  """

  depth: int = 12
  width: int = 384
  heads: int = 6
  patch: tuple[int, int, int] = (1, 2, 2)
  pattern: tuple = (("space",), ("time",))
  channels: int = 3
  classes: int = 0
  positions: str = "rope+sincos"
  qk_norm: bool = True
  mlp_ratio: int = 4
  remat: str = "none"
  dtype: str = "bfloat16"
  text: int = 0
  given: bool = True
  variance: bool = False
  discrete: bool = False
  encoder: T5Config | None = None
  fps: bool = False
  size: bool = False
  sound: int = 0
  pooled: bool = False
  scan: bool = True

  @property
  def conditions(self) -> tuple[str, ...]:
    """What a video may be conditioned on: keys of cond, and of what is dropped, cond["null"]."""
    there = {"label": self.classes, "fps": self.fps, "size": self.size, "text": self.text, "sound": self.sound}
    return tuple(name for name, value in there.items() if value)

  @classmethod
  def sized(cls, name: str, **fields) -> "TransformerConfig":
    """A named size: XS (ours), S, B, L, XL (Latte's), XL-9x128, XL-10x128, 2B (heads that fill a TPU's lanes)."""
    return cls(**{**SIZES[name], **fields})

  def entries(self) -> list[list[tuple[str, str]]]:
    """The pattern with every entry as (axis, modulation). ValueError says what is wrong with it."""
    example = 'write it like (("space",), ("time",)) or ((("time", "none"), "space"),)'
    if not (isinstance(self.pattern, tuple) and self.pattern):
      raise ValueError(f"model.pattern must be a tuple of blocks, not {self.pattern!r}: {example}")
    blocks = []
    for block in self.pattern:
      if not (isinstance(block, tuple) and block):
        raise ValueError(f"model.pattern holds the block {block!r}, which is not a tuple of attentions: {example}")
      pairs = [(entry, "zero") if isinstance(entry, str) else entry for entry in block]
      for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and pair[0] in (*AXES, *BESIDE) and pair[1] in MODULATIONS):
          raise ValueError(
            f"model.pattern holds {pair!r}: an attention is one of {', '.join((*AXES, *BESIDE))}, alone or with one of "
            f"{', '.join(MODULATIONS)}; {example}"
          )
      if all(axis in BESIDE for axis, _ in pairs):
        raise ValueError(
          f"model.pattern holds the block {block!r}: beside text or sound, it attends over an axis of the video"
        )
      blocks.append(pairs)
    return blocks

  def kinds(self) -> set[str]:
    """All modulations of the pattern."""
    return {modulation for block in self.entries() for _, modulation in block}

  @property
  def inputs(self) -> int:
    """Values of a pixel that the network sees."""
    return self.channels + self.given

  @property
  def outputs(self) -> int:
    """Values of a pixel that come out."""
    return self.channels * (1 + self.variance)

  def cells(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Patches along (frames, height, width) of a video. ValueError where they do not divide it."""
    video = (frames, *size)
    if min(self.patch) < 1 or any(whole % part for whole, part in zip(video, self.patch)):
      raise ValueError(f"video of (frames, height, width) {video} does not divide into patches {tuple(self.patch)}")
    return tuple(whole // part for whole, part in zip(video, self.patch))

  def flops(self, frames: int, size: tuple[int, int]) -> float:
    """Floating-point operations of one forward pass of one video: two a multiply-add, matrix products alone."""
    return sum(self.flops_by_part(frames, size).values())

  def flops_by_part(self, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """`flops` of the attention over each axis (without its dense layers), of what modulates, and of all else."""
    f, h, w = self.cells(frames, size)
    n, d = h * w, self.width
    context = {"space": n, "time": f, "causal": (f + 1) / 2, "joint": f * n, TEXT: 0, SOUND: 0}  # the others are short
    repeats = 2.0 * (self.depth // len(self.pattern))
    cell = self.patch[0] * self.patch[1] * self.patch[2]
    parts = {"dense": 2.0 * f * n * cell * (self.inputs + self.outputs) * d, "modulation": 2.0 * f * (256 + d) * d}
    parts["modulation"] += 2.0 * f * (6 if "single" in self.kinds() else 0) * d * d
    parts["modulation"] += 2.0 * f * (2 if self.zero_ends() else 0) * d * d
    for block in self.entries():
      for axis, modulation in block:
        name = f"{axis} attention"
        parts[name] = parts.get(name, 0.0) + repeats * f * n * 2 * context[axis] * d
        parts["dense"] += repeats * f * n * ({TEXT: 2, SOUND: 2}.get(axis, 4) + (modulation == "projected")) * d * d
        parts["modulation"] += repeats * f * 3 * d * d * (modulation == "zero")
      parts["dense"] += repeats * f * n * 2 * self.mlp_ratio * d * d
      parts["modulation"] += repeats * f * 3 * d * d * (mlp_modulation(block) == "zero")
    return parts

  def attends(self, axis: str) -> bool:
    """Whether some block does over this axis."""
    return any(name == axis for block in self.entries() for name, _ in block)

  def zero_ends(self) -> bool:
    """Whether what comes out is modulated by a map of its own, and not by a table."""
    return "zero" in self.kinds() or "single" not in self.kinds()

  def build(self, frames: int, size: tuple[int, int], mesh_shape: dict[str, int]) -> Network:
    """The network for videos of this shape on a mesh of these axis sizes. ValueError says which field to change."""
    blocks = self.entries()
    least = {name: getattr(self, name) for name in ("depth", "width", "heads", "channels", "mlp_ratio")}
    if min(least.values()) < 1:
      raise ValueError(f"model.{min(least, key=least.get)} is {min(least.values())}: at least 1")
    _, h, w = self.cells(frames, size)
    tensor, sequence = mesh_shape.get("tensor", 1), mesh_shape.get("sequence", 1)
    checks = {
      f"model.positions {self.positions!r} is for patterns of two blocks and more": (
        self.positions.startswith("late") and len(blocks) < 2
      ),
      f"model.depth {self.depth} is not a multiple of the pattern's {len(blocks)} blocks": self.depth % len(blocks),
      f"model.width {self.width} is not a multiple of model.heads {self.heads}": self.width % self.heads,
      f"model.width / model.heads {self.width // self.heads} is odd": self.width // self.heads % 2,
      f"model.heads {self.heads} is not a multiple of mesh.tensor {tensor}": self.heads % tensor,
      f"{h * w} patches a frame are not a multiple of mesh.sequence {sequence}": h * w % sequence,
      f"model.heads {self.heads} is not a multiple of mesh.tensor x mesh.sequence {tensor * sequence}, which joint "
      f"attention needs": self.heads % (tensor * sequence) and self.attends("joint"),
      **{
        f"model.{axis} is {numbers}, with{'' if self.attends(axis) else 'out'} {axis} in model.pattern: set both, or "
        f"neither": self.attends(axis) != (numbers > 0)
        for axis, numbers in ((TEXT, self.text), (SOUND, self.sound))
      },
      f"model.text is {self.text}, model.encoder is {getattr(self.encoder, 'width', 0)} wide: set both alike": (
        self.encoder is not None and self.encoder.width != self.text
      ),
      "model.pooled is of a text: set model.text": self.pooled and not self.text,
      f"model.remat {self.remat!r} is none of {', '.join(REMAT)}": self.remat not in REMAT,
      f"model.positions {self.positions!r} is none of {', '.join(POSITIONS)}": self.positions not in POSITIONS,
      f"model.dtype {self.dtype!r} is neither bfloat16 nor float32": self.dtype not in ("bfloat16", "float32"),
    }
    if wrong := [message for message, bad in checks.items() if bad]:
      raise ValueError("; ".join(wrong))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: VideoDiT(self, nnx.Rngs(0))))

    def init(key: jax.Array) -> dict:
      return nnx.to_pure_dict(nnx.state(VideoDiT(self, nnx.Rngs(key)), nnx.Param))

    def apply(
      params: dict, x: jax.Array, t: jax.Array, cond: dict, kernels: bool = True, scan: bool = True
    ) -> jax.Array:
      return nnx.merge(graphdef, params)(x, t, cond, kernels, scan)

    def stages(params: dict, x: jax.Array, t: jax.Array, cond: dict) -> dict[str, jax.Array]:
      return nnx.merge(graphdef, params).stages(x, t, cond)

    return Network(init, apply, partial(apply, scan=self.scan), stages)


def dropped(cond: dict, name: str) -> Bool[Array, " b"] | bool:
  return cond.get("null", {}).get(name, False)


def mlp_modulation(block: list[tuple[str, str]]) -> str:
  return [modulation for axis, modulation in block if axis not in BESIDE][-1]


class Around(NamedTuple):
  """What all blocks see beside the tokens.

  time: (b f d), of each frame, with the label. shared: (b f 6d), "single"'s map. text: (b l d) and which of it is there
  (b 1 l). sound: (b f r d), what is heard in each frame and around it, and which of it is there (1 f r). late: (f d), a
  table for the first repeat's second block. cells: patches along (f, h, w). kernels: see `Network`.
  """

  time: Array
  shared: Array | None
  text: tuple[Array, Array] | None
  sound: tuple[Array, Array] | None
  late: Array | None
  cells: tuple[int, int, int]
  kernels: bool


class Block(nnx.Module):
  """The attention sub-layers of one block, then its MLP."""

  def __init__(self, config: TransformerConfig, entries: list[tuple[str, str]], rngs: nnx.Rngs):
    dtype, width = jnp.dtype(config.dtype), config.width
    options = dict(qk_norm=config.qk_norm, dtype=dtype, rngs=rngs)

    def body(axis: str) -> nnx.Module:
      if axis in BESIDE:
        return CrossAttention(width, config.heads, **options)
      return Attention(axis, width, config.heads, rotary="rope" in config.positions, **options)

    self.axes = tuple(axis for axis, _ in entries)
    self.attention = nnx.List(
      [Residual(body(axis), width, modulation, dtype=dtype, rngs=rngs) for axis, modulation in entries]
    )
    mlp = MLP(width, config.mlp_ratio * width, dtype=dtype, rngs=rngs)
    self.mlp = Residual(mlp, width, mlp_modulation(entries), dtype=dtype, rngs=rngs)

  def __call__(self, x: Array, around: Around, split: int) -> tuple[Array, int]:
    """The tokens, and the axis of theirs that lies over `sequence` (`layout`): that of the last attention."""
    time, shared = around.time, around.shared
    for_attention, for_mlp = (None, None) if shared is None else jnp.split(shared, 2, axis=-1)
    for axis, attention in zip(self.axes, self.attention):
      wanted = layout.SPLIT.get(axis, split)
      x, split = layout.switch(x, split, wanted), wanted
      rest = {TEXT: around.text, SOUND: around.sound}.get(axis, (around.cells, around.kernels))
      x = attention(x, time, for_attention, *rest, split)
    return self.mlp(x, time, for_mlp, split), split


class Pattern(nnx.Module):
  """One repeat of the pattern: what `lax.scan` runs over."""

  def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
    self.blocks = nnx.List([Block(config, entries, rngs) for entries in config.entries()])

  def __call__(self, x: Array, around: Around, number: Array | int) -> Array:
    """number: of the repeat, from 0."""
    split = layout.FRAMES
    for index, block in enumerate(self.blocks):
      if around.late is not None and index == 1:
        x += jnp.where(number == 0, around.late, 0)[None, :, None]
      x, split = block(x, around, split)
    return layout.switch(x, split, layout.FRAMES)


class VideoDiT(nnx.Module):
  """Noised video, a diffusion time for each frame and what was given, to the network's raw output."""

  def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
    self.config, dtype, width = config, jnp.dtype(config.dtype), config.width
    cell = config.patch[0] * config.patch[1] * config.patch[2]
    self.embed = Dense(cell * config.inputs, width, dtype=dtype, rngs=rngs)
    self.time = TimeEmbedding(width, config.discrete, dtype=dtype, rngs=rngs)
    if config.classes:
      self.label = nnx.Embed(config.classes + 1, width, dtype=dtype, rngs=rngs)
    if config.fps:
      self.fps = Told(1, width, dtype=dtype, rngs=rngs)
    if config.size:
      self.size = Told(2, width, dtype=dtype, rngs=rngs)
    if config.encoder:
      self.encoder = T5Encoder(config.encoder, rngs)
    if config.text:
      self.text_up = Dense(config.text, width, dtype=dtype, rngs=rngs)
      self.text_down = Dense(width, width, dtype=dtype, rngs=rngs)
      if config.pooled:
        self.text_pooled = Dense(width, width, dtype=dtype, kernel_init=zeros, rngs=rngs)
    if config.sound:
      self.sound_up = Dense(config.patch[0] * config.sound, width, dtype=dtype, rngs=rngs)
      self.sound_down = Dense(width, width, dtype=dtype, rngs=rngs)
      self.sound_places = nnx.Param(jax.random.normal(rngs.params(), (2 * NEAR + 1, width)) * width**-0.5)
    if "single" in config.kinds():
      self.modulation = Dense(width, 6 * width, dtype=dtype, kernel_init=zeros, rngs=rngs)
    repeats = config.depth // len(config.pattern)
    self.pattern = nnx.vmap(lambda key: Pattern(config, nnx.Rngs(key)))(jax.random.split(rngs.params(), repeats))
    self.norm = nnx.LayerNorm(width, epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype, rngs=rngs)
    if config.zero_ends():
      self.final_modulation = Dense(width, 2 * width, dtype=dtype, kernel_init=zeros, rngs=rngs)
    else:
      self.final_table = nnx.Param(jax.random.normal(rngs.params(), (2 * width,)) * width**-0.5)
    self.out = Dense(width, cell * config.outputs, dtype=dtype, kernel_init=zeros, rngs=rngs)

  def __call__(
    self, x: Float[Array, "b f h w c"], t: Float[Array, "b f"], cond: dict, kernels: bool, scan: bool = True
  ) -> Float[Array, "b f h w o"]:
    """cond: "given" (b f h w 1), and what `conditions` names: "label" (b,), "fps" (b,), "size" (b 2), "text" (b l e),
    or (b l) of pieces where there is an encoder, with "text_seen" (b l), which of it is there; without it, one token of
    zeros; "sound" (b f e); without it, zeros. cond["null"] has for each of them whether it is dropped (b,); one that it
    lacks is not."""
    tokens, around = self.enter(x, t, cond, kernels)
    return self.leave(self.repeat(tokens, around, scan), around).astype(x.dtype)

  def enter(
    self, x: Float[Array, "b f h w c"], t: Float[Array, "b f"], cond: dict, kernels: bool
  ) -> tuple[Float[Array, "b cells n d"], Around]:
    """The tokens of the noised video, and what all blocks see beside them."""
    config = self.config
    cells = config.cells(x.shape[1], x.shape[2:4])
    pf, ph, _ = config.patch
    seen = [x, cond["given"]] if config.given else [x]
    seen = jnp.concatenate([part.astype(config.dtype) for part in seen], -1)
    rows = rearrange(seen, "b f h w c -> b f h (w c)")  # a last axis of 4 numbers is moved as if it had 128
    tokens = rearrange(rows, "b (f p) (h q) (w r) -> b f (h w) (p q r)", p=pf, q=ph, w=cells[2])
    tokens = self.embed(tokens)
    late = None
    if config.positions != "rope":
      places, times = (jnp.asarray(x, tokens.dtype) for x in positions.sincos_tables(cells, config.width))
      tokens += places[None, None]
      if config.positions.startswith("late"):
        late = times
      elif config.positions != "rope+places":
        tokens += times[None, :, None]
    time = self.time(t[:, ::pf])
    if config.classes:
      time += self.label(jnp.where(dropped(cond, "label"), config.classes, cond["label"]))[:, None]
    for name in ("fps", "size"):
      if getattr(config, name) and name in cond:
        told = getattr(self, name)(cond[name].reshape(x.shape[0], -1))
        time += jnp.where(jnp.reshape(dropped(cond, name), (-1, 1)), 0, told)[:, None]
    padding = -cells[0] % layout.devices("sequence")
    if padding:
      tokens = jnp.pad(tokens, ((0, 0), (0, padding), (0, 0), (0, 0)))
      time = jnp.pad(time, ((0, 0), (0, padding), (0, 0)))
      late = None if late is None else jnp.pad(late, ((0, padding), (0, 0)))
    text = self.read(cond, x.shape[0]) if config.text else None
    if config.pooled:
      words, seen = text
      time += self.text_pooled(jnp.mean(words, 1, where=jnp.swapaxes(seen, 1, 2)))[:, None]
    time = layout.whole(time)
    shared = self.modulation(nnx.silu(time)) if hasattr(self, "modulation") else None
    sound = self.hear(cond, x.shape[0], cells[0], tokens.shape[1]) if config.sound else None
    around = Around(time, shared, text, sound, late, cells, kernels)
    return layout.tokens(tokens, layout.FRAMES), around

  def read(self, cond: dict, count: Any) -> tuple[Float[Array, "b l d"], Bool[Array, "b 1 l"]]:
    """The text as blocks attend to it: zeros where it is dropped, or not there. count: of videos, also symbolic."""
    text = cond.get("text", jnp.zeros((count, 1, self.config.text)))
    seen = cond.get("text_seen", jnp.ones(text.shape[:2], bool))
    if text.ndim == 2:
      text = self.encoder(text, seen)
    null = jnp.reshape(dropped(cond, "text"), (-1, 1))  # as one token of zeros, whatever the text was
    text = jnp.where(null[..., None], 0.0, text)
    seen = jnp.where(null, (jnp.arange(text.shape[1]) == 0)[None], seen)
    hidden = nnx.gelu(self.text_up(text.astype(self.config.dtype)), approximate=True)
    return self.text_down(hidden), seen[:, None]

  def hear(
    self, cond: dict, count: Any, frames: int, padded: int
  ) -> tuple[Float[Array, "b f r d"], Bool[Array, "1 f r"]]:
    """The sound as blocks attend to it: of each of so many frames of patches, what is heard from `NEAR` before it to
    `NEAR` after it; zeros where it is dropped, or not there. count: as `read` has it."""
    config = self.config
    sound = cond.get("sound", jnp.zeros((count, frames * config.patch[0], config.sound)))
    sound = jnp.where(jnp.reshape(dropped(cond, "sound"), (-1, 1, 1)), 0.0, sound)
    sound = rearrange(sound, "b (f p) e -> b f (p e)", p=config.patch[0])
    heard = self.sound_down(nnx.gelu(self.sound_up(sound.astype(config.dtype)), approximate=True))
    heard = jnp.pad(heard, ((0, 0), (NEAR, NEAR + padded - frames), (0, 0)))
    around = jnp.stack([heard[:, place : place + padded] for place in range(2 * NEAR + 1)], 2)
    place = np.arange(padded)[:, None] + np.arange(-NEAR, NEAR + 1)
    there = (place >= 0) & (place < frames) | (place == np.arange(padded)[:, None])  # of padding, itself
    return around + self.sound_places[...].astype(heard.dtype)[None, None], jnp.asarray(there)[None]

  def leave(self, tokens: Float[Array, "b cells n d"], around: Around) -> Float[Array, "b f h w o"]:
    """What the network says, from the last block's tokens."""
    cells, (pf, ph, pw) = around.cells, self.config.patch
    tokens, time = tokens[:, : cells[0]], around.time[:, : cells[0]]
    if self.config.zero_ends():
      shift, scale = jnp.split(self.final_modulation(nnx.silu(time))[:, :, None], 2, axis=-1)
    else:
      table = self.final_table[...].astype(time.dtype)
      shift, scale = (part[None, None, None] + time[:, :, None] for part in jnp.split(table, 2))
    values = self.out(modulate(self.norm(tokens), shift, scale))
    rows = rearrange(values, "b f (h w) (p q r) -> b (f p) (h q) (w r)", h=cells[1], p=pf, q=ph)
    return rearrange(rows, "b f h (w c) -> b f h w c", w=cells[2] * pw)

  def stages(self, x: Float[Array, "b f h w c"], t: Float[Array, "b f"], cond: dict) -> dict[str, Array]:
    """See `Network`: the repeats one by one, not as a scan."""
    tokens, around = self.enter(x, t, cond, False)
    found = {"embedding": tokens}
    graphdef, stacked = nnx.split(self.pattern)
    for number in range(self.config.depth // len(self.config.pattern)):
      layer = jax.tree.map(lambda leaf, number=number: leaf[number], stacked)
      tokens = nnx.merge(graphdef, layer)(tokens, around, number)
      found[f"repeat {number}"] = tokens
    return {**found, "out": self.leave(tokens, around)}

  def repeat(self, tokens: Float[Array, "b f n d"], around: Around, scan: bool = True) -> Float[Array, "b f n d"]:
    """The pattern, again and again: as one scan, whose depth costs no compile time, or written out."""
    graphdef, stacked = nnx.split(self.pattern)

    def body(tokens: Array, layer: tuple) -> tuple[Array, None]:
      number, params = layer
      if self.config.remat == "dots+params":
        params = layout.gathered(params, jnp.dtype(self.config.dtype))
      return nnx.merge(graphdef, params)(tokens, around, number), None

    numbers = jnp.arange(self.config.depth // len(self.config.pattern))
    layers = (numbers, nnx.to_pure_dict(stacked))
    return jax.lax.scan(REMAT[self.config.remat](body), tokens, layers, unroll=not scan)[0]
