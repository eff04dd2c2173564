"""Do all objectives learn the same ODE?

  python experiments/benchmarks/objectives.py [--steps 4000] [--seeds 4] [--json FILE]

The toy: "videos" of one pixel of one frame with two channels, drawn from eight Gaussians on a circle. A network is
trained by each objective of `vdt.diffusion`, for some seeds, and sampled by one solver from the same noise. The
probability-flow ODE of a Gaussian path depends on its ratio of noise to signal alone, so all of them are to take the
same noise to the same place. Two networks: "mixture", the exact answer for a mixture of 32 Gaussians whose places,
widths and weights are learned, in which each objective can reach its optimum; and an MLP, in which what is predicted
decides how well it is learned. Printed for each objective: the distance of its samples from fresh data (sliced
Wasserstein), the difference of that from the base objective's, with its interval over seeds, and how far its samples
lie from the base's of the same noise, beside how far those of two seeds of the base lie apart (medians).
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdt import paired
from vdt.diffusion import EDM, Gaussian, RectifiedFlow, Sampler, predictions

RESULTS = Path(__file__).parent / "results" / "objectives.json"
OBJECTIVES = {
  "velocity": RectifiedFlow(),
  "velocity, x0": RectifiedFlow(prediction="x0"),
  "linear, noise": Gaussian(),
  "linear, x0, min-SNR 100": Gaussian(prediction="x0", min_snr=100.0),
  "linear, v": Gaussian(prediction="v"),
  "cosine, noise": Gaussian("cosine", spacing="leading"),  # at t = 1 noise says nothing of x0
  "cosine, v": Gaussian("cosine", "v"),
  "cosine, v, min-SNR 5": Gaussian("cosine", "v", min_snr=5.0),
  "linear, v, zero SNR": Gaussian(prediction="v", zero_terminal_snr=True),
  "linear, noise, variance": Gaussian(variance=True),
  "EDM": EDM(data_std=0.7),
}
WIDTH, BATCH, SAMPLES = 256, 512, 4096


def data(key, count):
  k_which, k_where = jax.random.split(key)
  angle = jax.random.randint(k_which, (count,), 0, 8) * (jnp.pi / 4)
  points = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + 0.1 * jax.random.normal(k_where, (count, 2))
  return points[:, None, None, None]


def mlp(diffusion):
  """An MLP, and the input itself times what the time says, so that none has to learn to copy, whatever it predicts."""
  sizes = [2 + 32, WIDTH, WIDTH, WIDTH, 4 if diffusion.variance else 2]

  def init(key):
    keys = jax.random.split(key, len(sizes))
    scale = lambda index: (2 / sizes[index]) ** 0.5 * (index < len(sizes) - 2)  # the last one begins at zero
    kernel = lambda i: scale(i) * jax.random.normal(keys[i], (sizes[i], sizes[i + 1]))
    return [(kernel(i), jnp.zeros(sizes[i + 1])) for i in range(len(sizes) - 1)], jnp.zeros((32, 1))

  def network(params, x, t, cond):
    layers, skip = params
    angles = t[..., None] * jnp.pi * 2.0 ** jnp.linspace(-1, 5, 16)[None, None]
    waves = jnp.concatenate([jnp.sin(angles[:, 0]), jnp.cos(angles[:, 0])], -1)
    hidden = jnp.concatenate([x[:, 0, 0, 0], waves], -1)
    for index, (kernel, bias) in enumerate(layers):
      hidden = hidden @ kernel + bias[None]
      hidden = jax.nn.silu(hidden) if index < len(layers) - 1 else hidden
    copied = jnp.tile(x[:, 0, 0, 0], (1, hidden.shape[-1] // 2)) * (waves @ skip)
    return (hidden + copied)[:, None, None, None]

  return init, network


def mixture(diffusion):
  """What is to be predicted where x0 is from a mixture of Gaussians, which is learned."""

  def init(key):
    return {"at": data(key, 32)[:, 0, 0, 0] / diffusion.scale, "width": jnp.full(32, -1.5), "weight": jnp.zeros(32)}

  def network(params, x, t, cond):
    point = x[:, 0, 0, 0, None]  # b 1 c
    alpha, sigma = (level[..., None] for level in diffusion.levels(t))  # b 1 1
    own = jnp.exp(2 * params["width"])[None, :, None]
    off = point - alpha * params["at"][None]
    variance = alpha**2 * own + sigma**2
    logits = params["weight"][None] - jnp.log(variance[..., 0]) - (off**2).sum(-1) / (2 * variance[..., 0])
    share = jax.nn.softmax(logits)[..., None]
    x0 = (share * (params["at"][None] + alpha * own / variance * off)).sum(1)
    noise = (share * sigma / variance * off).sum(1)
    raw = predictions.join(diffusion.prediction, x0, noise, alpha[:, 0], sigma[:, 0])[:, None, None, None]
    return jnp.concatenate([raw, jnp.zeros_like(raw)], -1) if diffusion.variance else raw

  return init, network


@partial(jax.jit, static_argnums=(0, 1, 2))
def trained(kind, diffusion, steps, seed):
  """The average of the weights, after that many steps."""
  k_init, k_train = jax.random.split(jax.random.key(seed))
  init, network = kind(diffusion)
  params = init(k_init)
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  def step(carry, number):
    params, ema, opt = carry
    k_data, k_loss = jax.random.split(jax.random.fold_in(k_train, number))
    x0 = data(k_data, BATCH)
    noise, t = diffusion.draw(k_loss, x0)
    cond = {"given": jnp.zeros((BATCH, 1, 1, 1, 1))}
    loss = lambda params: diffusion.losses(partial(network, params), x0, noise, t, cond).mean()
    updates, opt = optimizer.update(jax.grad(loss)(params), opt)
    params = optax.apply_updates(params, updates)
    decay = jnp.minimum(0.998, (1 + number) / (10 + number))
    return (params, jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, params), opt), None

  return jax.lax.scan(step, (params, params, optimizer.init(params)), jnp.arange(steps))[0][1]


@partial(jax.jit, static_argnums=(0, 1))
def samples(kind, diffusion, params):
  keys = jax.random.split(jax.random.key(99), SAMPLES)
  cond = {"given": jnp.zeros((SAMPLES, 1, 1, 1, 1))}
  blank = jnp.zeros((SAMPLES, 1, 1, 1, 2))
  made = Sampler("heun", 100).sample(diffusion, partial(kind(diffusion)[1], params), keys, blank, cond)
  return made[:, 0, 0, 0]


def distance(x, y):
  """Sliced Wasserstein-1 between two sets of as many points."""
  angles = np.linspace(0, np.pi, 32, endpoint=False)
  directions = np.stack([np.cos(angles), np.sin(angles)])
  return float(np.abs(np.sort(x @ directions, 0) - np.sort(y @ directions, 0)).mean())


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=4_000)
  parser.add_argument("--seeds", type=int, default=4)
  parser.add_argument("--json", type=Path, default=RESULTS)
  options = parser.parse_args()
  real = np.asarray(data(jax.random.key(1234), SAMPLES))[:, 0, 0, 0]
  floor = distance(real, np.asarray(data(jax.random.key(4321), SAMPLES))[:, 0, 0, 0])
  print(f"data to data {floor:.4f}")
  found = {"steps": options.steps, "data to data": floor}
  for kind in (mixture, mlp):
    found[kind.__name__] = table(kind, options.steps, range(options.seeds), real)
  options.json.write_text(json.dumps(found, indent=2) + "\n")


def table(kind, steps, seeds, real):
  """Prints the objectives' lines for one network, and returns them."""
  apart = lambda a, b: float(np.median(np.linalg.norm(a - b, axis=-1)))
  base, found = None, {}
  print(f"\n{kind.__name__:26} {'to data':>9} {'less the base':>26} {'same noise, to the base':>26}")
  for name, diffusion in OBJECTIVES.items():
    made = [np.asarray(samples(kind, diffusion, trained(kind, diffusion, steps, seed))) for seed in seeds]
    to_data = np.array([distance(each, real) for each in made])
    if base is None:
      base, base_to_data = made, to_data
      between = np.mean([apart(base[a], base[b]) for a in seeds for b in seeds if a < b])
    effect = paired.compare(base_to_data, to_data)
    to_base = np.mean([apart(each, other) for a, each in enumerate(made) for b, other in enumerate(base) if a != b])
    found[name] = {
      "to data": to_data.tolist(),
      "less the base": [effect.mean, effect.low, effect.high],
      "differs": effect.differs,
      "to the base": float(to_base),
      "between seeds of the base": float(between),
    }
    interval = f"{effect.mean:+.4f} ({effect.low:+.4f}, {effect.high:+.4f})"
    print(
      f"{name:26} {to_data.mean():9.4f} {interval:>26} {f'{to_base:.4f}, seeds {between:.4f}':>26}",
      "differs" if effect.differs else "",
      flush=True,
    )
  return found


if __name__ == "__main__":
  main()
