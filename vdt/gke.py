"""A run on Google's TPUs: a JobSet for Kubernetes Engine (and Kueue), checked here, or the commands for TPU VMs."""

import dataclasses
import math
import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from vdt.attempts import RESTART
from vdt.topology import CHIPS, MEANT


class Machine(NamedTuple):
  """What Google calls a chip: `accelerator` on GKE's nodes, `type` to gcloud, `version` of the TPU VM's system."""

  accelerator: str
  type: str
  version: str


MACHINES = {
  "v4": Machine("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base"),
  "v5e": Machine("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
  "v5p": Machine("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
  "v6e": Machine("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
}
SHAPES = {2: "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split(), 3: "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4".split()}
KUBERNETES = "1.35"
CHOICES = {  # what a cluster takes where the models take any text
  "apiVersion": ["jobset.x-k8s.io/v1alpha2"],
  "kind": ["JobSet"],
  "spec.failurePolicy.restartStrategy": ["Recreate", "BlockingRecreate"],
  "spec.failurePolicy.rules.action": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"],
  "spec.failurePolicy.rules.onJobFailureReasons": ["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded"],
  "spec.replicatedJobs.template.spec.template.spec.restartPolicy": ["Never"],  # podFailurePolicy asks for it
}
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
VARIABLE = re.compile(r"[-._A-Za-z][-._A-Za-z0-9]*")
WORKER = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number"


@dataclasses.dataclass
class Cluster:
  """Where a JobSet runs: a GKE Standard cluster with JobSet 0.10 or later, and Kueue if `queue` names a LocalQueue.

  spot: on machines that may be taken away; these leave 30 s to save, whatever `grace` says.
  restarts: how often a run may start again after failures; preemptions do not count.
  grace: seconds from SIGTERM to SIGKILL, to end a step and write a checkpoint in; at least 120.
  priority: a PriorityClass. service_account: the pods' own, which Workload Identity lets at gs://.
  """

  image: str
  queue: str = ""
  namespace: str = "default"
  spot: bool = False
  restarts: int = 10
  grace: int = 300
  priority: str = ""
  service_account: str = ""


def machines(topology: str, slices: int) -> tuple[Machine, list[int], int, int]:
  """The machine of a slice, its shape in chips, its hosts, and a host's chips. ValueError for what is not to be had.

  Hosts have 4 chips: those are what slices of several hosts are made of. The one host of a 1x1 has 1.
  """
  parts = MEANT.fullmatch(topology)
  if not parts or parts[1] not in MACHINES:
    raise ValueError(f"topology {topology!r}: write a chip and its slice's shape, like v5e:16x16 or v5p:4x4x4")
  axes, shape = CHIPS[parts[1]].axes, [int(size) for size in parts[2].split("x")]
  large = axes == len(shape) == 3 and shape == sorted(shape) and all(size and size % 4 == 0 for size in shape)
  if parts[2] not in SHAPES[axes] and not large:
    more = ", or multiples of 4 in rising order" if axes == 3 else ""
    raise ValueError(f"topology {topology}: slices of {parts[1]} are {', '.join(SHAPES[axes])}{more}")
  chips = math.prod(shape)
  if slices < 1 or (slices > 1 and chips <= 4):
    raise ValueError(f"{slices} slices of {topology}: at least 1; more only of slices with more than 4 chips")
  return MACHINES[parts[1]], shape, max(1, chips // 4), min(4, chips)


def manifest(
  name: str,
  command: list[str],
  topology: str,
  slices: int,
  cluster: Cluster,
  labels: dict[str, str] | None = None,
  environment: dict[str, str] | None = None,
) -> dict[str, Any]:
  """The JobSet that runs `command` on each host of `slices` slices of `topology`: a slice is a Job, a host its pod.

  The end of one pod decides for the whole run, by the first line that applies:

    evicted, preempted, its node gone  it starts again, which does not count
    exit code 1, an error of ours      it has failed: it would fail again
    77, restart me                     it starts again, which does not count
    any other (134 by JAX, 137, ...)   it starts again, at most `cluster.restarts` times

  No pod is replaced by itself, as "Ignore" in its Job would have it: it would meet the old run's coordinator, be
  refused, and end with 1. For that reason too all Jobs are gone before one starts again. A Job gives the same reason,
  PodFailurePolicy, for every rule it failed by; the JobSet tells them apart by the end of its message.

  `labels` are put on the JobSet and its pods. ValueError for a slice or a cluster that cannot be.
  """
  machine, shape, hosts, chips = machines(topology, slices)
  if not cluster.image or not command:
    raise ValueError(f"a run needs an image and a command: they are {cluster.image!r} and {command}")
  if cluster.grace < 120 or cluster.restarts < 0:
    raise ValueError(f"grace is {cluster.grace} s: at least 120, to save in; restarts {cluster.restarts}: at least 0")
  tolerations = [{"key": "google.com/tpu", "operator": "Exists"}]
  spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
  container = {
    "name": "vdt",
    "image": cluster.image,
    "command": [literal(part) for part in command],
    "env": [{"name": key, "value": literal(value)} for key, value in (environment or {}).items()],
    "resources": {"limits": {"google.com/tpu": chips}},
    "securityContext": {"privileged": True, "runAsUser": 0},  # a host's chips may be root's alone
  }
  pod = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": cluster.grace,
    "shareProcessNamespace": True,  # the first process of a namespace cannot end itself by SIGABRT, as JAX does
    "hostNetwork": True,
    "dnsPolicy": "ClusterFirstWithHostNet",
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": machine.accelerator,
      "cloud.google.com/gke-tpu-topology": "x".join(map(str, shape)),
      **({"cloud.google.com/gke-spot": "true"} if cluster.spot else {}),
    },
    "tolerations": [*tolerations, spot] if cluster.spot else tolerations,
    **({"priorityClassName": cluster.priority} if cluster.priority else {}),
    **({"serviceAccountName": cluster.service_account} if cluster.service_account else {}),
    "containers": [container],
  }
  exited = lambda code: {"onExitCodes": {"containerName": "vdt", "operator": "In", "values": [code]}}
  disrupted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
  job = {
    "parallelism": hosts,
    "completions": hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,
    "podFailurePolicy": {"rules": [{"action": "FailJob", **end} for end in (disrupted, exited(1), exited(RESTART))]},
    "template": {"metadata": {"labels": dict(labels or {})}, "spec": pod},
  }
  ours = {"name": "OurError", "action": "FailJobSet", "onJobFailureMessagePatterns": ["rule at index 1$"]}
  rest = {"name": "RestartMe", "action": "RestartJobSetAndIgnoreMaxRestarts"}
  rules = [{**rule, "onJobFailureReasons": ["PodFailurePolicy"]} for rule in (ours, rest)]
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": name,
      "namespace": cluster.namespace,
      "labels": {**(labels or {}), **({"kueue.x-k8s.io/queue-name": cluster.queue} if cluster.queue else {})},
      "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    },
    "spec": {
      "failurePolicy": {"maxRestarts": cluster.restarts, "restartStrategy": "BlockingRecreate", "rules": rules},
      "replicatedJobs": [{"name": "slice", "replicas": slices, "template": {"spec": job}}],
    },
  }


def literal(value: str) -> str:
  """`value` as Kubernetes must read it to pass it on unchanged: it replaces $(NAME) and $$."""
  return value.replace("$", "$$")


def validate(manifest: dict[str, Any]) -> None:
  """ValueError naming the first field of a JobSet that a cluster would refuse, or leave out.

  It asks the models of JobSet, the schema of the Job in it, and `problems`. Needs the extra [cloud].
  """
  try:
    import kubernetes_validate
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
  except ImportError as error:
    raise ValueError(f"checking a manifest needs {error.name}: pip install 'vdt[cloud]'") from None
  try:
    understood = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    templates = [job["template"] for job in manifest["spec"]["replicatedJobs"] if manifest["metadata"]["name"]]
  except Exception as error:  # pydantic's own, or whatever its reader stumbles over
    reason = " ".join(str(error).partition(" [type=")[0].split())
    raise ValueError(f"not a JobSet: {type(error).__name__}: {reason[:300]}") from error
  for path, value in fields(manifest):
    known = understood
    for part in path:
      known = known[part] if isinstance(known, list) else known.get(part)
      if known is None and value is not None:
        raise ValueError(f"{dotted(path)}: a JobSet has no such field")
  for index, template in enumerate(templates):
    job = {"apiVersion": "batch/v1", "kind": "Job", **template}
    try:
      kubernetes_validate.validate(job, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
      path = ("spec", "replicatedJobs", index, "template", *error.path)
      raise ValueError(f"{dotted(path)}: {error.message[:300]}") from error
  for problem in problems(manifest):
    raise ValueError(problem)


def problems(manifest: dict[str, Any]) -> Iterator[str]:
  """What a cluster would refuse in a JobSet of the right shape: names, labels, values of which there are few."""
  name, jobs = manifest["metadata"].get("name", ""), manifest["spec"].get("replicatedJobs", [])
  if not jobs:
    yield "spec.replicatedJobs: there are none"
  for where, each in (("metadata.name", name), *(("replicatedJobs.name", job["name"]) for job in jobs)):
    if not NAME.fullmatch(each):
      yield f"{where}: {each!r} must be of a-z, 0-9 and -, start with a letter, and not end with -"
  for job in jobs:
    last = job["template"]["spec"].get("completions", 1) - 1
    pod = f"{name}-{job['name']}-{job.get('replicas', 1) - 1}-{last}-abcde"
    if len(pod) > 63:
      yield f"metadata.name: {name!r} is {len(pod) - 63} characters too long, for pods are named like {pod}"
  for path, value in fields(manifest):
    where = dotted(path)
    choices = CHOICES.get(".".join(part for part in path if isinstance(part, str)))
    for each in value if isinstance(value, list) else [value]:
      if choices and each not in choices:
        yield f"{where}: {each!r} is none of {', '.join(choices)}"
    if path[-1] in ("labels", "annotations", "nodeSelector"):
      for key, text in value.items():
        prefix, slash, rest = key.rpartition("/")
        if not LABEL.fullmatch(rest) or (slash and not PREFIX.fullmatch(prefix)):
          yield f"{where}: the key {key!r} must be 63 letters, digits, - _ . at most, after a domain and / if any"
        if path[-1] != "annotations" and text and not LABEL.fullmatch(text):
          yield f"{where}.{key}: {text!r} must be 63 letters, digits, - _ . at most, from a letter or digit to another"
    if path[-1] == "env":
      for variable in value:
        if not VARIABLE.fullmatch(variable["name"]):
          yield f"{where}: {variable['name']!r} is no name of a variable"


def fields(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
  """The path and value of each key in nested dicts and lists."""
  items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
  for key, value in items:
    if isinstance(node, dict):
      yield (*path, key), value
    yield from fields(value, (*path, key))


def dotted(path: tuple[str | int, ...]) -> str:
  return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def text(manifest: dict[str, Any]) -> str:
  """A manifest as YAML, for `kubectl apply -f -`."""
  import yaml

  return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=120)


def tpu_vm_commands(name: str, command: list[str], topology: str, slices: int, zone: str, version: str = "") -> str:
  """Commands for a shell in a checkout of vdt: make TPU VMs, install, run `command` on each, follow it, delete them.

  A slice is one TPU VM. `version` is that of its system, by default the one for its chip. Each process is told
  its number and the address of the first one; nothing starts it again. ValueError for a slice that is not to be had.
  """
  machine, shape, hosts, _ = machines(topology, slices)
  hosts = 1 if shape == [2, 4] else hosts  # as a TPU VM, it is one machine of 8 chips
  names = [name] if slices == 1 else [f"{name}-{index}" for index in range(slices)]
  track, size = "alpha ", f"--type={machine.type} --topology={'x'.join(map(str, shape))}"
  if len(shape) == 2:  # these have one shape for each number of chips, which all versions of gcloud know
    track, size = "", f"--accelerator-type={machine.type}-{math.prod(shape)}"

  def on(verb: str, each: str, rest: str, track: str = "") -> str:
    return f"gcloud {track}compute tpus tpu-vm {verb} {shlex.quote(each)} --zone={shlex.quote(zone)} {rest}".strip()

  def remotely(each: str, script: str, worker: str = "all", known: str = "") -> str:
    return on("ssh", each, f"--worker={worker} --command={known}{shlex.quote(script)}")

  install = (
    "mkdir -p vdt && tar xzf vdt.tar.gz -C vdt && cd vdt && python3 -m pip install --user uv && "
    "~/.local/bin/uv venv --python 3.11 .venv && ~/.local/bin/uv pip install -c constraints.txt -e '.[tpu,gcs]'"
  )
  ended = shlex.quote(f'{shlex.join(command)}; echo "exit code $?"')
  lines = ["# Make the machines."]
  create = f"{size} --version={shlex.quote(version or machine.version)}"
  lines += [on("create", each, create, track) for each in names]
  lines += ["# Install vdt on them.", "tar czf vdt.tar.gz vdt data_pipelines experiments setup.py constraints.txt"]
  for each in names:
    lines += [on("scp vdt.tar.gz", f"{each}:", "--worker=all"), remotely(each, install)]
  lines += ["# Run it. After exit code 77 or 134 somewhere, wait until it has ended everywhere, and run it again."]
  lines += [f"address=$({on('describe', names[0], shlex.quote('--format=value(networkEndpoints[0].ipAddress)'))})"]
  for index, each in enumerate(names):
    variables = f"JAX_COORDINATOR_ADDRESS=$address:8476 JAX_NUM_PROCESSES={hosts * slices} "
    variables += f"JAX_PROCESS_ID=$(({index * hosts} + worker))"
    if slices > 1:
      variables += f" MEGASCALE_COORDINATOR_ADDRESS=$address:8080 MEGASCALE_NUM_SLICES={slices} "
      variables += f"MEGASCALE_SLICE_ID={index}"
    script = (
      f'cd vdt && worker=$(curl -sf -H "Metadata-Flavor: Google" {WORKER}) && export PATH="$PWD/.venv/bin:$PATH" '
      f"{variables} && {{ nohup bash -c {ended} > run.log 2>&1 < /dev/null & }}"
    )
    lines.append(remotely(each, script, known='"address=$address; "'))
  lines += ["# Follow the first process.", remotely(names[0], "tail -n 100 -F vdt/run.log", worker="0")]
  lines += ["# Delete the machines.", *(on("delete", each, "--quiet") for each in names)]
  return "\n".join(lines) + "\n"
