r"""One training step on a CPU, ours against PyTorch's Latte (arXiv:2401.03048) as the diffusers package has it.

  pip install -e '.[bench]'
  python experiments/benchmarks/train_step.py --json experiments/benchmarks/results/train_step.json

S-sized, 8 frames of 16 x 16 x 4 latents, batch 2, float32. A step draws noise and times, computes the velocity loss and
its gradients, clips their norm, and applies AdamW and the moving average. The arms take turns, round after round, so
that other work on the machine slows all of them alike; a figure is the median of its rounds. Arms: `vdt` is our default
model (adaLN-Zero, RoPE + sin-cos, qk-norm); `vdt equal` has the peer's adaLN-single, sin-cos and no qk-norm:
equal parameters and computation; `latte eager` and `latte compiled` are the peer, whose better figure counts. The
profile says where the time of the equal arm's step goes, by kind of operation, summed over threads.
"""

import argparse
import collections
import importlib.util
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

# Before the first import of PyTorch, which ours may cause: spinning made it six times slower on a machine not idle.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["JAX_PLATFORMS"] = "cpu"  # also where libtpu is installed

import jax
import jax.numpy as jnp

from vdt import host
from vdt.checkpoint import State, donated
from vdt.config import AdamW, Config
from vdt.diffusion import RectifiedFlow, Tasks
from vdt.models import TransformerConfig
from vdt.train import make_update

BATCH, FRAMES, SIZE, CHANNELS = 2, 8, (16, 16), 4
OPTIMIZER = AdamW(lr=1e-4, warmup=1)
DECAY = 0.9999
EQUAL = dict(pattern=((("space", "single"),), (("time", "single"),)), positions="sincos", qk_norm=False)
SIDE = 2048  # of the square matrices that measure the peak


KINDS = {  # the first pattern found in the name of an operation's source says what it is
  r"->|softmax|exp$|reduce_max": "attention",
  r"dot_general": "matrix products",
  r"rsqrt|integer_pow|square|reduce_sum": "norms and sums",
  r"tanh|logistic": "GELU, SiLU",
  r"transpose|concatenate|reshape|split|slice|broadcast|copy|pad|reduce_precision": "moving data",
  r"": "other elementwise",
}


class Arm(NamedTuple):
  """What is timed: `forward()` and `step()` each return when their work is done. parameters: how many.

  compiled: the text of our step as XLA compiled it.
  """

  forward: Callable[[], None]
  step: Callable[[], None]
  parameters: int
  flops: float
  compiled: Callable[[], str] | None = None


def ours(**fields) -> Arm:
  """Our network with the update of `vdt.train`, whole."""
  model = TransformerConfig.sized("S", channels=CHANNELS, dtype="float32", remat="dots", **fields)
  config = Config(1, None, model, RectifiedFlow(), Tasks(), None, optimizer=OPTIMIZER, ema=DECAY)
  network, optimizer = model.build(FRAMES, SIZE, {}), OPTIMIZER.build()
  update = jax.jit(make_update(config, network, optimizer, jax.random.key(0)), donate_argnums=donated())
  apply = jax.jit(network.apply)
  params = jax.jit(network.init)(jax.random.key(1))
  state = State(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32))
  video = jax.random.randint(jax.random.key(2), (BATCH, FRAMES, *SIZE, CHANNELS), 0, 256).astype(jnp.uint8)
  batch = {"video": video, "cond": {}, "stop": jnp.zeros(BATCH, jnp.int32)}
  x, t, cond = video / 127.5 - 1.0, jnp.full((BATCH, FRAMES), 0.5), {"given": jnp.zeros((*video.shape[:-1], 1))}

  def step() -> None:
    nonlocal state
    state = jax.block_until_ready(update(state, batch)[0])

  forward = lambda: jax.block_until_ready(apply(state.params, x, t, cond))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  compiled = lambda: update.lower(state, batch).compile().as_text()
  return Arm(forward, step, count, BATCH * model.flops(FRAMES, SIZE), compiled)


