import os

from xla import SAFE, devices

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = devices(8)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import jax
import pytest

jax.devices()  # the flags are read now
os.environ["XLA_FLAGS"] = devices(8, SAFE)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
  parser.addoption("--write-golden", action="store_true", help="write tests/golden.json anew")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, worker_id):
  """One folder of data sets for the whole run, whichever worker renders them first."""
  base = tmp_path_factory.getbasetemp()
  return str((base if worker_id == "master" else base.parent) / "data")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(data_dir):
  """One folder of compiled programs for the whole run, with those of the processes that tests start."""
  jax.config.update("jax_compilation_cache_dir", f"{data_dir}/cache")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
