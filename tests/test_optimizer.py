"""The schedule, and what a step of each optimizer does to a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.config import AdamW, Muon


def test_the_learning_rate_rises_and_falls():
  rate = lambda step, **fields: float(AdamW(lr=1.0, warmup=10, **fields).schedule(step))
  assert (rate(0), rate(9), rate(500)) == pytest.approx((0.1, 1.0, 1.0))
  assert [rate(step, decay=110) for step in (0, 9, 60, 109, 110, 200)] == pytest.approx([0.1, 1, 0.5, 0.01, 0, 0])


def test_muon_moves_the_matrices_of_the_pattern_along_all_directions_alike():
  """Singular values of the step within a factor of two where the gradient's differ by 100; AdamW moves the rest."""
  params = {"pattern": {"kernel": jnp.zeros((3, 16, 32)), "bias": jnp.zeros((3, 32))}, "embed": jnp.zeros((16, 32))}
  left, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 16, 16)))
  right, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 32, 32)))
  steep = np.einsum("dik,k,dkj->dij", left, np.geomspace(1e-2, 1, 16), right[:, :16])
  grads = {"pattern": {"kernel": jnp.asarray(steep), "bias": jnp.ones((3, 32))}, "embed": jnp.asarray(steep[0])}
  optimizer = Muon(scale=0.2, clip=1e9).build()  # for a learning rate of 1
  updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
  values = np.linalg.svd(updates["pattern"]["kernel"], compute_uv=False)
  assert values.max() / np.median(values) < 2 and values.max() / values.min() < 20
  assert np.sqrt(np.square(updates["pattern"]["kernel"]).mean()) == pytest.approx(0.2, rel=0.3)
  for rest in (updates["embed"], updates["pattern"]["bias"]):
    sizes = np.abs(rest)  # what Nesterov's correction makes of the first momentum
    assert 1 <= sizes.min() and sizes.max() <= 1.5 and np.ptp(sizes) < 1e-2
