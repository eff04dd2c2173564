"""Jobs on a Slurm cluster, through submitit: arrays of them, each started again where it was cut off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vdt import attempts
from vdt.attempts import LOST, OVER, PREEMPTED, RESTART, Job

OPTIONS = {"time": "1440", "nodes": "1", "cpus_per_task": "1"}
GRACE = 120  # seconds from SIGTERM to the end of a job's time


def submit(jobs: dict[Path, Job], where: Path, options: dict[str, str], dry: bool) -> str:
  """Submits jobs, by folder, those of as many processes as one array; returns what was submitted, or would be (`dry`).

  where: for submitit's own files, a folder that all nodes see. options: sbatch's, by their long names ("partition",
  "time" in minutes, "nodes", "cpus_per_task", "gpus_per_node", "mem", "account", ...). ValueError if submitit or Slurm
  is not there, or takes them for wrong.
  """
  try:
    import submitit
  except ImportError:
    raise ValueError("Slurm is reached through submitit: pip install 'vdt[cloud]'") from None
  if not (dry or shutil.which("sbatch")):
    raise ValueError("there is no sbatch here: log in to the cluster, or see with --dry_run what would be submitted")
  said = []
  for count in sorted({job.processes for job in jobs.values()}):
    group = [folder for folder, job in jobs.items() if job.processes == count]
    fields = parameters(count, {**OPTIONS, **options})
    listed = " ".join(f"{name}={value}" for name, value in fields.items())
    said.append(f"sbatch array of {len(group)}: {listed}")
    ids = [""] * len(group)
    if not dry:
      executor = submitit.SlurmExecutor(where / "slurm")
      try:
        executor.update_parameters(**fields)
        ids = [job.job_id for job in executor.map_array(task, [str(folder) for folder in group])]
      except Exception as error:  # submitit's own kinds, and those of what it calls
        raise ValueError(f"Slurm refuses: {error}; it was asked for {listed}") from error
    for folder, number in zip(group, ids):
      if number:
        attempts.note(folder, "submit", backend="slurm", job=number)
      job = jobs[folder]
      said.append(f"  {job.name}: {f'job {number}' if number else 'vdt ' + ' '.join(job.command)}")
  return "\n".join(said)


def parameters(processes: int, options: dict[str, str]) -> dict[str, Any]:
  """submitit's parameters. ValueError where processes do not divide over nodes."""
  known = "partition qos account constraint nodelist exclude gres gpus_per_node mem exclusive array_parallelism".split()
  for name in ("time", "nodes", "cpus_per_task", "array_parallelism"):
    if not options.get(name, "1").isdigit():
      raise ValueError(f"--slurm {name}={options[name]}: a whole number" + (", of minutes" if name == "time" else ""))
  nodes = int(options["nodes"])
  if processes % nodes:
    raise ValueError(f"{processes} processes do not divide over {nodes} nodes: change `processes`, or nodes")
  if wrong := sorted({*options} - {*known, *OPTIONS}):
    raise ValueError(f"--slurm has no {wrong[0]!r}: choose from {', '.join(sorted({*known, *OPTIONS}))}")
  fields = {name: value for name, value in options.items() if name in known}
  numbers = {"time": int(options["time"]), "nodes": nodes, "cpus_per_task": int(options["cpus_per_task"])}
  if "array_parallelism" in fields:
    fields["array_parallelism"] = int(fields["array_parallelism"])
  return {
    "job_name": "vdt",
    **numbers,
    "ntasks_per_node": processes // nodes,
    **fields,
    "additional_parameters": {"requeue": True, "signal": f"TERM@{GRACE}"},  # not submitit's SIGUSR2
  }


def task(folder: str) -> str:
  """What a task of a job does: one attempt, and if that was cut off, it has Slurm queue the job again.

  Ends with SystemExit(77) then, so that submitit takes the job for unfinished.
  """
  ended = attempts.run(Path(folder), here=False)
  if ended in (PREEMPTED, LOST) and not attempts.exhausted(Path(folder), Job.read(Path(folder))):
    if os.environ["SLURM_PROCID"] == "0":
      job = name()
      try:
        cancelled = ask(job).get(job) != "RUNNING"  # it would rise again; one that Slurm queued itself would not mind
      except ValueError:
        cancelled = False
      if not cancelled:
        subprocess.run(["scontrol", "requeue", job], check=True)
    sys.exit(RESTART)
  if ended not in OVER:
    sys.exit(1)
  return ended


def name() -> str:
  """This job as `scontrol` means it and no other: SLURM_JOB_ID of an array's last task is that of the array."""
  if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
  return os.environ["SLURM_JOB_ID"]


def ask(*jobs: str) -> dict[str, str]:
  """The state of each job that Slurm still knows, as it calls it. ValueError if it does not answer."""
  command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", "-j", ",".join(jobs)]
  asked = subprocess.run(command, capture_output=True, text=True)
  if asked.returncode and "Invalid job id" not in asked.stderr:  # that it says of a single one it has forgotten
    raise ValueError(f"squeue: {' '.join(asked.stderr.split())}; try again when the cluster answers")
  return dict(line.split("|") for line in asked.stdout.split())


def alive(jobs: list[str]) -> set[str]:
  """Those that Slurm runs, or will. ValueError if there is no Slurm here."""
  if jobs and not shutil.which("squeue"):
    raise ValueError(f"there is no squeue here: log in to the cluster that jobs {', '.join(jobs[:3])} were given to")
  over = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
  return {job for job, state in (ask(*jobs).items() if jobs else ()) if state not in over}
