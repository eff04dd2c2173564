"""The pieces every block is made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vdt.models import layout

zeros = nnx.initializers.zeros_init()
xavier = nnx.initializers.xavier_uniform()
DENSE = "dense"  # what a dense layer put out, for a remat that keeps it
REMAT: dict[str, Callable] = {
  "none": lambda body: body,
  "dots": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(DENSE)),
  "dots+params": lambda body: jax.checkpoint(
    body, policy=jax.checkpoint_policies.save_only_these_names(DENSE, layout.GATHERED)
  ),
  "full": jax.checkpoint,
  "offload": lambda body: jax.checkpoint(
    body,
    policy=jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[DENSE],
      offload_src="device",
      offload_dst="pinned_host",
    ),
  ),
}
"""What the backward pass has of a repeat of the pattern; see `TransformerConfig.remat`."""


class Dense(nnx.Linear):
  """A linear map of the last axis, with a 2-D kernel.

  On a single device the other axes are flattened into one first: on a CPU that halves a training step. Under a mesh
  that shards frames or patches the same reshape would gather whole activations, so there it is left out.
  """

  def __init__(
    self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, kernel_init=xavier, bias: bool = True
  ):
    super().__init__(inputs, outputs, use_bias=bias, dtype=dtype, kernel_init=kernel_init, rngs=rngs)

  def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    if layout.meshed():
      return checkpoint_name(super().__call__(x), DENSE)
    flat = super().__call__(x.reshape(-1, x.shape[-1]))
    return checkpoint_name(flat.reshape(*x.shape[:-1], self.out_features), DENSE)


class MLP(nnx.Module):
  """Two dense layers with a tanh-approximated GELU between them."""

  def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.up = Dense(width, hidden, dtype=dtype, rngs=rngs)
    self.down = Dense(hidden, width, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, "b f n d"], split: int) -> Float[Array, "b f n d"]:
    """split: see `layout`."""
    return layout.tokens(self.down(nnx.gelu(layout.hidden(self.up(x), split), approximate=True)), split)


class TimeEmbedding(nnx.Module):
  """Diffusion time to a vector: cos and sin of 1000 t at 128 frequencies, then two dense layers (arXiv:2212.09748).

  discrete: of the timestep 1000 t - 1 instead, as networks see it that were trained with timesteps 0 to 999.
  """

  def __init__(self, width: int, discrete: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.discrete = discrete
    self.up = Dense(256, width, dtype=dtype, rngs=rngs)
    self.down = Dense(width, width, dtype=dtype, rngs=rngs)

  def __call__(self, t: Float[Array, "b f"]) -> Float[Array, "b f d"]:
    frequencies = 10_000.0 ** (-jnp.arange(128) / 128)
    number = 1000.0 * t.astype(jnp.float32)
    if self.discrete:
      number = jnp.maximum(number - 1.0, 0.0)
    angles = jnp.multiply.outer(number, frequencies)
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return self.down(nnx.silu(self.up(waves)))


class Told(nnx.Module):
  """Positive numbers, as frames a second or pixels, to a vector that is zero at first: as `TimeEmbedding`, of the
  logarithm of each to the base of 2, over 16."""

  def __init__(self, count: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.each = nnx.List([TimeEmbedding(width, False, dtype=dtype, rngs=rngs) for _ in range(count)])
    self.out = Dense(width, width, dtype=dtype, kernel_init=zeros, rngs=rngs)

  def __call__(self, values: Float[Array, "b n"]) -> Float[Array, "b d"]:
    level = jnp.log2(values) / 16.0
    return self.out(nnx.silu(sum(each(level[:, i : i + 1])[:, 0] for i, each in enumerate(self.each))))


MODULATIONS = ("zero", "single", "none", "projected", "bare")


class Residual(nnx.Module):
  """x + gate * body(norm(x) * (1 + scale) + shift), with (shift, scale, gate) from the diffusion time of each frame.

  modulation: "zero" has its own map from the time embedding, zero at first (adaLN-Zero, arXiv:2212.09748);
  "single" adds its own small table to a map that all layers share (adaLN-single, arXiv:2310.00426); "none" is a plain
  pre-norm residual; "projected" that with one more dense layer after the body (arXiv:2102.05095); "bare" has no norm.
  """

  def __init__(self, body: nnx.Module, width: int, modulation: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
    plain = modulation in ("none", "projected")
    if modulation != "bare":
      epsilon = 1e-5 if modulation == "projected" else 1e-6
      self.norm = nnx.LayerNorm(width, epsilon=epsilon, use_bias=plain, use_scale=plain, dtype=dtype, rngs=rngs)
    self.body = body
    if modulation == "zero":
      self.modulation = Dense(width, 3 * width, dtype=dtype, kernel_init=zeros, rngs=rngs)
    elif modulation == "single":
      self.table = nnx.Param(jax.random.normal(rngs.params(), (3 * width,)) * width**-0.5)
    elif modulation == "projected":
      self.projection = Dense(width, width, dtype=dtype, rngs=rngs)
    self.kind = modulation

  def __call__(
    self,
    x: Float[Array, "b f n d"],
    time: Float[Array, "b f d"],
    shared: Float[Array, "b f d3"] | None,
    *args,
  ) -> Float[Array, "b f n d"]:
    match self.kind:
      case "bare":
        return x + self.body(x, *args)
      case "none":
        return x + self.body(self.norm(x), *args)
      case "projected":
        return x + self.projection(self.body(self.norm(x), *args))
    signal = (
      self.modulation(layout.whole(nnx.silu(time)))
      if self.kind == "zero"
      else shared + self.table[...].astype(shared.dtype)[None, None]
    )
    shift, scale, gate = jnp.split(layout.whole(signal)[:, :, None], 3, axis=-1)
    return x + gate * self.body(modulate(self.norm(x), shift, scale), *args)


def modulate(
  x: Float[Array, "b f n d"], shift: Float[Array, "b f 1 d"], scale: Float[Array, "b f 1 d"]
) -> Float[Array, "b f n d"]:
  return x * (1.0 + scale) + shift
