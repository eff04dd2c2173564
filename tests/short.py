"""An experiment of seconds, and the processes that run it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import xla

from data_pipelines.clips import SimulatedClips
from data_pipelines.latents import Latents
from data_pipelines.mixture import Buckets
from data_pipelines.sound import LogMel
from data_pipelines.tokenizer import Pieces
from vdt.checkpoint import Checkpointer
from vdt.config import AdamW, Config
from vdt.diffusion import RectifiedFlow, Sampler, Tasks
from vdt.evals.fvd import FVD
from vdt.evals.prediction import Prediction
from vdt.evals.val_loss import ValLoss
from vdt.models import T5Config, TransformerConfig, VideoAutoencoder
from vdt.reconstruction import Reconstruct, Reconstruction
from vdt.sweep import BASE, Arm, chainit, product, seeds, vary
from vdt.writer import TIMINGS

ROOT = Path(__file__).parents[1]
STEPS = 40
NOTES = "VDT_TEST_NOTES"  # a folder in which each process notes the clips that it was given, where it is set
DIES = "VDT_TEST_DIES"  # the rank of the process that is killed where it reads a checkpoint


@dataclasses.dataclass(unsafe_hash=True)
class Noted(SimulatedClips):
  """Clips that say what they were read for."""

  def batches(self, start, blocks=(0,), of=1):
    for step, batch in enumerate(super().batches(start, blocks, of), start):
      if NOTES in os.environ:
        with (Path(os.environ[NOTES]) / str(os.getpid())).open("a") as file:
          file.write(json.dumps({"step": step, "blocks": [*blocks], "of": of, "ids": batch["id"].tolist()}) + "\n")
      yield batch


def get_config(variant: str = "") -> Config:
  """Variant `evals` has a validation loss every 10 steps; `latents` are those of `config.autoencoder`, which is to be
  set, as is where data are; `autoencoder` trains one; `buckets` has clips and pictures, `mixed latents` their latents;
  `told` is told of all but sound, `hearing` of sound and captions."""
  if DIES in os.environ and os.environ[DIES] == os.environ["JAX_PROCESS_ID"]:
    Checkpointer.read = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
  config = Config(
    steps=10,
    data=Noted(name="sprites16", frames=8, size=(16, 16), batch_size=8),
    model=TransformerConfig(depth=2, width=16, heads=2, patch=(1, 4, 4), classes=24, dtype="float32"),
    diffusion=RectifiedFlow(),
    tasks=Tasks(generation=1.0, prediction=1.0, completion=1.0),
    sampler=Sampler(steps=2),
    optimizer=AdamW(lr=1e-3, warmup=5),
    log_every=2,
    save_every=5,
  )
  if variant == "evals":
    config.evals = {"loss": ValLoss(count=8, bins=1, every=10)}
  if variant == "told":
    config.data = Noted(name="sprites16", frames=4, size=(16, 16), batch_size=8, strides=(1, 2))
    config.text = Pieces(length=12, vocabulary=400)
    config.model.encoder = T5Config(400, width=12, depth=1, heads=2, head_size=4, mlp=16, dtype="float32")
    config.model.pattern, config.model.text = (("space", "time", "text"),), 12
    config.model.fps = config.model.size = True
    config.evals = {"loss": ValLoss(count=8, bins=1)}
  if variant == "hearing":
    config.data = SimulatedClips(name="sounding16", frames=4, size=(16, 16), batch_size=8)
    config.model.classes, config.tasks, config.sound = 0, Tasks(), LogMel(bands=4, windows=2)
    config.model.pattern, config.model.sound = (("space", "time", "sound", "text"),), 8
    config.text, config.model.text = Pieces(length=12, vocabulary=300), 12
    config.model.encoder = T5Config(300, width=12, depth=1, heads=2, head_size=4, mlp=16, dtype="float32")
  if variant == "latents":
    source = SimulatedClips(name="sprites16", frames=5, size=(16, 16), batch_size=8)
    config.data = Latents(name="latents", frames=2, size=(4, 4), batch_size=8, flip=True, source=source)
    config.model = TransformerConfig(depth=2, width=16, heads=2, patch=(1, 2, 2), channels=6, dtype="float32")
    config.evals = {
      "loss": ValLoss(count=8, bins=1),
      "prediction": Prediction(count=4, repeats=2, given_frames=3),
      "fvd": FVD(count=16, features="random", controls=("noised",), task="prediction", given_frames=3),
    }
  if variant == "mixed latents":  # of clips, and of single pictures
    config = get_config("latents")
    pictures = SimulatedClips(name="bouncing16", frames=1, size=(16, 16), batch_size=16)
    pictures = Latents(name="pictures", frames=1, size=(4, 4), batch_size=16, source=pictures)
    config.data = Buckets((config.data, pictures), (1.0, 1.0))
    config.model.classes = 28
  if variant == "buckets":
    pictures = SimulatedClips(name="bouncing16", frames=1, size=(16, 16), batch_size=16)
    config.data = Buckets(
      (SimulatedClips(name="sprites16", frames=8, size=(16, 16), batch_size=8), pictures), (1.0, 2.0)
    )
    config.model.classes = 28
  if variant == "autoencoder":
    config.data = SimulatedClips(name="sprites16", frames=5, size=(16, 16), batch_size=8)
    config.model = VideoAutoencoder(cell=(4, 2, 2), widths=(8, 12), blocks=(1, 1), latents=6, dtype="float32")
    config.diffusion, config.sampler, config.tasks = Reconstruction(error="l2"), Reconstruct(), Tasks()
    config.optimizer = AdamW(lr=3e-3, warmup=5)
  return config


def few():
  yield from ({"optimizer.lr": lr} for lr in (1e-3, 2e-3, 3e-3))


def cluster():
  two = Arm("two", {"processes": 2})
  return chainit(product(vary("optimizer.lr", [1e-3, 2e-3, 3e-3]), seeds(2)), [two])


def broken():
  yield from ({"optimizer.lr": 1e-3}, {"init_from": "nowhere"}, {"optimizer.lr": 3e-3})


def eight():
  arms = chainit([BASE], vary("optimizer.lr", [3e-3]), vary("model.pattern", joint=(("joint",),), space=(("space",),)))
  return product(arms, seeds(2))


def start(workdir, data_dir, devices=1, environment=(), variant="evals", cwd=None, **fields):
  """A process that trains, with so many CPU devices."""
  fields = {"steps": STEPS, "log_every": 2, "save_every": 5, "data.batch_size": 4, "data.data_dir": data_dir, **fields}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  run = [f"--config={ROOT}/tests/short.py:{variant}", f"--workdir={workdir}"]
  return python(["vdt.train", *run, *flags], data_dir, devices, environment, cwd)


def python(module, data_dir, devices=1, environment=(), cwd=None):
  """A process of a module and its arguments."""
  ours = {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": xla.devices(devices),
    "JAX_COMPILATION_CACHE_DIR": f"{data_dir}/cache",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  how = dict(env={**os.environ, **ours, **dict(environment)}, cwd=cwd, stderr=subprocess.PIPE, text=True)
  return subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, **how)


def start_together(workdir, data_dir, count, devices, **fields):
  """Processes of one run, with so many CPU devices each."""
  return [start(workdir, data_dir, devices, names, **fields) for names in meeting(count)]


def meeting(count):
  """What the environment of each of so many processes says, so that they find each other."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
  return [{**names, "JAX_PROCESS_ID": str(index)} for index in range(count)]


def finish(*args, **fields):
  """What `start` starts, to its end: its exit code and what it said."""
  process = start(*args, **fields)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def rows(workdir):
  """The metrics of a run, but for timings."""
  read = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in row.items() if name not in TIMINGS} for row in read]


def last_step(workdir):
  """The step of the last whole row; one that is being written has no end yet."""
  path = Path(workdir) / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return json.loads(lines[-1])["step"] if lines else 0
