r"""How fast is reading? Records a second, against PyTorch's DataLoader, Grain, and a bare gather from a memory map.

  pip install -e '.[bench]'
  python experiments/benchmarks/input_pipeline.py [--rounds 5] [--seconds 2] [--json FILE]

Two formats, each read by all arms from the same files, in shuffled order, in batches of 32 as NumPy arrays or tensors:

  latents  16 x 32 x 32 x 4 of bfloat16, memory-mapped .npy shards, as `vdt encode` writes them;
  clips    16 x 64 x 64 x 3 of bytes, as one tall JPEG a record in array_record, as `vdt ingest` writes them.

`vdt` is `batches()`, read ahead by two threads: tf.data's of clips, its own of latents. `torch 0` reads in the loop,
which waits for every batch; `torch 2` has two worker processes. `grain` is a MapDataset, read ahead by threads.
`gather` copies the records of a batch into new memory, and nothing else: the limit of memory-mapped latents. The arms
take turns, round after round; a figure is the median of the rounds. Then the resident memory over --batches small
batches, and the share of a step of --step seconds that waits for data, as it is and with 50 ms added to every read.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # TensorFlow imports JAX
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import ml_dtypes
import numpy as np

from data_pipelines.clips import Clips, SimulatedClips
from data_pipelines.latents import Latents
from data_pipelines.shuffle import permute

BATCH, RECORDS, SHARD = 32, 4096, 512
LATENT, CLIP = (16, 32, 32, 4), (16, 64, 64, 3)
RESULTS = pathlib.Path(__file__).parent / "results" / "input_pipeline.json"


def make_latents(folder: pathlib.Path, source: Clips) -> Latents:
  """RECORDS random latents in the format of `vdt encode`, as if of `source`."""
  data = Latents("latents", 16, (32, 32), BATCH, source=source, data_dir=str(folder))
  os.makedirs(data.directory)
  rng = np.random.default_rng(0)
  for number in range(RECORDS // SHARD):
    values = rng.standard_normal((SHARD, 1, *LATENT), np.float32).astype(ml_dtypes.bfloat16)
    path, rows, _ = data.shard_paths("train", number)
    np.save(path, values.view(np.uint16))
    names = np.array([f"{number}/{row}".encode() for row in range(SHARD)])
    np.savez(rows, label=np.zeros(SHARD, np.int32), id=names, caption=names)
  said = {"autoencoder": "none", "source": "none", "views": 1, "shape": LATENT, "apart": True, "shard": SHARD}
  said |= {"frames": LATENT[0], "sound": 0, "counts": {"train": RECORDS}, "mean": [0.0] * 4, "std": [1.0] * 4}
  pathlib.Path(data.info_path).write_text(json.dumps(said))
  return data


def make_clips(folder: pathlib.Path) -> Clips:
  """Clips of moving shapes, ingested as a user would."""
  import av

  from data_pipelines import ingest

  films = folder / "films"
  films.mkdir()
  for number in range(16):
    rng = np.random.default_rng(number)
    start, speed = rng.uniform(10, 54, (6, 2)), rng.normal(0, 1.5, (6, 2))
    background = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    with av.open(str(films / f"{number}.mp4"), "w") as container:
      stream = container.add_stream("libx264", rate=8)
      stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
      for frame in range(500):
        picture = background.copy()
        for each in range(6):
          x, y = (start[each] + frame * speed[each]) % 64
          cv2.circle(picture, (int(x), int(y)), 5, tuple(int(v) for v in rng.integers(0, 255, 3)), -1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
      container.mux(stream.encode())
  settings = ingest.Settings(size=(64, 64), fps=8.0, frames=16, stride=4)
  ingest.ingest(films, folder / "clips", settings, test_fraction=0.1)
  return Clips("clips", 16, (64, 64), BATCH, data_dir=str(folder))


class OfLatents:
  """One record, for loaders that ask for one at a time."""

  def __init__(self, data: Latents):
    self.paths = [data.shard_paths("train", number)[0] for number in range(RECORDS // SHARD)]
    self.shards = None

  def __len__(self) -> int:
    return RECORDS

  def __getitem__(self, index: int) -> np.ndarray:
    if self.shards is None:  # maps are opened where they are read
      self.shards = [np.load(path, mmap_mode="r") for path in self.paths]
    return np.array(self.shards[index // SHARD][index % SHARD, 0])


class OfClips:
  """One clip, for loaders that ask for one at a time: the same reader and decoder as ours."""

  def __init__(self, data: Clips):
    self.data = dataclasses.replace(data)

  def __len__(self) -> int:
    return len(self.data)

  def __getitem__(self, index: int) -> np.ndarray:
    return self.data.records(np.array([index]))["video"][0]


def torch_arm(records, workers: int):
  import torch

  how = {
    "num_workers": workers,
    "persistent_workers": workers > 0,
    "multiprocessing_context": "spawn" if workers else None,
  }
  loader = torch.utils.data.DataLoader(records, BATCH, shuffle=True, collate_fn=stack, drop_last=True, **how)
  while True:
    yield from loader


def stack(values):
  import torch

  return torch.from_numpy(np.stack(values))


def grain_arm(records):
  import grain

  data = grain.MapDataset.source(records).seed(0).shuffle().repeat().batch(BATCH)
  yield from data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))


def gather_arm(data: Latents):
  """The least there is to do: a batch's records into new memory."""
  shards = [np.load(data.shard_paths("train", number)[0], mmap_mode="r") for number in range(RECORDS // SHARD)]
  for epoch in itertools.count():
    order = permute(np.arange(RECORDS), RECORDS, 0, epoch)
    for begin in range(0, RECORDS, BATCH):
      made = np.empty((BATCH, *LATENT), np.uint16)
      for row, index in enumerate(order[begin : begin + BATCH].tolist()):
        made[row] = shards[index // SHARD][index % SHARD, 0]
      yield made


def rate(stream, seconds: float) -> float:
  """Records a second of the next batches, each of which is touched."""
  count, start = 0, time.perf_counter()
  while (now := time.perf_counter()) - start < seconds or not count:
    batch = next(stream)
    batch = batch["video"] if isinstance(batch, dict) else batch
    count += len(batch)
  return count / (now - start)


def compare(arms: dict, rounds: int, seconds: float) -> dict[str, list[float]]:
  found = {name: [] for name in arms}
  for stream in arms.values():
    for _ in range(20):
      next(stream)  # files come into memory, workers start
  for _ in range(rounds):
    for name, stream in arms.items():
      found[name].append(rate(stream, seconds))
  return found


def memory(data, batches: int) -> dict[str, float]:
  """Resident megabytes after a tenth of so many batches, and after all."""
  page = os.sysconf("SC_PAGE_SIZE") / 1e6
  resident = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * page
  shared = lambda: int(pathlib.Path("/proc/self/statm").read_text().split()[2]) * page
  own = lambda: resident() - shared()  # a memory map counts as shared
  stream, early = dataclasses.replace(data, batch_size=1).batches(0), 0.0
  for number, _ in enumerate(itertools.islice(stream, batches)):
    if number == batches // 10:
      early = own()
  return {"batches": batches, "MB after a tenth": early, "MB after all": own(), "growth": own() / early - 1}


def waiting(data, step: float, delay: float, prefetch: int, steps: int = 40) -> float:
  """The share of a step's time that waits for data, with a delay added to every read."""

  class Slow(type(data)):
    def read(self, positions):
      time.sleep(delay)
      return super().read(positions)

  fields = {each.name: getattr(data, each.name) for each in dataclasses.fields(data)}
  stream = Slow(**{**fields, "prefetch": prefetch, "readers": prefetch}).batches(0)
  for _ in range(3):
    next(stream)
    time.sleep(step)
  waited = 0.0
  for _ in range(steps):
    start = time.perf_counter()
    next(stream)
    waited += time.perf_counter() - start
    time.sleep(step)
  return waited / (waited + steps * step)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=2.0, help="of each arm, in each round")
  parser.add_argument("--batches", type=int, default=100_000, help="over which memory is watched")
  parser.add_argument("--step", type=float, default=0.25, help="seconds of a training step (the demo's: 0.25)")
  parser.add_argument("--json", default=RESULTS, type=pathlib.Path)
  args = parser.parse_args()
  found: dict = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "batch": BATCH}
  with tempfile.TemporaryDirectory() as folder:
    clips = make_clips(pathlib.Path(folder))
    latents = make_latents(pathlib.Path(folder), clips)
    for name, data, records in (("latents", latents, OfLatents(latents)), ("clips", clips, OfClips(clips))):
      arms = {"vdt": data.batches(0), "torch 0": torch_arm(records, 0), "torch 2": torch_arm(records, 2)}
      arms |= {"grain": grain_arm(records)} | ({"gather": gather_arm(latents)} if name == "latents" else {})
      rates = compare(arms, args.rounds, args.seconds)
      found[name] = {arm: {"median": statistics.median(values), "rounds": values} for arm, values in rates.items()}
      best = max(found[name][arm]["median"] for arm in ("torch 0", "torch 2"))
      mine = found[name]["vdt"]["median"]
      found[name]["of the better torch"] = mine / best
      print(f"\n{name}, records a second (median of {args.rounds} rounds, least, most)")
      for arm, values in rates.items():
        print(f"  {arm:8} {statistics.median(values):9,.0f} {min(values):9,.0f} {max(values):9,.0f}")
      print(f"  vdt is {mine / best:.2f} of the better DataLoader")
      if name == "latents":
        found[name]["of the gather"] = mine / found[name]["gather"]["median"]
        print(f"  vdt is {found[name]['of the gather']:.2f} of the gather")
      for stream in arms.values():
        stream.close()
    found["memory"] = memory(latents, args.batches)
    print("\nmemory:", ", ".join(f"{key} {value:.4g}" for key, value in found["memory"].items()))
    demo = SimulatedClips(name="bouncing16", frames=8, size=(16, 16), batch_size=32, data_dir=folder)
    demo.prepare()
    found["waiting"] = {}
    for delay, prefetch in ((0.0, 2), (0.05, 2), (0.05, 4)):
      share = waiting(demo, args.step, delay, prefetch)
      found["waiting"][f"{1000 * delay:.0f} ms added, prefetch {prefetch}"] = share
      print(
        f"waiting for data: {100 * share:.2f} % of a step of {args.step} s, {1000 * delay:.0f} ms added to every read"
      )
  args.json.parent.mkdir(parents=True, exist_ok=True)
  args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
