"""One host of several: are the rows of a batch where meshes have them, whatever the order of their devices?"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vdt import distributed, sharding
from vdt.config import AXES


def main() -> None:
  distributed.join()
  found, batch = [], np.arange(48).reshape(16, 3)
  for shape, order in json.loads(sys.argv[1]):
    mesh = jax.sharding.Mesh(np.array(jax.devices())[order].reshape(shape), AXES)
    own, count = sharding.blocks(mesh)
    rows = batch.reshape(count, -1, 3)[own].reshape(-1, 3)
    placed = sharding.put({"rows": rows}, mesh)["rows"]
    np.testing.assert_array_equal(distributed.gather(placed), batch, f"{shape} {order}")
    flags = sharding.flags(7 * jax.process_index(), mesh)
    most = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, PartitionSpec()))(flags)
    assert int(most) == 7 * (jax.process_count() - 1), f"{shape} {order}"
    found.append(own)
  Path(sys.argv[2], f"{jax.process_index()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
  main()