def latte(compiled: bool, flops: float) -> Arm:
  """The peer, with whichever of PyTorch's two fast AdamW implementations is faster here."""
  import torch
  from diffusers import LatteTransformer3DModel

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  model = LatteTransformer3DModel(
    num_attention_heads=6,
    attention_head_dim=64,
    in_channels=CHANNELS,
    out_channels=2 * CHANNELS,
    num_layers=6,  # of a space block and a time block each
    sample_size=SIZE[0],
    patch_size=2,
    activation_fn="gelu-approximate",
    norm_type="ada_norm_single",
    caption_channels=8,
    cross_attention_dim=None,
    num_embeds_ada_norm=1000,
    video_length=FRAMES,
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    attention_bias=True,
  )
  x0 = torch.randn(BATCH, CHANNELS, FRAMES, *SIZE)
  caption = torch.zeros(BATCH, 1, 8)
  parameters, ema = list(model.parameters()), [p.detach().clone() for p in model.parameters()]

  def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return model(x, timestep=1000 * t, encoder_hidden_states=caption, return_dict=False)[0][:, :CHANNELS]

  denoise = torch.compile(denoise) if compiled else denoise

  def gradients() -> None:
    noise, t = torch.randn_like(x0), torch.sigmoid(torch.randn(BATCH))
    mix = t[:, None, None, None, None]
    loss = torch.nn.functional.mse_loss(denoise((1 - mix) * x0 + mix * noise, t), noise - x0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip, foreach=True)

  gradients()
  betas, decay = (OPTIMIZER.b1, OPTIMIZER.b2), OPTIMIZER.weight_decay
  make = partial(torch.optim.AdamW, parameters, lr=OPTIMIZER.lr, betas=betas, weight_decay=decay)
  optimizers = [make(fused=True), make(foreach=True)]
  optimizer = min(optimizers, key=lambda each: min(timed(each.step, 3)))

  def step() -> None:
    optimizer.zero_grad(set_to_none=True)
    gradients()
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(ema, parameters, 1 - DECAY)

  def forward() -> None:
    with torch.no_grad():
      denoise(x0, torch.full((BATCH,), 0.5))

  return Arm(forward, step, sum(p.numel() for p in parameters), flops)


def peaks() -> dict[str, Callable[[], None]]:
  """A float32 matrix product in either framework: what the machine gives at best."""
  import torch

  a, b = jax.random.normal(jax.random.key(0), (SIDE, SIDE)), torch.randn(SIDE, SIDE)
  product = jax.jit(jnp.matmul)
  return {"jax": lambda: jax.block_until_ready(product(a, a)), "torch": lambda: b @ b}


def profile(arm: Arm, steps: int = 3) -> dict[str, float]:
  """The share of each kind of operation in the time that all threads spend on some steps, and on the optimizer's."""
  text = arm.compiled()
  source = dict(re.findall(r"%([\w.-]+) = .*?op_name=\"([^\"]*)\"", text))
  nested = set(re.findall(r"%([\w.-]+) = [^=\n]* (?:while|call|conditional)\(", text))
  seconds = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        arm.step()
    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for event in (event for line in plane.lines for event in line.events):
        if "hlo_op" in dict(event.stats) and event.name not in nested:
          name = source.get(event.name, "")
          inside = "jvp(" in name  # the loss and its gradient; the rest is the optimizer's, and copies
          kind = next(kind for pattern, kind in KINDS.items() if re.search(pattern, name.rpartition("closed_call")[2]))
          seconds[kind if inside else "optimizer, average, copies"] += event.duration_ns
  return {kind: spent / seconds.total() for kind, spent in seconds.most_common()}


def timed(work: Callable[[], None], count: int) -> list[float]:
  """Seconds of `count` calls, after one that is not counted."""
  work()
  seconds = []
  for _ in range(count):
    start = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - start)
  return seconds


