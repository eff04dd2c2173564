"""Runs on Google's TPUs: the JobSet, what is refused of it, and what a command is when it arrives."""

import copy
import json
import os
import re
import subprocess
import sys
import time
import venv

import pytest

from vdt import gke, launch

CLUSTER = gke.Cluster(image="registry/vdt:1", queue="team", spot=True, priority="high", service_account="trainer")
ODD = ["a b", "it's", 'say "yes"', "$HOME $(HOME) $$(HOME) $$", "one\ntwo\n", "größer 動画", "(('space',), ('time',))"]
ODD += ["", "*", "\\", "\\n", "`id`", "!!", "~", "-", "a;b&c|d>e #f", "--config.x={1: 'a'}"]
SHOW = [sys.executable, "-c", "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"]
FREE = ("labels", "annotations", "nodeSelector", "limits")


def made(topology="v5e:16x16", slices=2, cluster=CLUSTER, name="run"):
  return gke.manifest(name, ["vdt", "train"], topology, slices, cluster, {"sweep": "a"}, {"VDT_HEARTBEAT": "60"})


def at(node, path):
  for part in path:
    node = node[part]
  return node


def dicts(node, path=()):
  """The paths of all dicts whose keys mean something to Kubernetes."""
  if isinstance(node, dict):
    yield path
  for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
    if key not in FREE:
      yield from dicts(value, (*path, key))


@pytest.mark.parametrize("slices", [1, 4])
@pytest.mark.parametrize(
  "topology, accelerator, hosts", [("v5e:16x16", "v5-lite-podslice", 64), ("v5p:4x4x4", "v5p-slice", 16)]
)
def test_a_manifest_is_valid_and_asks_for_its_slices(topology, accelerator, hosts, slices):
  manifest = made(topology, slices)
  gke.validate(manifest)
  import yaml

  assert yaml.safe_load(gke.text(manifest)) == manifest
  (replicated,) = manifest["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  assert (replicated["replicas"], job["parallelism"], job["completions"]) == (slices, hosts, hosts)
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": f"tpu-{accelerator}",
    "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    "cloud.google.com/gke-spot": "true",
  }
  assert manifest["metadata"]["labels"] == {"sweep": "a", "kueue.x-k8s.io/queue-name": "team"}
  assert pod["priorityClassName"] == "high" and pod["serviceAccountName"] == "trainer"


