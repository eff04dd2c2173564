import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from vdt.diffusion import TASKS, RectifiedFlow, Tasks
from vdt.diffusion.given import COUNTED, frame_times, mean_given, plan, whole_cells


@settings(deadline=None, max_examples=25)
@forall(st.sampled_from(sorted(TASKS)), st.integers(1, 6), st.sampled_from([1, 2]), st.integers(0, 2**31 - 1))
def test_every_plan_is_binary_constant_in_a_temporal_patch_and_leaves_something(task, cells, patch_frames, seed):
  frames = cells * patch_frames
  mask = np.asarray(plan(task, jax.random.key(seed), (3, frames, 4, 4), patch_frames))
  assert mask.shape == (3, frames, 4, 4, 1) and set(np.unique(mask)) <= {0.0, 1.0}
  assert (mask.min(axis=(1, 2, 3, 4)) == 0).all(), "something is left to generate, also for one frame"
  by_cell = mask.reshape(3, cells, patch_frames, 4, 4)
  assert (by_cell == by_cell[:, :, :1]).all()


def test_plans_give_what_their_names_say():
  shape = (2, 8, 4, 4)
  frames = lambda task, count: np.asarray(plan(task, jax.random.key(0), shape, 1, count))[0, :, 0, 0, 0].tolist()
  assert frames("generation", None) == [0] * 8
  assert frames("prediction", 3) == [1, 1, 1, 0, 0, 0, 0, 0]
  assert frames("backward", 3) == [0, 0, 0, 0, 0, 1, 1, 1]
  assert frames("interpolation", 3) == [1, 1, 0, 0, 0, 0, 0, 1]
  assert sum(frames("single_frame", None)) == 1
  assert sum(frames("random_frames", 5)) == 5
  hole = 1 - np.asarray(plan("completion", jax.random.key(0), shape, 1))
  assert (hole == hole[:, :1]).all() and 0 < hole[0].mean() < 1
  with pytest.raises(ValueError, match="unknown task 'predict'"):
    plan("predict", jax.random.key(0), shape)
  with pytest.raises(ValueError, match="8 given frames of 8"):
    plan("prediction", jax.random.key(0), shape, 1, 8)
  with pytest.raises(ValueError, match="none is given before all 2 of its patch are"):
    plan("prediction", jax.random.key(0), shape, 2, 1)
  counted = {task for task in TASKS if frames(task, 2) != frames(task, 3)}
  assert counted == {*COUNTED}, "these take how many frames they give"


def test_tasks_are_drawn_as_often_as_their_weights_say():
  _, index = Tasks(generation=1.0, prediction=3.0).draw(jax.random.key(0), (4000, 4, 2, 2))
  share = np.bincount(np.asarray(index), minlength=len(TASKS)) / 4000
  assert share[:2] == pytest.approx([0.25, 0.75], abs=0.03) and share[2:].sum() == 0


def test_a_given_frame_is_at_time_zero_and_a_partly_given_one_is_not():
  mask = jnp.zeros((1, 4, 2, 2, 1)).at[:, 0].set(1).at[:, 1, 0].set(1)
  assert frame_times(jnp.array([0.7]), mask).tolist() == [[0.0, *[pytest.approx(0.7)] * 3]]
  assert whole_cells(mask, 2)[0, :, :, 0, 0].tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]


def test_the_mean_of_what_was_given_pixel_by_pixel():
  """Against the definition, written as a loop."""
  rng = np.random.default_rng(0)
  x, given = rng.normal(size=(2, 7, 2, 3, 2)), rng.random((2, 7, 2, 3, 1)) < 0.3
  mean, known = mean_given(jnp.asarray(x, jnp.float32), jnp.asarray(given, jnp.float32))
  assert set(np.unique(known)) == {0.0, 1.0}
  for b, h, w in np.ndindex(2, 2, 3):
    frames = given[b, :, h, w, 0]
    np.testing.assert_allclose(mean[b, 0, h, w], x[b, frames, h, w].mean(0) if frames.any() else 0.0, rtol=1e-5)
    assert known[b, 0, h, w, 0] == frames.any()


def test_the_loss_sees_only_what_was_not_given_and_is_normalised_by_it():
  """A network wrong by 1 everywhere has loss 1 whatever was given; one wrong only where given has loss 0."""
  flow, x0, noise = RectifiedFlow(), jnp.ones((3, 4, 4, 4, 2)), jnp.full((3, 4, 4, 4, 2), 0.5)
  for task in TASKS:
    given = plan(task, jax.random.key(1), x0.shape[:4])
    cond = {"given": given}
    off = lambda x, t, cond: (noise - x0) + 1.0
    assert flow.losses(off, x0, noise, jnp.full(3, 0.5), cond) == pytest.approx([1.0] * 3, abs=1e-6)
    wrong_where_given = lambda x, t, cond: (noise - x0) + 9.0 * cond["given"]
    assert flow.losses(wrong_where_given, x0, noise, jnp.full(3, 0.5), cond) == pytest.approx([0.0] * 3)
    seen = []
    flow.losses(lambda x, t, cond, seen=seen: (seen.append((x, t)), x)[1], x0, noise, jnp.full(3, 0.5), cond)
    x, t = seen[0]
    assert (jnp.where(given > 0, x == x0, x == 0.75)).all(), (
      "the network sees what was given, clean, and the rest noised"
    )
    assert ((t == 0) == (given.min(axis=(2, 3, 4)) == 1)).all()


def test_keyframes_are_evenly_spread():
  frames = lambda f, count: np.flatnonzero(
    plan("keyframes", jax.random.key(0), (1, f, 2, 2), 1, count)[0, :, 0, 0, 0]
  ).tolist()
  assert frames(16, 4) == [0, 4, 8, 12] and frames(8, 2) == [0, 4] and frames(9, 4) == [0, 3, 6]
  drawn = np.asarray(plan("keyframes", jax.random.key(0), (200, 8, 2, 2)))[:, :, 0, 0, 0]
  assert (drawn[:, 0] == 1).all() and {*drawn.sum(1).tolist()} <= {2.0, 3.0, 4.0} and len({*drawn.sum(1).tolist()}) > 1
