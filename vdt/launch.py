"""Where jobs run: this machine, a Slurm cluster, Google Kubernetes Engine, or TPU VMs by hand; and how they stand."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vdt import attempts, files, gke, plan, slurm, sweep, workdirs
from vdt.attempts import CANCELLED, DONE, FAILED, LOST, OVER, QUEUED, RUNNING, STOPPED, Job
from vdt.config import Config, to_dict
from vdt.sweep import Plan
from vdt.writer import read_rows


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
  """Makes `folder`, and keeps other sweeps out of it. ValueError if one is there, OSError if it cannot be written."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".sweep.lock").touch()
  except OSError as error:
    raise OSError(f"{folder} cannot be written ({error.strerror}): name another --workdir") from error
  with attempts.held(folder / ".sweep.lock") as ours:
    if not ours:
      raise ValueError(f"another sweep runs in {folder}: wait for it, or name another --workdir")
    yield


@dataclasses.dataclass
class Backend:
  """Where jobs run, and how. options: sbatch's (see `vdt.slurm`). cluster: see `vdt.gke`.

  remote: a folder in a bucket, where workdirs lie that are not this machine's. topology, slices: what each job takes of
  GKE, or of TPU VMs. zone: of those. dry: says what would be done.
  """

  name: str = "local"
  workers: int = 1
  options: dict[str, str] = dataclasses.field(default_factory=dict)
  cluster: gke.Cluster = dataclasses.field(default_factory=lambda: gke.Cluster(image=""))
  remote: str = ""
  topology: str = ""
  slices: int = 1
  zone: str = ""
  dry: bool = False

  @property
  def far(self) -> bool:
    """Whether jobs run where this machine's files are not."""
    return self.name in ("gke", "tpu-vm")

  def check(self, configs: list[Config]) -> None:
    """ValueError for what cannot be sent there; a config that does not fit its slice is refused, with the numbers."""
    if not self.far:
      return
    if not files.remote(self.remote):
      raise ValueError(
        f"--remote is {self.remote!r}: the workdirs of {self.name} lie in a bucket, say gs://BUCKET/runs"
      )
    if self.name == "gke" and not self.cluster.image:
      raise ValueError('--gke names no image: make one of the Dockerfile, and say --gke "image=..."')
    if self.name == "tpu-vm" and not self.zone:
      raise ValueError("--zone is missing: TPU VMs are made in one, say us-west4-a")
    seen = set()
    for config in configs:
      for data in getattr(config.data, "parts", (config.data,)):
        folder = getattr(data, "data_dir", "")
        if folder and not files.remote(folder) and not os.path.isabs(folder) and not getattr(data, "rendered", False):
          raise ValueError(
            f"data_dir is {folder!r}, a folder beside this command, which {self.name} does not see: upload "
            f"{os.path.join(folder, getattr(data, 'name', ''))}, and set data.data_dir, say to gs://BUCKET/data"
          )
      topology = self.topology or config.topology
      if not topology:
        raise ValueError("name a slice with --topology, say v5e:16x16, or in the config's topology")
      shape = {name: value for name, value in to_dict(config).items() if name not in ("seed", "optimizer", "data")}
      key = json.dumps([shape, topology, config.data.batch_size, type(config.optimizer).__name__])
      if key not in seen:
        plan.plan(config, topology, self.slices, sampling=False)
      seen.add(key)


def submit(plans: list[Plan], backend: Backend, where: Path) -> str:
  """Sends jobs to Slurm, GKE or TPU VMs, or says what would be sent."""
  if backend.name == "slurm":
    return slurm.submit({plan.folder: plan.job for plan in plans}, where, backend.options, backend.dry)
  if backend.name == "local":  # dry
    return "\n".join(f"python -m vdt.attempts {plan.folder}: vdt {shlex.join(plan.job.command)}" for plan in plans)
  said = []
  for _, config, folder, job in plans:
    name = re.sub(r"[^a-z0-9]+", "-", f"run-{job.name.lower()[:24]}").strip("-") + f"-{job.identity[:8]}"
    what = (name, ["vdt", *job.command], backend.topology or config.topology, backend.slices)
    if backend.name == "tpu-vm":
      said.append(gke.tpu_vm_commands(*what, backend.zone))
      continue
    manifest = gke.manifest(*what, backend.cluster)
    gke.validate(manifest)
    said.append(gke.text(manifest))
    if not backend.dry:
      if not shutil.which("kubectl"):
        raise ValueError("there is no kubectl here: install it, or pipe what --dry_run prints to one")
      if subprocess.run(["kubectl", "apply", "-f", "-"], input=said[-1], text=True).returncode:
        attempts.note(folder, FAILED)
        raise ValueError(f"kubectl, which says why above, did not take {name}: mend that, and launch it again")
      attempts.note(folder, "submit", backend="gke", job=f"{backend.cluster.namespace}/{name}")
  return "---\n".join(said)


