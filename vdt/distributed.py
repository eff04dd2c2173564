"""The processes of one run: how they find each other, agree, and share what each of them has."""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from vdt.attempts import RESTART
from vdt.sharding import BATCH

CHUNK = 32
"""Videos made at once, or a few more where the mesh asks for it; no result depends on it."""
LOST = ("Gloo", "gloo", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "Connection", "heartbeat")
"""What JAX says where another process was lost."""
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SCHEDULED = {  # variable of an environment that JAX reads itself: whether its value means more than one process
  "SLURM_NTASKS": lambda value: int(value) > 1,
  "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
  "MEGASCALE_COORDINATOR_ADDRESS": bool,
}


def join() -> None:
  """Joins the other processes of this run, where the environment names some; to be called before JAX is used.

  Either the three EXPLICIT variables say it (host:port of the first process, how many, which one is this), or Slurm, a
  TPU pod or GKE does. One that is not heard of for VDT_HEARTBEAT seconds (100) ends all others, by SIGABRT.
  ValueError if only some of the three are set, and no scheduler is; SystemExit(77) if the others do not come, so that
  all start again.
  """
  if not (heartbeat := os.environ.get("VDT_HEARTBEAT", "100")).isdigit():
    raise ValueError(f"VDT_HEARTBEAT is {heartbeat!r}: a whole number of seconds")
  waits = {"heartbeat_timeout_seconds": int(heartbeat)}
  values = [os.environ.get(name) for name in EXPLICIT]
  if any(values[1:]):
    if not all(values):
      raise ValueError(f"set all of {', '.join(EXPLICIT)}, or none: they are {', '.join(map(str, values))}")
    address, count, index = values
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
      raise ValueError(f"JAX_NUM_PROCESSES is {count}, JAX_PROCESS_ID {index}: a number, and one below it from 0 on")
    explicit = dict(coordinator_address=address, num_processes=int(count), process_id=int(index))
    waits |= dict(**explicit, cluster_detection_method="deactivate")
  elif not any(several(os.environ[name]) for name, several in SCHEDULED.items() if name in os.environ):
    if values[0]:
      raise ValueError(f"{EXPLICIT[0]} is {values[0]}: set {' and '.join(EXPLICIT[1:])} too, or none of them")
    return
  try:
    jax.distributed.initialize(**waits)
  except jax.errors.JaxRuntimeError as error:
    print(f"the other processes of this run were not met: {error}", file=sys.stderr)
    sys.exit(RESTART)


def first() -> bool:
  """Whether this process writes what only one may write."""
  return jax.process_index() == 0


def alone() -> bool:
  return jax.process_count() == 1


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  if not alone():
    multihost_utils.sync_global_devices(name)


def lost(error: Exception) -> bool:
  """Whether `error` is of another process of this run, which is there no more."""
  return not alone() and isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in LOST)


def leave(error: Exception) -> None:
  """Ends this process, where it has others, because of `error`: with 77, restart me, where one of them was lost.

  Leaving in order would wait for the others; they end when they miss this one.
  """
  if not alone():
    sys.stdout.flush()
    os._exit(RESTART if lost(error) else 1)


def agree(what: dict[str, str]) -> None:
  """ValueError, in every process, naming what differs between them and which processes have it otherwise; or where they
  have not joined, as the hosts of a pod have not that nothing told of each other."""
  if alone():
    return
  if not jax.distributed.is_initialized():
    raise ValueError(
      f"this run has {jax.process_count()} hosts that did not join each other: start it with vdt launch, or set "
      f"{', '.join(EXPLICIT)} on each of them"
    )
  size = 128
  mine = [value.encode()[:size].ljust(size) for value in what.values()]
  everyone = multihost_utils.process_allgather(np.array([np.frombuffer(row, np.uint8) for row in mine]))
  for number, name in enumerate(what):
    others = [process for process, rows in enumerate(everyone) if (rows[number] != everyone[0, number]).any()]
    if others:
      values = {bytes(rows[number]).decode(errors="replace").strip() for rows in everyone}
      raise ValueError(
        f"the processes of this run disagree on their {name}: {', '.join(sorted(values))}; others than process 0 has: "
        f"{', '.join(map(str, others))}. Start all of them from one checkout, with one command, on one data set"
      )


def spread(tree: Any) -> Any:
  """Arrays that every process has whole, laid over the data x fsdp of the current mesh along their first axis."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return tree
  place = NamedSharding(mesh, BATCH)
  return jax.tree.map(lambda x: jax.make_array_from_callback(np.shape(x), place, lambda index: x[index]), tree)


def gather(x: jax.Array) -> np.ndarray:
  """The whole of an array that may lie over all processes."""
  return np.asarray(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)


def rows(count: int) -> int:
  """`count`, or the next number above it that divides over data x fsdp."""
  mesh = jax.sharding.get_mesh()
  parts = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
  return -(-count // parts) * parts


def in_chunks(function: Callable[..., jax.Array], inputs: tuple, chunk: int = CHUNK, title: str = "") -> np.ndarray:
  """`function` of `inputs`, `chunk` rows of them at a time, over the data x fsdp of the mesh; rows are independent.

  title: of a bar on a terminal, where there are several chunks.
  """
  count, chunk, out = len(jax.tree.leaves(inputs)[0]), rows(chunk), []
  quiet = None if title and count > chunk and first() else True
  for begin in tqdm.trange(0, count, chunk, desc=title, leave=False, disable=quiet):
    index = np.minimum(np.arange(begin, begin + chunk), count - 1)  # the last one is repeated to fill a chunk
    part = jax.tree.map(lambda x, index=index: np.asarray(x)[index], inputs)
    out.append(gather(function(*spread(part))))
  return np.concatenate(out)[:count]
