r"""Models for pod slices, on clips of your own: 16 frames of 256 x 256 pixels, 256 patches a frame.

  vdt ingest FOLDER --out data/own_clips --size 256 --fps 8 --frames 16 --stride 8
  vdt plan --config experiments/large.py:xl
  gcloud storage cp -r data/own_clips gs://BUCKET/data
  vdt train --config experiments/large.py:xl --config.data.data_dir=gs://BUCKET/data --workdir gs://BUCKET/xl

Each layer's parameters are gathered once and kept (remat "dots+params"), and v5e's compiler is told to sum gradients
while it goes on with others (README, "What moved the plan"): it has not been seen to run on a chip.

Variants: xl (Latte's XL with heads that fill a TPU's lanes, 0.68 B parameters, for v5e:16x16), 2b (2.1 B parameters,
for v5p:4x4x4), both with their training steps written out, tiny (the same in small, on simulated clips). Large patches
of pixels need the clean video as the network's output (arXiv:2511.13720). Measured: nothing yet; what the TPU compiler
makes of both is in docs/plans.
"""

from data_pipelines.clips import Clips, SimulatedClips
from vdt.config import AdamW, Config, Mesh
from vdt.diffusion import RectifiedFlow, Sampler, Tasks, resolution_shift
from vdt.evals.val_loss import ValLoss
from vdt.models import TransformerConfig

ASYNC_SUMS = {
  "xla_enable_async_all_reduce": True,
  "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,  # inside the products that run meanwhile
  "xla_jf_crs_combiner_threshold_in_bytes": 0,  # each as soon as its gradient is there, not many as one
  "xla_tpu_scoped_vmem_limit_kib": 20480,  # room for both
}


def get_config(variant: str = "xl") -> Config:
  config = Config(
    steps=400_000,
    data=Clips(name="own_clips", frames=16, size=(256, 256), batch_size=1280, flip=True),
    model=TransformerConfig.sized("XL-9x128", patch=(1, 16, 16), remat="dots+params", scan=False),
    diffusion=RectifiedFlow(prediction="x0", shift=resolution_shift(tokens=16 * 16 * 16, base_tokens=32 * 32)),
    tasks=Tasks(generation=0.7, prediction=0.2, interpolation=0.1),
    sampler=Sampler(method="heun", steps=32),
    optimizer=AdamW(lr=1e-4, warmup=5_000),
    evals={"loss": ValLoss(every=10_000)},
    best="loss/generation/mean",
    mesh=Mesh(fsdp=16),
    spike=5.0,
    roll_back=True,
    topology="v5e:16x16",
    xla={"v5e": ASYNC_SUMS},
  )
  match variant:
    case "xl":
      pass  # five clips a chip
    case "2b":
      config.model = TransformerConfig.sized("2B", patch=(1, 16, 16), remat="dots+params", scan=False)
      config.data.batch_size, config.topology = 1024, "v5p:4x4x4"  # sixteen clips a chip
    case "tiny":
      config.data = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=8)
      small = dict(width=32, heads=1, dtype="float32", remat="dots+params")
      config.model = TransformerConfig.sized("XS", patch=(1, 4, 4), **small)
      config.mesh, config.topology = Mesh(), "v5e:2x4"
      config.sampler.steps = 4
      config.steps, config.log_every, config.save_every = 20, 5, 10
      config.spike, config.roll_back = 0.0, False  # of eight clips each, many steps leap
      config.evals["loss"].count, config.evals["loss"].every, config.best = 8, 0, ""
    case _:
      raise ValueError(f"unknown variant {variant!r}: choose xl, 2b or tiny")
  return config