@pytest.mark.parametrize(
  "topology, hosts, chips", [("v6e:1x1", 1, 1), ("v6e:2x2", 1, 4), ("v6e:16x16", 64, 4), ("v4:2x2x2", 2, 4)]
)
def test_hosts_have_four_chips_but_for_the_smallest(topology, hosts, chips):
  manifest = made(topology, 1, gke.Cluster("image"))
  gke.validate(manifest)
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["completions"] == hosts
  assert job["template"]["spec"]["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
  assert not {"priorityClassName", "serviceAccountName"} & set(job["template"]["spec"])


def action(code, disrupted=False):
  """What a cluster does with a run of which one pod ended with `code`, as Kubernetes and JobSet write it down."""
  spec = made()["spec"]
  rules = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
  reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
  for index, rule in enumerate(rules):
    if disrupted if "onPodConditions" in rule else code in rule["onExitCodes"]["values"]:
      assert rule["action"] == "FailJob"
      reason, message = (
        "PodFailurePolicy",
        f"Container vdt for pod default/run-slice-0-0-abcde failed with exit code {code}",
      )
      message += f" matching FailJob rule at index {index}"
      break
  for rule in spec["failurePolicy"]["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
      return rule["action"]
  return "RestartJobSet"


def test_exit_codes_decide_what_becomes_of_a_run():
  assert action(1) == "FailJobSet"
  assert action(77) == "RestartJobSetAndIgnoreMaxRestarts"
  assert {action(code, disrupted=True) for code in (1, 77, 134, 137)} == {"RestartJobSetAndIgnoreMaxRestarts"}
  assert {action(code) for code in (2, 130, 134, 137, 139)} == {"RestartJobSet"}


def test_a_typo_in_any_key_is_found():
  manifest, missed = made(), []
  for path in dicts(manifest):
    for key in at(manifest, path):
      wrong = copy.deepcopy(manifest)
      inside = at(wrong, path)
      inside[f"{key}x"] = copy.deepcopy(inside[key])
      try:
        gke.validate(wrong)
        missed.append((*path, key))
      except ValueError as error:
        assert f"{key}x" in str(error), f"{path}: {error}"
  assert not missed


def test_a_wrong_type_anywhere_is_found():
  manifest, missed = made(), []
  for path in dicts(manifest):
    for key, value in at(manifest, path).items():
      wrong = copy.deepcopy(manifest)
      at(wrong, path)[key] = 7 if isinstance(value, str) else "seven"
      try:
        gke.validate(wrong)
        missed.append((*path, key))
      except ValueError:
        pass
  assert not missed


JOB = ("spec", "replicatedJobs", 0, "template", "spec")
POD = (*JOB, "template", "spec")


@pytest.mark.parametrize(
  "path, value, said",
  [
    (("apiVersion",), "jobset.x-k8s.io/v1", "apiVersion"),
    (("kind",), "Jobset", "kind"),
    (("metadata", "name"), "", "metadata.name"),
    (("metadata", "name"), "Run_1", "metadata.name"),
    (("metadata", "name"), "1-run", "start with a letter"),
    (("metadata", "labels", "sweep"), "a b", "metadata.labels.sweep"),
    (("metadata", "labels", "sweep"), "a" * 64, "metadata.labels.sweep"),
    (("metadata", "labels", "/x"), "a", "'/x'"),
    (("metadata", "annotations", "no key"), "anything at all: (1)", "'no key'"),
    (("spec", "failurePolicy", "restartStrategy"), "Blocking", "restartStrategy"),
    (("spec", "failurePolicy", "rules", 0, "action"), "FailJobset", "rules[0].action"),
    (("spec", "failurePolicy", "rules", 0, "onJobFailureReasons"), ["Podfailure"], "onJobFailureReasons"),
    (("spec", "replicatedJobs"), [], "there are none"),
    (("spec", "replicatedJobs", 0, "name"), "Slice", "replicatedJobs.name"),
    ((*JOB, "completionMode"), "indexed", "completionMode"),
    ((*JOB, "podFailurePolicy", "rules", 0, "action"), "Fail", "PodFailurePolicyRule action"),
    ((*POD, "restartPolicy"), "OnFailure", "restartPolicy"),
    ((*POD, "containers", 0, "env", 0, "name"), "A=B", "'A=B'"),
    ((*POD, "nodeSelector", "cloud.google.com/gke-tpu-topology"), "16 x 16", "gke-tpu-topology"),
  ],
)
def test_a_planted_mistake_is_named(path, value, said):
  manifest = made()
  at(manifest, path[:-1])[path[-1]] = value
  with pytest.raises(ValueError, match=re.escape(said)):
    gke.validate(manifest)


def test_a_name_may_be_as_long_as_its_pods_allow():
  longest = 63 - len("-slice-1-63-abcde")
  gke.validate(made(name="r" * longest))
  with pytest.raises(ValueError, match="1 characters too long"):
    gke.validate(made(name="r" * (longest + 1)))


def test_what_is_not_a_jobset_is_refused():
  for wrong in ({}, {"spec": 1}, {**made(), "metadata": {}}, {**made(), "spec": []}):
    with pytest.raises(ValueError, match="not a JobSet"):
      gke.validate(wrong)


@pytest.mark.parametrize(
  "topology, slices, said",
  [
    ("h100", 1, "write a chip"),
    ("v7x:4x4x4", 1, "write a chip"),
    ("v5e:16x8", 1, "8x16"),
    ("v5e:4x4x4", 1, "slices of v5e are"),
    ("v5p:16x16", 1, "multiples of 4 in rising order"),
    ("v5p:8x4x4", 1, "multiples of 4 in rising order"),
    ("v5p:0x4x4", 1, "multiples of 4"),
    ("v5e:16x16", 0, "at least 1"),
    ("v5e:2x2", 2, "more than 4 chips"),
  ],
)
def test_slices_that_are_not_to_be_had_are_refused(topology, slices, said):
  for make in (made, lambda *slice: gke.tpu_vm_commands("run", ["vdt"], *slice, "us-west4-a")):
    with pytest.raises(ValueError, match=said):
      make(topology, slices)


@pytest.mark.parametrize(
  "wrong, said", [({"grace": 30}, "grace"), ({"restarts": -1}, "restarts"), ({"image": ""}, "image")]
)
def test_clusters_that_cannot_be_are_refused(wrong, said):
  with pytest.raises(ValueError, match=said):
    made(cluster=gke.Cluster(**{"image": "image", **wrong}))


def test_without_the_extra_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "kubernetes_validate", None)
  with pytest.raises(ValueError, match=re.escape("pip install 'vdt[cloud]'")):
    gke.validate(made())


def expanded(text, variables):
  """What Kubernetes makes of a word of a command."""
  return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), text)


def test_odd_values_arrive_through_kubernetes():
  import yaml

  manifest = gke.manifest("run", SHOW + ODD, "v5e:4x4", 1, CLUSTER, environment={"ODD": ODD[3]})
  gke.validate(manifest)
  (container,) = at(yaml.safe_load(gke.text(manifest)), POD)["containers"]
  variables = {"HOME": "/root"}
  for each in container["env"]:
    variables[each["name"]] = expanded(each["value"], variables)
  command = [expanded(part, variables) for part in container["command"]]
  arrived, told = json.loads(subprocess.run(command, env=variables, capture_output=True, check=True, text=True).stdout)
  assert arrived == ODD and told["ODD"] == ODD[3]


