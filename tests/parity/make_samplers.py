"""Makes samplers.npz: diffusers' schedulers, step by step, on a network that is a formula.

  python tests/parity/make_samplers.py    (needs extra [bench])

The network is y = 0.9 tanh(1.3 x + t), where t is (timestep + 1) / timesteps, or sigma for flow matching; where it
predicts noise, sigma x + 0.2 alpha y, so that x0 stays small; of a learned variance it says tanh(x). Videos are
(b f h w c); noise is JAX's, as `vdt.diffusion.sampler` draws it: number 0 at the start, k in step k. For each case:
`NAME/grid`, the times of all evaluations and 0 at the end; `NAME/x`, what each evaluation saw, and what came out. The
tables of noise levels are made anew in float64, and samples are kept in it, so that no rounding but ours is compared.

Left out are DDIM with linspace spacing, which there goes back by 100 from timesteps that are 111 apart, and learned
variances of fewer steps than timesteps, whose last step adds noise there, of a variance that is clamped.
"""

import importlib.metadata
from pathlib import Path
from unittest import mock

import diffusers
import jax
import numpy as np
import torch

KEYS = jax.random.split(jax.random.key(0), 2)
SHAPE = (3, 4, 4, 2)
STEPS = 10
LINEAR = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
TEN = dict(num_train_timesteps=10, beta_start=0.01, beta_end=0.5, beta_schedule="linear")
COSINE = dict(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
PLAIN = dict(clip_sample=False, timestep_spacing="trailing")
SOLVER = dict(solver_order=2, final_sigmas_type="zero", lower_order_final=True)
CASES = {
  "ddim": (diffusers.DDIMScheduler, {**LINEAR, **PLAIN}),
  "ddim eta": (diffusers.DDIMScheduler, {**LINEAR, **PLAIN}),
  "ddim v cosine": (diffusers.DDIMScheduler, {**COSINE, **PLAIN, "prediction_type": "v_prediction"}),
  "ddim v zero": (
    diffusers.DDIMScheduler,
    {**LINEAR, **PLAIN, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
  ),
  "ddim x0": (diffusers.DDIMScheduler, {**LINEAR, **PLAIN, "prediction_type": "sample"}),
  "ddim leading": (diffusers.DDIMScheduler, {**LINEAR, **PLAIN, "timestep_spacing": "leading"}),
  "ddpm": (diffusers.DDPMScheduler, {**LINEAR, **PLAIN, "variance_type": "fixed_small"}),
  "ddpm learned": (diffusers.DDPMScheduler, {**TEN, **PLAIN, "variance_type": "learned_range"}),
  "dpm++": (diffusers.DPMSolverMultistepScheduler, {**LINEAR, **SOLVER, "timestep_spacing": "trailing"}),
  "dpm++ linspace": (diffusers.DPMSolverMultistepScheduler, {**LINEAR, **SOLVER, "timestep_spacing": "linspace"}),
  "dpm++ v cosine": (
    diffusers.DPMSolverMultistepScheduler,
    {**COSINE, **SOLVER, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
  ),
  "unipc": (diffusers.UniPCMultistepScheduler, {**LINEAR, **SOLVER, "timestep_spacing": "trailing"}),
  "unipc linspace": (diffusers.UniPCMultistepScheduler, {**LINEAR, **SOLVER, "timestep_spacing": "linspace"}),
  "unipc v cosine": (
    diffusers.UniPCMultistepScheduler,
    {**COSINE, **SOLVER, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
  ),
  "flow euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
  "flow heun": (diffusers.FlowMatchHeunDiscreteScheduler, {}),
}


def noise(number: int) -> torch.Tensor:
  draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), SHAPE))(KEYS)
  return inside(np.array(draw, np.float64))


def inside(x: np.ndarray) -> torch.Tensor:
  """(b f h w c) as diffusers has it, channels second."""
  return torch.from_numpy(x).permute(0, 4, 1, 2, 3)


def outside(x: torch.Tensor) -> np.ndarray:
  return x.permute(0, 2, 3, 4, 1).numpy().astype(np.float32)


def levels(scheduler, config: dict) -> None:
  """The scheduler's tables, in float64."""
  count = config["num_train_timesteps"]
  if config["beta_schedule"] == "linear":
    betas = torch.linspace(config["beta_start"], config["beta_end"], count, dtype=torch.float64)
  else:
    curve = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = [min(1 - curve((i + 1) / count) / curve(i / count), 0.999) for i in range(count)]
    betas = torch.tensor(betas, dtype=torch.float64)
  if config.get("rescale_betas_zero_snr"):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = rescale_zero_terminal_snr(betas)
  scheduler.betas, scheduler.alphas = betas, 1 - betas
  scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
  scheduler.one = torch.tensor(1.0, dtype=torch.float64)
  if hasattr(scheduler, "final_alpha_cumprod"):
    scheduler.final_alpha_cumprod = scheduler.one
  scheduler.alpha_t, scheduler.sigma_t = scheduler.alphas_cumprod**0.5, (1 - scheduler.alphas_cumprod) ** 0.5
  scheduler.lambda_t = torch.log(scheduler.alpha_t) - torch.log(scheduler.sigma_t)


def run(name: str) -> tuple[np.ndarray, np.ndarray]:
  kind, config = CASES[name]
  scheduler, flow = kind(**config), name.startswith("flow")
  if not flow:
    levels(scheduler, config)
  if name == "flow euler":
    times = np.linspace(1, 0, STEPS + 1)[:-1]
    scheduler.set_timesteps(sigmas=list(3 * times / (1 + 2 * times)))
  else:
    scheduler.set_timesteps(STEPS)
  if hasattr(scheduler, "sigmas") and not flow:  # set_timesteps rounds them to float32
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5
    scheduler.sigmas = torch.cat([sigmas[scheduler.timesteps.long()], torch.zeros(1, dtype=torch.float64)])
  if flow:
    scheduler.sigmas = scheduler.sigmas.double()
  module, seen, grid, x = f"{kind.__module__}.randn_tensor", [], [], noise(0)
  for number, timestep in enumerate(scheduler.timesteps):
    t = (
      float(scheduler.sigmas[scheduler.step_index or 0])
      if flow
      else (float(timestep) + 1) / config["num_train_timesteps"]
    )
    seen.append(outside(x))
    grid.append(t)
    raw = 0.9 * torch.tanh(1.3 * x + t)
    if not flow and "prediction_type" not in config:
      alpha = scheduler.alphas_cumprod[int(timestep)]
      raw = (1 - alpha) ** 0.5 * x + 0.2 * alpha**0.5 * raw
    if name == "ddpm learned":
      raw = torch.cat([raw, torch.tanh(x)], 1)
    more = {"eta": 1.0} if name == "ddim eta" else {}
    drawn = (
      mock.patch(module, lambda *args, number=number, **kw: noise(number + 1)) if name[:2] == "dd" else mock.MagicMock()
    )
    with drawn:
      x = scheduler.step(raw, timestep, x, **more).prev_sample
  return np.array([*grid, 0.0]), np.stack([*seen, outside(x)])


if __name__ == "__main__":
  found = {
    "versions": np.array([f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch", "jax")])
  }
  for case in CASES:
    found[f"{case}/grid"], found[f"{case}/x"] = run(case)
    print(case, found[f"{case}/x"].shape, float(np.abs(found[f"{case}/x"][-1]).max()))
  np.savez_compressed(Path(__file__).with_name("samplers.npz"), **found)
