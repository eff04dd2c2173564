import os
import tempfile

from xla import devices

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = devices(8)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
COMPILED = tempfile.TemporaryDirectory()  # of this process alone: one that is killed as it writes spoils it for nobody
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_addoption(parser):
  parser.addoption("--write-golden", action="store_true", help="write tests/golden.json anew")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, worker_id):
  """One folder of data sets for the whole run, whichever worker renders them first."""
  base = tmp_path_factory.getbasetemp()
  return str((base if worker_id == "master" else base.parent) / "data")


def pytest_unconfigure():
  COMPILED.cleanup()