@pytest.fixture
def google(tmp_path, monkeypatch):
  """Commands on PATH that run here, in a folder for each TPU VM, what the real gcloud runs there, on worker 3."""
  (tmp_path / "bin").mkdir()
  gcloud = f"""#!/bin/bash
[[ " $* " == *" describe "* ]] && echo 10.0.0.9
mkdir -p "{tmp_path}/$5/vdt" && cd "{tmp_path}/$5"
for word; do [[ $word == --command=* ]] && bash -c "${{word#--command=}}"; done
true
"""
  for name, script in {"gcloud": gcloud, "curl": "#!/bin/bash\necho 3\n"}.items():
    (tmp_path / "bin" / name).write_text(script)
    (tmp_path / "bin" / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  return tmp_path


@pytest.mark.parametrize("topology, slices, hosts", [("v5e:16x16", 1, 64), ("v5p:4x4x4", 2, 16), ("v6e:2x4", 1, 1)])
def test_odd_values_arrive_through_both_shells(google, topology, slices, hosts):
  commands = gke.tpu_vm_commands("run", SHOW + ODD, topology, slices, "us-west4-a")
  subprocess.run(["bash", "-n"], input=commands, check=True, text=True)
  run = commands.partition("# Run it")[2].partition("\n# Follow")[0].partition("\n")[2]
  subprocess.run(["bash", "-c", run], check=True)
  for index in range(slices):
    name = "run" if slices == 1 else f"run-{index}"
    path = google / name / "vdt" / "run.log"
    for _ in range(200):
      if path.exists() and "exit code" in path.read_text():
        break
      time.sleep(0.05)
    *_, shown, code = path.read_text().splitlines()
    arrived, told = json.loads(shown)
    assert arrived == ODD and code == "exit code 0"
    assert told["JAX_COORDINATOR_ADDRESS"] == "10.0.0.9:8476" and told["JAX_NUM_PROCESSES"] == str(hosts * slices)
    assert told["JAX_PROCESS_ID"] == str(index * hosts + 3)
    megascale = {key: told.get(f"MEGASCALE_{key}") for key in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID")}
    several = {"COORDINATOR_ADDRESS": "10.0.0.9:8080", "NUM_SLICES": str(slices), "SLICE_ID": str(index)}
    assert megascale == (several if slices > 1 else dict.fromkeys(several))


def test_tpu_vms_are_made_and_deleted_by_name():
  flat = gke.tpu_vm_commands("run", ["vdt"], "v5e:16x16", 1, "us-west4-a").splitlines()
  deep = gke.tpu_vm_commands("run", ["vdt"], "v5p:4x4x8", 2, "us-east5-a", version="other").splitlines()
  make = "gcloud compute tpus tpu-vm create run --zone=us-west4-a --accelerator-type=v5litepod-256"
  assert f"{make} --version=v2-alpha-tpuv5-lite" in flat
  for name in ("run-0", "run-1"):
    make = f"gcloud alpha compute tpus tpu-vm create {name} --zone=us-east5-a --type=v5p --topology=4x4x8"
    assert f"{make} --version=other" in deep
    assert f"gcloud compute tpus tpu-vm delete {name} --zone=us-east5-a --quiet" in deep


XPK = "xpk==1.16.0"
MEANT = {  # fields in which we differ from xpk, and why
  r"metadata\.namespace": "said, not left to kubectl's context",
  r"metadata\.labels\.xpk.*": "xpk's own label",
  r"spec\.ttlSecondsAfterFinished": "how a run ended stays to be read until it is deleted",
  r"spec\.failurePolicy\.restartStrategy": "a new process must not meet the old run's coordinator",
  r"spec\.failurePolicy\.rules.*": "1 fails, 77 and preemption restart uncounted; xpk counts every restart",
  r"spec\.replicatedJobs\[0\]\.name": "a name; shorter, for pods' names have 63 characters",
  r"JOB\.completionMode": "JobSet's default, said",
  r"JOB\.podFailurePolicy.*": "as failurePolicy.rules; xpk fails on 1 to 126 but for codes it is told",
  r"JOB\.template\.metadata.*": "xpk's own label",
  r"POD\.shareProcessNamespace": "a process with number 1 cannot abort; xpk's is bash's child",
  r"POD\.schedulerName": "Kubernetes' default",
  r"POD\.imagePullSecrets.*": "xpk writes a secret called None; a service account may carry one",
  r"POD\.terminationGracePeriodSeconds": "a step and a checkpoint may take longer than 30 s",
  r"POD\.containers\[0\]\.name": "a name",
  r"POD\.containers\[0\]\.command.*": "no shell: ours is a list, and handles SIGTERM itself",
  r"POD\.containers\[0\]\.securityContext\.runAsUser": "our image's user is not root, but the chips may be root's",
  r"POD\.containers\[0\]\.volumeMounts.*": "nothing of ours uses /dev/shm",
  r"POD\.volumes.*": "nothing of ours uses /dev/shm",
}


def flat(node, path=""):
  """Leaves by path; lists of plain values are leaves, what is empty is not there."""
  if isinstance(node, dict):
    for key, value in node.items():
      yield from flat(value, f"{path}.{key}".lstrip("."))
  elif isinstance(node, list) and any(isinstance(each, dict) for each in node):
    for index, value in enumerate(node):
      yield from flat(value, f"{path}[{index}]")
  elif node not in (None, [], ""):
    yield path, node


@pytest.mark.slow
def test_xpk_makes_the_same_but_for_what_is_meant(tmp_path):
  import yaml

  venv.create(tmp_path / "venv", with_pip=True)
  bin = tmp_path / "venv" / "bin"
  subprocess.run([bin / "pip", "install", "--quiet", XPK], check=True)
  unused, wrong, same = set(MEANT), [], 0
  for slices in (1, 2):
    path = tmp_path / f"{slices}.yaml"
    command = [bin / "xpk", "workload", "create", "--dry-run", "--skip-validation", "--project=p", "--zone=us-west4-a"]
    command += ["--cluster=c", "--workload=run", "--tpu-type=v5litepod-256", f"--num-slices={slices}"]
    command += ["--docker-image=registry/vdt:1", "--command=vdt train", "--max-restarts=10", "--priority=high"]
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{bin}:{os.environ['PATH']}"}
    subprocess.run([*command, f"--output-manifest-file={path}"], env=environment, check=True, stdout=subprocess.DEVNULL)
    cluster = gke.Cluster("registry/vdt:1", queue="multislice-queue", priority="high")
    ours = dict(flat(gke.manifest("run", ["vdt", "train"], "v5e:16x16", slices, cluster)))
    theirs = dict(flat(yaml.safe_load(path.read_text())))
    print(f"\n{slices} slice(s), ours against {XPK}:")
    for field in dict.fromkeys([*ours, *theirs]):
      short = field.replace("spec.replicatedJobs[0].template.spec", "JOB").replace("JOB.template.spec", "POD")
      mine, other = (json.dumps(side[field]) if field in side else "-" for side in (ours, theirs))
      meant = next((pattern for pattern in MEANT if re.fullmatch(pattern, short)), None)
      reason = "equal" if mine == other else MEANT.get(meant, "NOT MEANT")
      print(f"{short:62}  {mine[:52]:52}  {other[:52]:52}  {reason}")
      same += mine == other
      wrong += [f"{slices} slice(s): {short}: {mine} against {other}"] if reason == "NOT MEANT" else []
      unused -= {meant} if mine != other else set()
  assert not wrong, "differs from xpk; mend it, or say in MEANT why it is meant:\n" + "\n".join(wrong)
  assert not unused, f"no longer different, delete from MEANT: {unused}"
  assert same >= 30


def test_clips_that_lie_beside_the_command_are_refused_before_a_plan(tmp_path):
  from absl import flags

  from vdt.cli import parse

  config, _ = parse(["--config=experiments/large.py:xl"], flags.FlagValues())
  for name, there in (("gke", {"cluster": CLUSTER}), ("tpu-vm", {"zone": "us-west4-a"})):
    backend = launch.Backend(name, remote="gs://bucket/runs", **there)
    with pytest.raises(ValueError, match=f"(?s)'data', a folder beside this .* {name} .* upload data/own_clips"):
      backend.check([config])


def test_what_kubectl_does_not_take_is_not_waited_for(tmp_path, monkeypatch):
  from absl import flags

  from vdt import attempts, sweep
  from vdt.cli import parse

  (tmp_path / "kubectl").write_text("#!/bin/sh\necho no cluster >&2\nexit 1\n")
  (tmp_path / "kubectl").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  config, origin = parse(["--config=experiments/large.py:tiny"], flags.FlagValues())
  plan = sweep.lay_one(tmp_path / "run", config, origin, 1, False)
  plan.folder.mkdir()
  plan.job.write(plan.folder)
  with pytest.raises(ValueError, match="did not take run-run-"):
    launch.submit([plan], launch.Backend("gke", cluster=CLUSTER, remote="gs://bucket/runs"), tmp_path)
  assert attempts.state(plan.folder) == attempts.FAILED and launch.unfinished([plan.folder])
