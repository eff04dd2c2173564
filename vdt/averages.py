"""Averages of a run's parameters whose length is chosen after it (post-hoc EMA, arXiv:2312.02696, section 3).

A power-function average at step t weighs the parameters of step tau by tau^gamma. Its relative length is the standard
deviation of these weights over t, which grows with t as the run does; an exponential average forgets at one pace. A run
keeps a few of them (`config.averages`) and stores them at each save; a sum of what is stored is then nearly the
average of any other length, at any stored step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vdt.workdirs import absolute, file_bytes

LONGEST = 12**-0.5  # the relative length of the mean of all steps, gamma = 0


def exponent(length: float) -> float:
  """gamma of a relative length: length^2 (gamma + 2)^2 (gamma + 3) = gamma + 1 (Equation 4). ValueError if none."""
  if not 0 < length < LONGEST:
    raise ValueError(f"an average of relative length {length}: above 0, and below {LONGEST:.3f}, the mean of all steps")
  square = length**2
  roots = np.roots([square, 7 * square, 16 * square - 1, 12 * square - 1])
  return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def update(average: Any, params: Any, length: float, step: jax.Array) -> Any:
  """The average of `length` at `step`, which counts from 1, from that at the step before (Equation 3).

  average, params: trees of the same shapes. ValueError as `exponent`.
  """
  keep = (1.0 - 1.0 / step) ** (exponent(length) + 1.0)
  return jax.tree.map(lambda old, new: keep * old + (1.0 - keep) * new, average, params)


def products(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """(n, m) integrals of the products of two averages' weights, (gamma + 1) tau^gamma / t^(gamma + 1) for tau up to t.

  ours, theirs: (n, 2) and (m, 2), a row of t, in steps, and gamma for each average (appendix C.2).
  """
  (t, gamma), (other_t, other) = ours.T[:, :, None], theirs.T[:, None, :]
  least = np.minimum(t, other_t)
  scale = (gamma + 1) * (other + 1) / (gamma + other + 1) / least
  return scale * (least / t) ** (gamma + 1) * (least / other_t) ** (other + 1)


def weights(stored: list[tuple[int, float]], step: int, length: float) -> np.ndarray:
  """What to multiply averages by, stored as (step, length), to have that of `length` at `step` (appendix C.2)."""
  have = np.array([(t, exponent(each)) for t, each in stored])
  want = np.array([(step, exponent(length))])
  return np.linalg.lstsq(products(have, have), products(have, want)[:, 0])[0]


class Averages:
  """What a run stored of its averages, in `workdir`/averages."""

  def __init__(self, workdir: str, create: bool = True):
    options = ocp.CheckpointManagerOptions(create=create, cleanup_tmp_directories=create)
    handlers = {"averages": ocp.PyTreeCheckpointHandler(use_compression=False), "lengths": ocp.JsonCheckpointHandler()}
    path = absolute(workdir) / "averages"
    if not create and not path.exists():
      raise ValueError(f"no averages in {path}: train with config.averages, say (0.05, 0.1)")
    self.manager = ocp.CheckpointManager(path, options=options, item_handlers=handlers)

  def save(self, step: int, averages: tuple, lengths: tuple[float, ...]) -> None:
    """Stores the averages of a step, and waits for it; those of a step that is there stay."""
    if step not in self.manager.all_steps():
      tree = {str(number): average for number, average in enumerate(averages)}
      arrays = ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=file_bytes(self.manager.directory))
      items = {"averages": arrays, "lengths": ocp.args.JsonSave(list(lengths))}
      self.manager.save(step, args=ocp.args.Composite(**items))
      self.manager.wait_until_finished()

  def restore(self, like: Any, step: int, length: float) -> Any:
    """The average of `length` at `step`, in the shapes and shardings of `like`; one stored step is read at a time.

    ValueError if nothing was stored up to `step`.
    """
    steps = sorted(each for each in self.manager.all_steps() if each <= step)
    if not steps:
      raise ValueError(f"no averages up to step {step} in {self.manager.directory}: {self.manager.all_steps()}")
    read = lambda each, **items: self.manager.restore(each, args=ocp.args.Composite(**items))
    lengths = {each: read(each, lengths=ocp.args.JsonRestore())["lengths"] for each in steps}
    factors = iter(weights([(each, one) for each in steps for one in lengths[each]], step, length).tolist())
    total = jax.tree.map(jnp.zeros_like, like)
    add = jax.jit(lambda total, average, factor: jax.tree.map(lambda a, b: a + factor * b, total, average))
    for each in steps:
      target = {str(number): like for number in range(len(lengths[each]))}
      how = ocp.checkpoint_utils.construct_restore_args(target)
      found = read(each, averages=ocp.args.PyTreeRestore(target, restore_args=how))["averages"]
      for number in range(len(lengths[each])):
        total = add(total, found[str(number)], next(factors))
    return total

  def __enter__(self) -> "Averages":
    return self

  def __exit__(self, *_) -> None:
    self.manager.close()