def unfinished(folders: list[Path]) -> list[Path]:
  """The jobs that are neither done, nor stopped as hopeless, nor on their way in a queue or on another machine."""
  left = [folder for folder in folders if attempts.state(folder) not in (DONE, STOPPED)]
  places = {folder: place(folder) for folder in left}
  alive = slurm.alive([job for backend, job in places.values() if backend == "slurm"])
  gone = lambda folder: attempts.state(folder) != QUEUED
  return [
    folder
    for folder, (backend, job) in places.items()
    if (job not in alive if backend == "slurm" else gone(folder) if backend == "gke" else True)
  ]


def another(plan: Plan) -> list[Path]:
  """The folder of a run that was launched before with another config, or other data, and is to be run again.

  ValueError if it still runs, or waits in a queue.
  """
  if not (plan.folder / "job.json").exists() or Job.read(plan.folder).identity == plan.job.identity:
    return []
  if (state := attempts.state(plan.folder)) in (RUNNING, QUEUED):
    raise ValueError(f"another run is {state} in {plan.folder}: cancel it, or name another --workdir")
  return [plan.folder] if state in (DONE, STOPPED) else []


def place(folder: Path) -> tuple[str, str]:
  """The backend that a job was last given to, and what that calls it; "" for none."""
  last = next((line for line in reversed(attempts.notes(folder)) if line["what"] == "submit"), {})
  return last.get("backend", ""), last.get("job", "")


def local(folders: list[Path], workers: int) -> None:
  """Runs jobs on this machine, `workers` at a time, each on its share of the cores, to the end of all.

  SIGTERM and SIGINT let those that run save; the process ends with 77, or 130. Where it is killed, they save as well.
  """
  cores = sorted(os.sched_getaffinity(0))
  shares = [cores[number::workers] or [cores[number % len(cores)]] for number in range(workers)]
  left, running = list(folders), {}
  for folder in left:
    attempts.note(folder, "submit", backend="local")
  with attempts.Hand() as hand:
    while running or (left and not hand.signal):
      for share, (folder, process) in list(running.items()):
        if process.poll() is not None:
          hand.processes.remove(process)
          del running[share]
          print(f"{Job.read(folder).name}: {line(folder)}", flush=True)
      for share in range(workers):
        if left and share not in running and not hand.signal:
          folder = left.pop(0)
          if attempts.state(folder) == CANCELLED:  # since the sweep began
            continue
          command = [sys.executable, "-m", "vdt.attempts", str(folder), ",".join(map(str, shares[share]))]
          running[share] = (folder, hand.start(command))
      time.sleep(0.2)
    if hand.signal:
      sys.exit(attempts.RESTART if hand.signal == signal.SIGTERM else attempts.INTERRUPTED)
  if failed := [Job.read(folder).name for folder in folders if attempts.state(folder) in (FAILED, LOST)]:
    raise ValueError(f"{len(failed)} of {len(folders)} runs failed ({', '.join(failed)}); mended, run the sweep again")


def detach(folder: Path) -> None:
  """Starts a job on this machine, and leaves it to itself."""
  attempts.note(folder, "submit", backend="local")
  command = ["setsid", "--fork", sys.executable, "-m", "vdt.attempts", str(folder)]
  quiet = subprocess.DEVNULL
  subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, check=True)


def cancel(folder: Path) -> str:
  """Ends a job, which saves where it runs; says what was done. A sweep that has yet to start it will not."""
  state, lines = attempts.state(folder), attempts.notes(folder)
  last = next((line for line in reversed(lines) if line["what"] == "start"), {})
  if state in OVER:
    return f"{state} already"
  backend, job = place(folder)
  far = {"slurm": ["scancel", job], "gke": ["kubectl", "delete", "jobset", job.split("/")[-1]]}.get(backend)
  if backend == "gke":
    far.append(f"--namespace={job.split('/')[0]}")
  if far and not shutil.which(far[0]):
    raise ValueError(f"there is no {far[0]} here: cancel {job} where there is")
  if not far and state == RUNNING and last["host"] != socket.gethostname():
    raise ValueError(f"{folder} runs on {last['host']}: cancel it there")
  if far and (asked := subprocess.run(far, capture_output=True, text=True)).returncode:
    raise ValueError(f"{shlex.join(far)}: {' '.join(asked.stderr.split())}")
  attempts.note(folder, "cancel")
  if not far and state == RUNNING:
    os.kill(last["pid"], signal.SIGTERM)
  if state != RUNNING:
    attempts.note(folder, CANCELLED)
  return "told to save and end" if state == RUNNING else CANCELLED