def measure(rounds: int) -> dict:
  """The figures of all arms, as they are written to JSON. Seconds, and 10^9 operations a second."""
  import torch

  arms = {"vdt": ours(), "vdt equal": ours(**EQUAL)}
  arms |= {name: latte(name == "latte compiled", arms["vdt equal"].flops) for name in ("latte eager", "latte compiled")}
  works = {(name, kind): getattr(arm, kind) for name, arm in arms.items() for kind in ("forward", "step")}
  works |= {(name, "peak"): work for name, work in peaks().items()}
  seconds = {key: [] for key in works}
  for work in works.values():
    work()  # compiles
  for _ in range(rounds):
    for key, work in works.items():
      seconds[key] += timed(work, 1)
  median = {key: statistics.median(values) for key, values in seconds.items()}
  peak = {name: 2 * SIDE**3 / min(seconds[name, "peak"]) / 1e9 for name in ("jax", "torch")}
  peer = {kind: min(median["latte eager", kind], median["latte compiled", kind]) for kind in ("forward", "step")}
  rows = {}
  for name, arm in arms.items():
    rows[name] = {"parameters": arm.parameters}
    for kind, flops in (("forward", arm.flops), ("step", 3 * arm.flops)):
      share = flops / median[name, kind] / 1e9 / peak["jax" if name.startswith("vdt") else "torch"]
      figures = dict(
        seconds=median[name, kind], fastest=min(seconds[name, kind]), gflop=flops / 1e9, share_of_peak=share
      )
      rows[name][kind] = figures | {"speed_over_peer": peer[kind] / median[name, kind]}
  machine = dict(cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0], processor=platform.machine())
  versions = dict(jax=jax.__version__, torch=torch.__version__)
  shares = profile(arms["vdt equal"])
  return dict(rounds=rounds, machine=machine, versions=versions, peak_gflops=peak, arms=rows, profile=shares)


def table(figures: dict) -> str:
  """The figures for a terminal."""
  lines = [
    f"{'':15} {'params':>7}  {'forward s':>9} {'of peak':>7} {'x peer':>6}  {'step s':>7} {'of peak':>7} {'x peer':>6}"
  ]
  for name, row in figures["arms"].items():
    f, s = row["forward"], row["step"]
    lines.append(
      f"{name:15} {row['parameters'] / 1e6:6.1f}M  {f['seconds']:9.3f} {f['share_of_peak']:7.0%} "
      f"{f['speed_over_peer']:6.2f}  {s['seconds']:7.3f} {s['share_of_peak']:7.0%} {s['speed_over_peer']:6.2f}"
    )
  peak = ", ".join(f"{name} {value:.0f}" for name, value in figures["peak_gflops"].items())
  machine = figures["machine"]
  shares = ", ".join(f"{kind} {share:.0%}" for kind, share in figures["profile"].items())
  return "\n".join(
    [
      *lines,
      f"float32 matmul peak, GFLOP/s: {peak}; {machine['cores']} cores, load {machine['load']:.1f}",
      f"the equal arm's step: {shares}",
    ]
  )


def main() -> None:
  parser = argparse.ArgumentParser(description="Our training step against PyTorch's Latte, on this CPU.")
  default = pathlib.Path(__file__).parent / "results" / "train_step.json"
  parser.add_argument("--json", type=pathlib.Path, default=default, help="where the figures go")
  parser.add_argument("--rounds", type=int, default=7, help="how often each arm has its turn")
  options = parser.parse_args()
  if missing := [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]:
    sys.exit(f"this benchmark needs {' and '.join(missing)}: pip install -e '.[bench]'")
  host.keep_freed_memory()  # for both sides: the peer runs in this process
  figures = measure(options.rounds)
  options.json.parent.mkdir(parents=True, exist_ok=True)
  options.json.write_text(json.dumps(figures, indent=2) + "\n")
  print(table(figures))


if __name__ == "__main__":
  main()
