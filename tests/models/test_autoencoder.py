"""The video autoencoder: causal, and the same in parts and in tiles as whole."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt import sharding
from vdt.autoencoder import Autoencoder
from vdt.config import Mesh
from vdt.models import VideoAutoencoder
from vdt.reconstruction import Reconstruction

MODEL = VideoAutoencoder(cell=(4, 2, 2), widths=(8, 12), blocks=(1, 1), latents=6, dtype="float32")


def random(network, scale=0.2):
  """Parameters of which none is zero, so that every layer acts."""
  like = jax.eval_shape(network.init, jax.random.key(0))
  leaves, tree = jax.tree.flatten(like)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return tree.unflatten([scale * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


def interface(model, frames, size):
  network = model.build(frames, size, {})
  params = {
    "weights": random(network),
    "shift": jnp.linspace(-1, 1, model.latents),
    "scale": jnp.full(model.latents, 0.5),
  }
  return Autoencoder(params, model.factor, model.latents, model.reach, {}, network.encode, network.decode)


def clip(frames, size, count=1):
  return np.random.default_rng(0).uniform(-1, 1, (count, frames, *size, 3)).astype(np.float32)


def test_no_latent_sees_a_later_frame_and_no_frame_a_later_latent():
  made, video = interface(MODEL, 17, (8, 12)), clip(17, (8, 12))
  latents = np.asarray(made.encode(made.params, video))
  pixels = np.asarray(made.decode(made.params, latents))
  assert latents.shape == (1, made.frames(17), 2, 3, 6) and pixels.shape == video.shape
  for kept in (0, 1, 3):  # latents that are to stay
    edited = video.copy()
    edited[:, 1 + 4 * kept :] = -edited[:, 1 + 4 * kept :]
    found = np.asarray(made.encode(made.params, edited))
    np.testing.assert_array_equal(found[:, : kept + 1], latents[:, : kept + 1])
    assert (found[:, kept + 1] != latents[:, kept + 1]).mean() > 0.9, "the first frame that it sees counts"
    other = latents.copy()
    other[:, kept + 1 :] += 1
    back = np.asarray(made.decode(made.params, other))
    np.testing.assert_array_equal(back[:, : 1 + 4 * kept], pixels[:, : 1 + 4 * kept])
    assert (back[:, 1 + 4 * kept] != pixels[:, 1 + 4 * kept]).mean() > 0.5


def test_parts_and_tiles_are_the_whole():
  model = dataclasses.replace(MODEL, blocks=(2, 1))
  made, video = interface(model, 17, (32, 40)), clip(17, (32, 40))
  latents = made.encode(made.params, video)
  pixels = made.decode(made.params, latents)
  assert model.reach == 2 and 0.05 < np.abs(pixels).mean() < 0.95, "most is not clipped"
  for chunk in (1, 2, 5):
    np.testing.assert_allclose(made.encode(made.params, video, chunk=chunk), latents, atol=1e-6 * np.abs(latents).max())
    np.testing.assert_allclose(made.decode(made.params, latents, chunk=chunk), pixels, atol=1e-6)
  for tile, chunk in ((3, 0), (4, 2)):
    found = made.encode(made.params, video, chunk=chunk, tile=tile)
    np.testing.assert_allclose(found, latents, atol=1e-5)
    np.testing.assert_allclose(made.decode(made.params, latents, chunk=chunk, tile=tile), pixels, atol=1e-5)
  short = dataclasses.replace(made, reach=1)
  assert np.abs(short.encode(made.params, video, tile=3) - latents).max() > 1e-3, "less than its reach shows"


def test_a_network_that_was_not_trained_is_linear_and_an_image_is_a_video():
  made = MODEL.build(1, (8, 8), {})
  params = made.init(jax.random.key(0))
  x = jnp.asarray(clip(1, (8, 8), 2))
  encode = lambda x: made.encode(params, x)[0]
  np.testing.assert_allclose(encode(x[:1] + 2 * x[1:]), encode(x[:1]) + 2 * encode(x[1:]), atol=1e-5)
  assert made.decode(params, encode(x))[0].shape == x.shape
  for frames, size in ((16, (8, 8)), (17, (8, 10)), (0, (8, 8))):
    with pytest.raises(ValueError, match="takes 1 \\+ 4 k frames"):
      MODEL.build(frames, size, {})


def test_a_step_on_a_mesh_is_the_step_on_one_device():
  network, objective = MODEL.build(5, (8, 8), {}), Reconstruction(motion=1.0, still=0.5)
  x0 = jnp.asarray(clip(5, (8, 8), 4))
  params = random(network)
  keys, still = objective.draw(jax.random.key(3), x0)
  assert set(np.asarray(still)) == {0.0, 1.0}
  loss = lambda params, x0: objective.losses(partial(network.apply, params), x0, keys, still, {}).mean()
  wanted, gradients = jax.jit(jax.value_and_grad(loss))(params, x0)
  mesh = Mesh(data=2, fsdp=2, tensor=2).build()
  with jax.set_mesh(mesh):
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, sharding.place(params, mesh))
    assert not placed["encoder"]["levels"][0]["blocks"][0]["spatial"]["kernel"].sharding.is_fully_replicated
    found, theirs = jax.jit(jax.value_and_grad(loss))(
      placed, jax.device_put(x0, sharding.NamedSharding(mesh, sharding.BATCH))
    )
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7), theirs, gradients
  )
