"""Comparing arms: the interval holds what it says, and nothing is seen where nothing is."""

import numpy as np
import pytest

from vdt import paired


def draws(count, pairs, shared, effect, rng):
  """Runs of a base and an arm that share a part of their noise."""
  common = shared * rng.normal(size=(count, pairs))
  return common + rng.normal(size=(count, pairs)), common + rng.normal(size=(count, pairs)) + effect


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 16])
def test_equal_arms_do_not_differ(pairs):
  base, arm = draws(400, pairs, 3.0, 0.0, np.random.default_rng(pairs))
  said = [paired.compare(*each).differs for each in zip(base, arm)]
  assert np.mean(said) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("pairs", [8, 16])
def test_the_detectable_effect_is_detected(pairs):
  """In four of five studies, or more where the bootstrap's interval is the wider one; pairing is what makes it so."""
  rng = np.random.default_rng(0)
  base, arm = draws(400, pairs, 3.0, 0.0, rng)
  least = float(np.mean([paired.compare(*each).detectable for each in zip(base, arm)]))
  base, arm = draws(400, pairs, 3.0, least, rng)
  seen = np.mean([paired.compare(*each).differs for each in zip(base, arm)])
  shuffled = np.mean([paired.compare(one, rng.permutation(two)).differs for one, two in zip(base, arm)])
  assert seen > 0.7 and shuffled < 0.4


def test_gain_and_edges():
  rng = np.random.default_rng(0)
  base, arm = draws(1, 4000, 3.0, 0.0, rng)
  assert paired.gain(base[0], arm[0]) == pytest.approx(10, rel=0.1), "(9 + 1 + 9 + 1) / (1 + 1)"
  alike = paired.compare(np.arange(5.0), np.arange(5.0))
  assert alike.mean == alike.low == alike.high == 0 and not alike.differs
  shifted = paired.compare(np.arange(5.0), np.arange(5.0) + 0.5)
  assert shifted.differs and shifted.low == shifted.high == 0.5, "what is the same in every pair is known"
  rounded = paired.compare(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.1, 0.2, 0.3, 0.4, 0.5]) + 0.1)
  assert rounded.differs and rounded.detectable == 0, "also but for rounding"
  single = paired.compare(np.ones(1), np.zeros(1))
  assert single.mean == -1 and np.isnan(single.low) and not single.differs
  with pytest.raises(ValueError, match="pairs"):
    paired.compare(np.ones(0), np.ones(0))
