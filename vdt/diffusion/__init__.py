"""Mathematics of diffusion. Knows no network: it meets one only as `denoise(x, t, cond)`."""

from vdt.diffusion.flow import RectifiedFlow, resolution_shift
from vdt.diffusion.gaussian import EDM, Gaussian
from vdt.diffusion.given import TASKS, Tasks
from vdt.diffusion.sampler import Sampler

__all__ = ["EDM", "TASKS", "Gaussian", "RectifiedFlow", "Sampler", "Tasks", "resolution_shift"]