def line(folder: Path) -> str:
  """How a job stands, and why."""
  state = attempts.state(folder)
  starts = sum(each["what"] == "start" for each in attempts.notes(folder))
  text = f"{state}, {starts} attempt{'s' * (starts != 1)}"
  backend, job = place(folder)
  if backend == "gke":
    text = "sent to GKE: kubectl get jobset --namespace={} {}".format(*job.split("/"))
  elif backend == "slurm" and state not in OVER:
    text += f", Slurm's job {job}" + (f" {slurm.ask(job).get(job, 'gone')}" if shutil.which("squeue") else "")
  text += progress(folder)
  if state in (FAILED, LOST):
    text += "".join(f"\n    {each[:200]}" for each in attempts.tail(folder))
  return text


def progress(folder: os.PathLike) -> str:
  """The last step that a run logged, if any, to be said after how it stands."""
  rows = [row for row in read_rows(str(folder)) if "loss" in row]
  return f", step {rows[-1]['step']}, loss {rows[-1]['loss']:.4f}" if rows else ""


def jobs(folders: list[Path], arm: str | None = None) -> dict[str, Path]:
  """Name to folder of the jobs of sweeps and runs, or of one `arm`. ValueError if there are none."""
  found = {}
  for folder in folders:
    arms = sweep.read(folder) if (folder / sweep.NAME).exists() else [{"folder": "."}]
    for each in dict.fromkeys(folder / arm["folder"] for arm in arms):
      found[f"{folder.name}/" * (len(folders) > 1) + Job.read(each).name] = each
  if arm and arm not in found:
    raise ValueError(f"no arm {arm!r}: choose from {', '.join(found)}")
  return {arm: found[arm]} if arm else found


def table(folders: list[os.PathLike]) -> str:
  """How the jobs of sweeps and runs stand, a line each; runs of `vdt train` among them, here or in buckets."""
  stands = lambda run: (
    "in a bucket" if files.remote(run) else "trains now" if workdirs.busy(str(run)) else "not running"
  )
  plain = [folder for folder in folders if workdirs.exists(str(folder)) and not (folder / "job.json").exists()]
  rows = {str(each): stands(each) + progress(each) for each in plain}
  if others := [folder for folder in folders if folder not in plain]:
    rows |= {name: line(folder) for name, folder in jobs(others).items()}
  width = max(map(len, rows))
  return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())


def logs(folders: list[Path], arm: str | None, lines: int) -> str:
  """The last lines that each job printed."""
  text = []
  for name, folder in jobs(folders, arm).items():
    backend, job = place(folder)
    last = attempts.tail(folder, lines)
    if backend == "gke":
      last = ["kubectl logs --namespace={} -l jobset.sigs.k8s.io/jobset-name={} --tail=-1".format(*job.split("/"))]
    text.append("\n".join([f"== {name}", *last]))
  return "\n".join(text)


def portable(origin: list[str]) -> list[str]:
  """An experiment's flags, for another machine: its file is named from the folder we are in, which an image has too.

  ValueError if it is not in there.
  """
  number = next(number for number, flag in enumerate(origin) if flag.startswith("--config="))
  path = Path(origin[number].partition("=")[2])
  try:
    return [*origin[:number], f"--config={path.relative_to(Path.cwd())}", *origin[number + 1 :]]
  except ValueError:
    raise ValueError(f"{path} is not in {Path.cwd()}, which an image is made of: start from the checkout") from None


def send(folder: Path, plans: list[Plan], backend: Backend) -> None:
  """Brings runs under `folder` to their end, or to where they will be; those that are done, or on their way, stay."""
  backend.check([plan.config for plan in plans])
  several = (folder,) != tuple(plan.folder for plan in plans)
  with contextlib.nullcontext() if backend.dry else claim(folder):
    renewed = [] if several or backend.dry else another(plans[0])
    plans = sweep.write(folder if several else None, plans, backend.remote, backend.dry)
    folders = unfinished([plan.folder for plan in plans]) + renewed
    left = [plan for plan in plans if plan.folder in folders]
    if several:
      print(f"{len(plans)} runs, {len(left)} to go", flush=True)
    if backend.name != "local" or backend.dry:
      print(submit(left, backend, folder))
    elif several:
      local([plan.folder for plan in left], backend.workers)
    else:
      for plan in left:
        if attempts.state(plan.folder) == RUNNING:
          print(f"{plan.folder} runs already")
        else:
          detach(plan.folder)
  if not backend.dry:
    print(f"vdt status {folder}")
