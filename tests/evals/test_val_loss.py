import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdt.diffusion import RectifiedFlow
from vdt.evals import Run
from vdt.evals.val_loss import ValLoss


class Clips:
  split, batch_size = "test", 4

  def __len__(self):
    return 8

  def batch(self, step):
    rng = np.random.default_rng(step)
    return {"video": rng.integers(0, 256, (4, 4, 8, 8, 3), np.uint8), "label": np.arange(4, dtype=np.int32)}


def table(denoise, **fields):
  losses = lambda *inputs: np.asarray(RectifiedFlow().losses(denoise, *jax.tree.map(jnp.asarray, inputs)))
  return ValLoss(count=8, bins=4, **fields)(Run(losses, 1, lambda split: Clips(), None, told=told))


def told(batch):
  return {"label": batch["label"], "null": {"label": np.zeros(len(batch["label"]), bool)}}


def test_a_network_of_known_error_has_known_losses():
  """An output of k t has the loss E[v^2] - 2 k t E[v] + k^2 t^2 for the velocity v: exact, the noise being fixed."""
  rows = {
    k: table(lambda x, t, cond, k=k: jnp.broadcast_to(k * t[:, :, None, None, None], x.shape)) for k in (-1, 0, 1)
  }
  zero, one, minus = (np.array(list(rows[k]["generation"].values())) for k in (0, 1, -1))
  assert list(rows[0]["generation"]) == ["t=0.125", "t=0.375", "t=0.625", "t=0.875", "mean"]
  np.testing.assert_allclose(zero, zero[0], rtol=1e-6)
  assert zero[0] == pytest.approx(1 + 1 / 3, rel=0.05), "noise of variance 1, pixels uniform in [-1, 1]"
  times = np.array([0.125, 0.375, 0.625, 0.875])
  np.testing.assert_allclose(((one + minus) / 2 - zero)[:4], times**2, rtol=1e-4)
  assert one[4] == pytest.approx(one[:4].mean())


def test_tasks_have_rows_of_their_own_and_count_what_was_not_given():
  """An error of 1 on given pixels alone changes no row; the label arrives, and nothing is dropped."""
  seen = []

  def denoise(x, t, cond, wrong):
    seen.append((cond["label"].shape, cond["null"]["label"].shape))
    return jnp.zeros_like(x) + wrong * cond["given"]

  right, wrong = (
    table(lambda x, t, cond, w=w: denoise(x, t, cond, w), tasks=("generation", "prediction", "completion"))
    for w in (0.0, 1.0)
  )
  assert list(right) == ["generation", "prediction", "completion"] and right == wrong
  assert right["prediction"]["mean"] != right["generation"]["mean"] and set(seen) == {((8,), (8,))}
