"""A real Slurm cluster on this machine: `python tests/cluster.py FOLDER` keeps one up until Ctrl-C.

It needs Debian's slurm-wlm and munge, and root. Each node is a slurmd with a port of its own, and has as many CPUs as
one says. A job of partition `high` takes its place from jobs of `low`, the default: they receive SIGTERM, 30 s later,
or a little more, SIGTERM again, after another 30 s SIGKILL, and are queued again. There is no accounting, so no
`sacct`: `squeue -t all` and `scontrol` know a job for an hour after its end.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
# As long as its credential lives, a job that is queued again waits: 120 s by default, 5 at least.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=3600
ReturnToService=2
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=2
"""
MUNGE = ("socket", "key-file", "pid-file", "seed-file", "log-file")


def available() -> str:
  """Why no cluster can be started here, or nothing."""
  missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
  if missing:
    return f"no {', '.join(missing)} (Debian's slurm-wlm and munge)"
  return "" if os.geteuid() == 0 else "Slurm is started by root"


@contextlib.contextmanager
def slurm(folder: Path, nodes: int = 2, cpus: int = 3) -> Iterator[dict[str, str]]:
  """What commands need in their environment for a new cluster of so many nodes, with so many CPUs each.

  Its jobs end with it; its logs stay in `folder`.
  """
  folder, host = Path(folder).resolve(), socket.gethostname()
  (folder / "state").mkdir(parents=True)
  (folder / "munge.key").touch(0o600)
  (folder / "munge.key").write_bytes(os.urandom(128))
  port, *ports = free_ports(nodes + 1)
  names = [f"127.0.0.{index}" for index in range(1, nodes + 1)]  # they resolve, as the names of nodes do elsewhere
  lines = [f"NodeName={name} NodeHostname={host} Port={each} CPUs={cpus}" for name, each in zip(names, ports)]
  conf = folder / "slurm.conf"
  conf.write_text(CONF.format(host=host, port=port, folder=folder, nodes="\n".join(lines)))
  munge = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in MUNGE]
  commands = {"munged": ["munged", "--foreground", "--force", *munge], "slurmctld": ["slurmctld", "-D"]}
  commands |= {name: ["slurmd", "-D", "-N", name] for name in names}
  environment = {"SLURM_CONF": str(conf)}
  ours = {"env": {**os.environ, **environment}, "cwd": folder}
  daemons = {}
  try:
    for name, command in commands.items():
      with (folder / f"{name}.out").open("w") as file:
        daemons[name] = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **ours)
    deadline = time.monotonic() + 60
    while True:
      states = subprocess.run(["sinfo", "-hN", "-p", "low", "-o", "%T"], capture_output=True, text=True, **ours)
      if states.stdout.split() == ["idle"] * nodes:
        break
      ended = [name for name, daemon in daemons.items() if daemon.poll() is not None]
      if ended or time.monotonic() > deadline:
        raise RuntimeError(f"no cluster: see {folder} ({ended} ended, nodes {states.stdout.split()}, {states.stderr})")
      time.sleep(0.2)
    yield environment
  finally:
    for daemon in reversed(daemons.values()):
      daemon.terminate()
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    for pid in job_processes(conf):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def job_processes(conf: Path) -> list[int]:
  """Processes of a cluster's jobs, and those which Slurm has started to watch them."""
  pids = []
  for path in Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      environment = (path / "environ").read_bytes().split(b"\0")
      if f"SLURM_CONF={conf}".encode() in environment and (
        (path / "comm").read_text() == "slurmstepd\n" or any(each.startswith(b"SLURM_JOB_ID=") for each in environment)
      ):
        pids.append(int(path.name))
  return pids


def free_ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for each in sockets:
      each.bind(("127.0.0.1", 0))
    return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit())
  with slurm(Path(sys.argv[1])) as environment:
    for name, value in environment.items():
      print(f"export {name}={value}", flush=True)
    signal.pause()
