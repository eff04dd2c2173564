"""Autoencoders of others give what they gave there; the one interface to them, and to ours."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipelines.clips import SimulatedClips
from vdt import conditions, sample
from vdt.autoencoder import load
from vdt.config import AdamW, Config, Mesh
from vdt.diffusion import Tasks
from vdt.evals import pixels
from vdt.models import VideoAutoencoder
from vdt.reconstruction import Reconstruct, Reconstruction
from vdt.train import train

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


def test_wrong_arrays_are_named_and_older_names_are_known(tmp_path):
  golden, arrays = folder(tmp_path, "autoencoder_kl")
  latents = load(str(tmp_path)).fingerprint()
  at = "decoder.mid_block.attentions.0"
  old = {name: array for name, array in arrays.items() if not name.startswith(at)}
  names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", "group_norm": "group_norm"}
  for new, name in names.items():
    old |= {f"{at}.{name}.{part}": arrays[f"{at}.{new}.{part}"] for part in ("weight", "bias")}
  save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
  assert load(str(tmp_path)).fingerprint() == latents
  del old["quant_conv.bias"]
  old |= {"more.weight": np.ones(3, np.float32), "decoder.conv_in.bias": np.ones(3, np.float32)}
  save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
  with pytest.raises(ValueError, match=r"conv_in.bias is \(3,\), not .*quant_conv.bias is missing.*more.weight is"):
    load(str(tmp_path))
  said = json.loads(str(golden["config"])) | {"down_block_types": ["AttnDownEncoderBlock2D"]}
  (tmp_path / "config.json").write_text(json.dumps(said))
  with pytest.raises(ValueError, match="AttnDownEncoderBlock2D, which is not known here"):
    load(str(tmp_path))
  with pytest.raises(FileNotFoundError, match="no autoencoder in"):
    load(str(tmp_path / "nowhere"))


@pytest.mark.skipif(not (SHARED / "data" / "taef2").exists(), reason="the weights of taef2 are not beside this clone")
def test_taef2_gives_the_originals_latents_and_pixels():
  golden = np.load(SHARED / "parity" / "taef2_golden.npz")
  frames = lambda name: golden[name].transpose(0, 2, 3, 1)[:, None]
  made = load(str(SHARED / "data" / "taef2"))
  latents = made.encode(made.params, 2 * frames("image_nchw") - 1)
  np.testing.assert_allclose(latents, frames("latent_nchw"), atol=1e-4)
  out = made.decode(made.params, frames("latent_nchw"))
  np.testing.assert_allclose(0.5 * out + 0.5, np.clip(frames("decoded_nchw"), 0, 1), atol=1e-4)


def test_a_run_of_ours_is_an_autoencoder_with_standard_latents(tmp_path, data_dir):
  config = Config(
    steps=3,
    data=SimulatedClips(name="sprites16", frames=5, size=(16, 16), batch_size=8, data_dir=data_dir, flip=True),
    model=VideoAutoencoder(cell=(4, 2, 2), widths=(16, 32), blocks=(1, 1), latents=8, dtype="float32"),
    diffusion=Reconstruction(error="l2", motion=1.0, still=0.1, measured=44),
    tasks=Tasks(),
    sampler=Reconstruct(),
    optimizer=AdamW(lr=1e-3, warmup=1),
    mesh=Mesh(data=1),
    log_every=1,
    save_every=2,
  )
  train(config, str(tmp_path / "whole"))
  made = load(str(tmp_path / "whole"))
  assert (made.factor, made.channels, made.frames(5)) == ((4, 4, 4), 8, 2)
  clips = np.concatenate([config.data.batch(step)["video"] for step in range(6)])[:44]
  latents = np.asarray(made.encode(made.params, pixels(clips)))
  np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), 0, atol=1e-4)
  np.testing.assert_allclose(latents.std((0, 1, 2, 3)), 1, atol=1e-4)
  back = made.decode(made.params, latents)
  mesh, network, params, _ = sample.load(config, str(tmp_path / "whole"))
  with jax.set_mesh(mesh):
    sampled = sample.generate(config, network, params, pixels(clips), conditions.absent(config, len(clips)))
  np.testing.assert_allclose(back, sampled, atol=1e-4)
  page = (tmp_path / "whole" / "report.html").read_text()
  assert "<p>real, held out</p>" in page and "<p>reconstructions</p>" in page
  config.steps = 2
  train(config, str(tmp_path / "parts"))
  config.steps = 3
  train(config, str(tmp_path / "parts"))
  again = load(str(tmp_path / "parts"))
  assert again.fingerprint() == made.fingerprint(), "resumed, it is equal bit for bit"
  train(config, str(tmp_path / "parts"))  # at its end already: what was measured stays
  config.steps = 4
  train(config, str(tmp_path / "parts"))
  said = json.loads((tmp_path / "parts" / "channels.json").read_text())
  (tmp_path / "parts" / "channels.json").write_text(json.dumps(said | {"step": 3}))
  with pytest.raises(ValueError, match=r"channels\.json is of step 3, the weights are of step 4"):
    load(str(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "wan"])
def test_diffusers_itself_gives_the_same(name, tmp_path):
  """Other shapes than the golden ones: levels, layers, frames."""
  torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
  from parity.make_autoencoders import KL, WAN, randomised

  torch.manual_seed(1)
  if name == "kl":
    blocks = dict(block_out_channels=(8, 8, 16, 16), layers_per_block=2, latent_channels=8, norm_num_groups=8)
    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    model, shape = diffusers.AutoencoderKL(**{**KL, **blocks, **kinds}), (2, 3, 32, 16)
  else:
    more = dict(dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    model, shape = diffusers.AutoencoderKLWan(**{**WAN, **more}), (1, 3, 9, 16, 32)
  randomised(model).save_pretrained(tmp_path)
  x = torch.rand(shape) * 2 - 1
  with torch.no_grad():
    mean = model.encode(x).latent_dist.mean
    out = model.decode(mean).sample
  video = lambda y: (y[:, :, None] if y.ndim == 4 else y).permute(0, 2, 3, 4, 1).numpy()
  made = load(str(tmp_path))
  weights = made.params["weights"]
  np.testing.assert_allclose(made.encode_part(weights, jnp.asarray(video(x)), None)[0], video(mean), atol=1e-4)
  found = made.decode_part(weights, jnp.asarray(video(mean)), None)[0]
  np.testing.assert_allclose(np.clip(found, -1, 1), np.clip(video(out), -1, 1), atol=1e-4)
