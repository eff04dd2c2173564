"""Autoencoders of others give what they gave there; the one interface to them, and to ours."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vdt.autoencoder import load

PARITY = Path(__file__).parent / "parity"
SHARED = Path(__file__).parents[2] / "shared"


def folder(tmp_path, name):
  """A golden autoencoder as diffusers writes one, and its arrays."""
  golden = np.load(PARITY / f"{name}.npz")
  arrays = {key[2:]: golden[key].astype(np.float32) for key in golden.files if key.startswith("w/")}
  save_file(arrays, tmp_path / "diffusion_pytorch_model.safetensors")
  (tmp_path / "config.json").write_text(str(golden["config"]))
  return golden, arrays


@pytest.mark.parametrize("name", ["autoencoder_kl", "autoencoder_wan"])
def test_diffusers_autoencoders_give_the_originals_latents_and_pixels(name, tmp_path):
  golden, _ = folder(tmp_path, name)
  made = load(str(tmp_path))
  weights = made.params["weights"]
  mean, _ = jax.jit(made.encode_part)(weights, jnp.asarray(golden["in"]), None)
  np.testing.assert_allclose(mean, golden["mean"], atol=1e-4)
  latents = np.asarray(made.encode(made.params, golden["in"]))
  said = json.loads(str(golden["config"]))
  scale = np.array(said["latents_std"]) if name == "autoencoder_wan" else 1 / 0.18215
  shift = np.array(said["latents_mean"]) if name == "autoencoder_wan" else 0.0
  np.testing.assert_allclose(latents * scale + shift, golden["mean"], atol=1e-4)
  out, _ = jax.jit(made.decode_part)(weights, jnp.asarray(golden["z"]), None)
  assert np.abs(golden["out"]).max() > 0.5
  np.testing.assert_allclose(np.clip(out, -1, 1), np.clip(golden["out"], -1, 1), atol=1e-4)
  standard = ((golden["z"] - shift) / scale).astype(np.float32)
  np.testing.assert_allclose(made.decode(made.params, standard), np.clip(golden["out"], -1, 1), atol=1e-4)
  frames = golden["in"].shape[1]
  assert latents.shape == (*golden["mean"].shape[:1], made.frames(frames), *golden["mean"].shape[2:])
  for chunk in (2,):
    np.testing.assert_allclose(made.encode(made.params, golden["in"], chunk=chunk), latents, atol=1e-5)
    np.testing.assert_allclose(
      made.decode(made.params, standard, chunk=chunk), np.clip(golden["out"], -1, 1), atol=1e-4
    )
  with pytest.raises(ValueError, match="no exact tiles"):
    made.encode(made.params, golden["in"], tile=2)
