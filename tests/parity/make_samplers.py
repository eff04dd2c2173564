"""Writes samplers.npz: what diffusers' schedulers make of a network that is a formula, step by step.

Run with diffusers 0.42.1, torch 2.13.0, jax 0.10.2, numpy 2.4.6 on a CPU (the file's `versions`):

  python tests/parity/make_samplers.py

The network returns 0.9 tanh(1.3 x + s) in float32, where s in (0, 1] is the time: (timestep + 1) / 1000, or the sigma of
flow matching. Videos are (b f h w c) in the file and (b c f h w) here. Example i has the i-th of two JAX keys; its noise
number k, 0 the start's and k from 1 the k-th step's, is drawn from `fold_in(key, k)`.

For each case: `CASE/grid`, the time of each evaluation of the network and a last 0, and `CASE/x`, what the network was
given at each and the end. Those of `flow_heun` have two evaluations a step but the last.

diffusers keeps its tables in float32, which moves some results by more than 2e-6. So all cases but flow matching, whose
sigmas are made and used in float32, have here the same tables in float64, and videos in float64 between evaluations. The
script prints by how much that changes each case.

Three things that diffusers does by itself:
- DDIM steps by timesteps // steps whatever the spacing: `ddim_linspace` evaluates at timestep 999, 888, ..., and steps
  to the noise of 899, 788, ...: `ddim_linspace/after`. In `ddim_linspace_even` it is made to step to the next of the grid.
- DDPM adds noise in the last step too if its timestep is not 0, with a variance of at least 1e-20. With a learned
  variance that is a mean of logarithms, so far from nothing: `ddpm_learned/end` is the end without that noise.
- The multi-step solvers' linspace has a point more, and leaves out timestep 0.
"""

import sys
from pathlib import Path
from unittest import mock

import diffusers
import jax
import numpy as np
import torch

SHAPE = (2, 3, 4, 4, 2)
STEPS = 10
KEYS = jax.random.split(jax.random.key(0), SHAPE[0])
SOLVER = dict(solver_order=2, final_sigmas_type="zero", lower_order_final=True)
DPM = dict(SOLVER, algorithm_type="dpmsolver++", solver_type="midpoint", euler_at_final=False)
UNIPC = dict(SOLVER, solver_type="bh2", predict_x0=True)
V_COSINE = dict(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
TIMES = np.linspace(1, 0, STEPS + 1)[:-1]

# Each with its scheduler, what differs from epsilon and the linear schedule, and the arguments of each step.
CASES = {
  "ddim": ("DDIM", dict(timestep_spacing="trailing"), dict(eta=0.0)),
  "ddim_eta1": ("DDIM", dict(timestep_spacing="trailing"), dict(eta=1.0)),
  "ddim_v_cosine": ("DDIM", V_COSINE, {}),
  "ddim_v_zero_snr": (
    "DDIM",
    dict(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    {},
  ),
  "ddim_x0": ("DDIM", dict(timestep_spacing="trailing", prediction_type="sample"), {}),
  "ddim_leading": ("DDIM", dict(timestep_spacing="leading", steps_offset=0), {}),
  "ddim_linspace": ("DDIM", dict(timestep_spacing="linspace"), {}),
  "ddim_linspace_even": ("DDIM", dict(timestep_spacing="linspace"), {}),
  "ddpm": ("DDPM", dict(timestep_spacing="trailing", variance_type="fixed_small"), {}),
  "ddpm_learned": ("DDPM", dict(timestep_spacing="trailing", variance_type="learned_range"), {}),
  "dpm_linspace": ("DPMSolverMultistep", dict(DPM, timestep_spacing="linspace"), {}),
  "dpm_trailing": ("DPMSolverMultistep", dict(DPM, timestep_spacing="trailing"), {}),
  "dpm_v_cosine": ("DPMSolverMultistep", DPM | V_COSINE, {}),
  "unipc_linspace": ("UniPCMultistep", dict(UNIPC, timestep_spacing="linspace"), {}),
  "unipc_trailing": ("UniPCMultistep", dict(UNIPC, timestep_spacing="trailing"), {}),
  "unipc_v_cosine": ("UniPCMultistep", UNIPC | V_COSINE, {}),
  "flow_euler": ("FlowMatchEulerDiscrete", dict(shift=1.0), {}),
  "flow_heun": ("FlowMatchHeunDiscrete", dict(shift=1.0), {}),
}


def noise(number: int) -> torch.Tensor:
  draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), SHAPE[1:])
  return torch.from_numpy(np.array(jax.vmap(draw)(KEYS))).permute(0, 4, 1, 2, 3)


def network(x: torch.Tensor, s: float, learned: bool) -> torch.Tensor:
  x = x.float()
  raw = 0.9 * torch.tanh(1.3 * x + s)
  return torch.cat([raw, torch.tanh(x)], dim=1) if learned else raw


def table(schedule: str, zero_snr: bool) -> torch.Tensor:
  """`alphas_cumprod` in float64."""
  if schedule == "linear":
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
  else:
    curve = torch.cos((torch.linspace(0, 1, 1001, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
  if zero_snr:
    betas = diffusers.schedulers.scheduling_ddim.rescale_zero_terminal_snr(betas)
  return torch.cumprod(1 - betas, dim=0)


def new_scheduler(case: str, exact: bool) -> diffusers.SchedulerMixin:
  name, settings, _ = CASES[case]
  kind = getattr(diffusers, name + "Scheduler")
  if name.startswith("Flow"):
    scheduler = kind(**settings)
    scheduler.set_timesteps(
      **(dict(sigmas=3 * TIMES / (1 + 2 * TIMES)) if case == "flow_euler" else dict(num_inference_steps=STEPS))
    )
    return scheduler
  if name in ("DDIM", "DDPM"):
    settings = dict(settings, clip_sample=False)
  scheduler = kind(**dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, thresholding=False) | settings)
  own = scheduler.alphas_cumprod
  if exact:
    scheduler.alphas_cumprod = table(scheduler.config.beta_schedule, scheduler.config.rescale_betas_zero_snr)
    torch.testing.assert_close(scheduler.alphas_cumprod.float(), own, rtol=2e-5, atol=2e-7)
  scheduler.set_timesteps(STEPS)
  if exact and hasattr(scheduler, "sigmas"):
    kept = scheduler.alphas_cumprod[scheduler.timesteps]
    scheduler.sigmas = torch.cat([torch.sqrt((1 - kept) / kept), torch.zeros(1, dtype=torch.float64)])
  if case == "ddim_linspace_even":
    scheduler.num_inference_steps = STEPS - 1  # so it steps by 1000 // 9 = 111
  return scheduler


def walk(case: str, exact: bool = True) -> dict[str, np.ndarray]:
  name, _, arguments = CASES[case]
  flow = name.startswith("Flow")
  scheduler = new_scheduler(case, exact)
  grid = scheduler.sigmas.double() if flow else torch.cat([(scheduler.timesteps + 1) / 1000, torch.zeros(1)])
  dtype = torch.float64 if exact and not flow else torch.float32
  x = noise(0).to(dtype)
  xs = [x]
  for number, timestep in enumerate(scheduler.timesteps, 1):
    raw = network(x, grid[number - 1].item(), case == "ddpm_learned").to(dtype)
    fresh = noise(number).to(dtype)
    with mock.patch.object(sys.modules[scheduler.__module__], "randn_tensor", lambda *_, fresh=fresh, **__: fresh):
      x = scheduler.step(raw, timestep, x, **arguments).prev_sample
    xs.append(x)
  return {"grid": grid, "x": xs}
