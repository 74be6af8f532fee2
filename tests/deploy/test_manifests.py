"""The manifests in deploy/: accepted by Kubernetes' schemas and rules, and true to what the job promises."""

import copy
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from engine.core import errors
from engine.results.outcome import Outcome
from engine.task.task import parse_task
from tests.deploy.kubernetes import NO_RETRY, pod_problems, problems, schema_problems

DEPLOY = Path(__file__).parents[2] / "deploy"
JOBS = ("job.yaml", "job-xl.yaml", "job-nodes.yaml")


def load(name):
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document]


SHARED = ("cache.yaml", "network-policy.yaml")


def everything():
    return [document for name in (*SHARED, *JOBS) for document in load(name)]


def job_of(documents, name="lora-cat"):
    return next(d for d in documents if d["kind"] == "Job" and d["metadata"]["name"] == name)


def test_the_manifests_are_accepted():
    assert problems(everything()) == []


def test_each_manifest_is_short_enough_to_read():
    for path in DEPLOY.glob("*.yaml"):
        assert len(path.read_text().splitlines()) <= 200, path.name


@pytest.mark.parametrize("name", JOBS)
def test_the_task_in_the_configuration_is_a_task(name):
    config = next(document for document in load(name) if document["kind"] == "ConfigMap")
    task = parse_task(config["data"]["task.json"].encode(), source=name)
    assert (task.train_args.resolution == 1024) == (name == "job-xl.yaml")


def test_the_failure_policy_has_the_contracts_codes():
    kinds = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    retried = {9, 75}  # these may go well on another machine, or later
    assert set(NO_RETRY) == kinds - retried | {errors.BUG_CODE, 128 + signal.SIGKILL}


def changes():
    """(what is broken, the path to it in the Job, the value there or None to delete it, what must be said)."""
    pod, container = ("spec", "template", "spec"), ("spec", "template", "spec", "containers", 0)
    rule = ("spec", "podFailurePolicy", "rules")
    return [
        ("unknown field", ("spec", "backofLimit"), 3, "backofLimit"),
        ("wrong type", ("spec", "backoffLimit"), "six", "backoffLimit"),
        ("name", ("metadata", "name"), "Lora_Cat", "RFC 1123"),
        ("restart policy", (*pod, "restartPolicy"), "OnFailure", "restartPolicy Never"),
        ("replacement", ("spec", "podReplacementPolicy"), "TerminatingOrFailed", "podReplacementPolicy"),
        ("no policy", ("spec", "podFailurePolicy"), None, "no podFailurePolicy"),
        ("descending", (*rule, 1, "onExitCodes", "values"), [3, 2, 4, 5, 6, 7, 8, 70, 137], "ascending"),
        ("twice", (*rule, 1, "onExitCodes", "values"), [2, 2, 3, 4, 5, 6, 7, 8, 70, 137], "ascending"),
        ("zero", (*rule, 1, "onExitCodes", "values"), [0, 2, 3, 4, 5, 6, 7, 8, 70, 137], "0 is no failure"),
        ("retryable", (*rule, 1, "onExitCodes", "values"), [2, 3, 4, 5, 6, 7, 8, 70, 75, 137], "FailJob must be on"),
        ("not a code", (*rule, 1, "onExitCodes", "values"), [2, 3, 4, 5, 6, 7, 8, 300], "0 to 255"),
        ("container", (*rule, 1, "onExitCodes", "containerName"), "main", "no container main"),
        ("disruption", (*rule, 0, "onPodConditions", 0, "status"), "False", "first rule"),
        ("order", rule, "reversed", "first rule"),
        ("per index", ("spec", "backoffLimitPerIndex"), 1, "needs completionMode Indexed"),
        ("deadline", ("spec", "activeDeadlineSeconds"), None, "activeDeadlineSeconds"),
        ("ttl", ("spec", "ttlSecondsAfterFinished"), None, "ttlSecondsAfterFinished"),
        ("mount", (*container, "volumeMounts", 1, "name"), "output", "no volume output"),
        ("path", (*container, "volumeMounts", 1, "mountPath"), "/cache", "/cache is mounted twice"),
        ("volume", (*pod, "volumes", 1, "name"), "task", "two volumes are called task"),
        ("claim", (*pod, "volumes", 1, "persistentVolumeClaim", "claimName"), "gone", "PersistentVolumeClaim gone"),
        ("configuration", (*pod, "volumes", 0, "configMap", "name"), "gone", "ConfigMap gone"),
        ("quantity", (*container, "resources", "requests", "memory"), "12 GB", "no quantity"),
        ("overcommitted", (*container, "resources", "requests", "memory"), "17Gi", "above its limit"),
        ("shared GPU", (*container, "resources", "requests", "nvidia.com/gpu"), 0, "cannot be overcommitted"),
        ("half a GPU", (*container, "resources", "limits", "nvidia.com/gpu"), "500m", "cannot be divided"),
        ("two GPUs of one", (*container, "resources", "requests", "nvidia.com/gpu"), 2, "cannot be overcommitted"),
        (
            "GPU without a limit",
            (*container, "resources"),
            {"requests": {"nvidia.com/gpu": 1}},
            "cannot be overcommitted",
        ),
        ("below the request", (*container, "resources", "limits", "memory"), "8Gi", "above its limit"),
        ("two values", (*container, "env", 1, "value"), "x", "both value and valueFrom"),
        ("two sources", (*pod, "volumes", 1, "emptyDir"), {}, "two sources"),
        (
            "the machine's folder",
            (*pod, "volumes", 3),
            {"name": "tmp", "hostPath": {"path": "/tmp"}},
            "of the machine's",
        ),
        ("the machine's network", (*pod, "hostNetwork"), True, "hostNetwork"),
        ("a container's root", (*container, "securityContext", "runAsUser"), 0, "not root"),
        ("a container's permission", (*container, "securityContext", "runAsNonRoot"), False, "not root"),
        ("token", (*pod, "automountServiceAccountToken"), None, "token"),
        ("grace", (*pod, "terminationGracePeriodSeconds"), 30, "120"),
        ("root", (*pod, "securityContext", "runAsUser"), 0, "not root"),
        ("group", (*pod, "securityContext", "fsGroup"), None, "fsGroup"),
        ("seccomp", (*pod, "securityContext", "seccompProfile", "type"), "Unconfined", "seccompProfile"),
        ("escalation", (*container, "securityContext", "allowPrivilegeEscalation"), True, "allowPrivilegeEscalation"),
        ("capabilities", (*container, "securityContext", "capabilities"), {"drop": ["NET_RAW"]}, "capabilities"),
        ("root file system", (*container, "securityContext", "readOnlyRootFilesystem"), None, "read-only"),
        ("unlabelled pod", ("spec", "template", "metadata"), None, "labels"),
        ("another label", ("metadata", "labels"), {"app": "x"}, "labels"),
        ("no probe", (*container, "livenessProbe"), None, "probe"),
        ("two probes", (*container, "livenessProbe", "exec", "command"), ["true"], "one command"),
        ("an impatient probe", (*container, "startupProbe", "failureThreshold"), 3, "ten minutes"),
        ("no room", (*container, "resources", "requests", "ephemeral-storage"), None, "ephemeral-storage"),
        ("no token", (*container, "env"), [{"name": "OUTPUT_DIR", "value": "/out/x"}], "HF_TOKEN"),
        ("latest", (*container, "image"), "registry.example.com/sd-lora-task:latest", "version"),
    ]


def change(document, path, value):
    *folders, last = path
    inside = functools.reduce(lambda inner, key: inner[key], folders, document)
    if value is None:
        del inside[last]
    else:
        inside[last] = list(reversed(inside[last])) if value == "reversed" else value


@pytest.mark.parametrize("path, value, said", [pytest.param(*rest, id=name) for name, *rest in changes()])
def test_what_the_server_would_refuse_is_found(path, value, said):
    documents = copy.deepcopy(everything())
    change(job_of(documents), path, value)
    assert any(said in problem for problem in problems(documents)), problems(documents)


@pytest.mark.parametrize(
    "kind, path, value, said",
    [
        ("Service", ("spec", "clusterIP"), "10.0.0.1", "headless"),
        ("Service", ("spec", "selector"), {"app": "x"}, "selects other pods"),
        ("Service", ("spec", "ports", 0, "port"), 80, "no port 29500"),
        ("Service", ("spec", "publishNotReadyAddresses"), None, "before they are ready"),
        ("Service", ("metadata", "name"), "other", "headless"),
        ("Job", ("spec", "completions"), 3, "number of nodes"),
        ("Job", ("spec", "parallelism"), 1, "parallelism is not completions"),
        ("Job", ("spec", "template", "spec", "subdomain"), "other", "the first pod is"),
        ("Job", ("spec", "template", "spec", "containers", 0, "args", 2), "--nproc-per-node=8", "than there are GPUs"),
        ("Job", ("spec", "template", "spec", "containers", 0, "args", 0), "torch.distributed.run", "again and again"),
        ("Job", ("spec", "template", "spec", "containers", 0, "args", 6), "--max-restarts=3", "again and again"),
    ],
)
def test_nodes_that_would_not_meet_are_found(kind, path, value, said):
    documents = copy.deepcopy(everything())
    change(next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == "lora-cat-nodes"), path, value)
    assert any(said in problem for problem in problems(documents)), problems(documents)


def test_a_task_that_could_change_under_its_job_is_found():
    documents = copy.deepcopy(everything())
    del next(d for d in documents if d["kind"] == "ConfigMap")["immutable"]
    assert any("not immutable" in problem for problem in problems(documents))


@pytest.mark.parametrize("name", JOBS)
def test_the_probe_is_true_while_the_job_writes(name, tmp_path):
    """Run the command itself, as the kubelet would: for a job, and for a chain whose results lie one folder deeper."""
    job = next(document for document in load(name) if document["kind"] == "Job")
    command = job["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["exec"]["command"]

    def is_alive():
        return subprocess.run(command, env=os.environ | {"OUTPUT_DIR": str(tmp_path)}, check=False).returncode == 0

    assert not is_alive()
    for folder in (tmp_path, tmp_path / "000"):
        folder.mkdir(exist_ok=True)
        log = folder / "progress.jsonl"
        log.write_text("{}\n")
        assert is_alive()
        os.utime(log, (0, time.time() - 660))
        assert not is_alive()


def test_the_network_policy_holds_for_every_job():
    policies = [document["spec"] for document in everything() if document["kind"] == "NetworkPolicy"]
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in everything() if d["kind"] == "Job"]
    assert all(policies[0]["podSelector"]["matchLabels"].items() <= labels.items() for labels in pods)
    assert set(policies[0]["policyTypes"]) == {"Ingress", "Egress"} and "ingress" not in policies[0]
    closed = [
        ip for rule in policies[0]["egress"] for to in rule["to"] for ip in to.get("ipBlock", {}).get("except", [])
    ]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"} <= set(closed)


class TestMany:
    def run(self, *tasks):
        return subprocess.run(["bash", DEPLOY / "many.sh", *tasks], capture_output=True, text=True, check=False)

    def test_each_task_gets_a_job_of_its_own(self, tmp_path):
        tasks = [DEPLOY.parent / "examples/tasks" / name for name in ("client.json", "face.json", "object.json")]
        done = self.run(*tasks)
        documents = [document for document in yaml.safe_load_all(done.stdout) if document]
        assert len(documents) == 3 * len(tasks)
        assert problems([*load("cache.yaml"), *documents]) == []
        for path in tasks:
            name = f"lora-{path.stem}"
            config = next(d for d in documents if d["metadata"]["name"] == f"{name}-task")
            assert config["data"]["task.json"].strip() == path.read_text().strip()
            assert name in yaml.safe_dump(job_of(documents, name)) and "lora-cat" not in done.stdout

    @pytest.mark.parametrize("name", ["My_Task.json", "-.json", f"{'a' * 60}.json"])
    def test_a_name_that_the_server_would_refuse(self, tmp_path, name):
        shutil.copy(DEPLOY.parent / "examples/tasks/object.json", tmp_path / name)
        done = self.run(tmp_path / name)
        assert done.returncode == 2 and "small letters" in done.stderr

    def test_nothing_is_printed_where_one_is_missing(self, tmp_path):
        """`kubectl apply` takes what it has read: a task without its text, which cannot be changed then."""
        done = self.run(DEPLOY.parent / "examples/tasks/object.json", tmp_path / "cat.json")
        assert (done.returncode, done.stdout) == (2, "") and "cat.json: no such file" in done.stderr

    def test_a_task_that_begins_with_blanks(self, tmp_path):
        (tmp_path / "cat.json").write_text('\n   {"model":\n {}}\n')
        config = next(yaml.safe_load_all(self.run(tmp_path / "cat.json").stdout))
        assert config["data"]["task.json"].strip() == '{"model":\n {}}'

    def test_without_a_task_it_says_how(self):
        done = self.run()
        assert done.returncode == 2 and "kubectl apply" in done.stderr


# --- The TrainJob: its schema is not part of Kubernetes ---------------------------------------------------------------

# The fields there are: github.com/kubeflow/trainer v2.3, manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml.
TRAINJOB = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"activeDeadlineSeconds", "initializer", "managedBy", "runtimePatches", "runtimeRef", "suspend", "trainer"},
    "spec.runtimeRef": {"apiGroup", "kind", "name"},
    "spec.trainer": {"args", "command", "env", "image", "numNodes", "numProcPerNode", "resourcesPerNode"},
}
PATCHED_POD = {
    "affinity", "containers", "imagePullSecrets", "initContainers", "nodeSelector", "schedulingGates",
    "securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations", "volumes",
}  # fmt: skip
PATCHED_CONTAINER = {"env", "name", "securityContext", "volumeMounts"}


def trainjob_problems(document):
    for dotted, known in TRAINJOB.items():
        inside = functools.reduce(lambda inner, key: inner[key], dotted.split(".") if dotted else [], document)
        yield from (f"{dotted}.{key} is unknown" for key in sorted(set(inside) - known))
    (job,) = document["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    yield from (f"a pod's {key} cannot be patched" for key in sorted(set(pod) - PATCHED_POD))
    yield from (
        f"a container's {key} cannot be patched" for c in pod["containers"] for key in set(c) - PATCHED_CONTAINER
    )
    # With what the trainer says, and the runtime's own service account, it is a pod as any other.
    trainer = document["spec"]["trainer"]
    container = pod["containers"][0] | {"image": trainer["image"], "args": trainer["args"], "env": trainer["env"]}
    container["resources"] = trainer["resourcesPerNode"]
    whole = pod | {"containers": [container], "automountServiceAccountToken": False}
    yield from schema_problems({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": whole})
    yield from pod_problems(whole, everything())
    if trainer["args"][0] != "torchrun" or "--max-restarts=0" not in trainer["args"]:
        yield "a wrong task is started again and again"
    if trainer["numProcPerNode"] != trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]:
        yield "another number of processes than there are GPUs"


def test_the_trainjob_is_accepted():
    (document,) = load("trainjob.yaml")
    assert list(trainjob_problems(document)) == []


@pytest.mark.parametrize(
    "path, value, said",
    [
        (("spec", "podTemplateOverrides"), [], "podTemplateOverrides is unknown"),
        (("spec", "trainer", "numProcPerNode"), 8, "than there are GPUs"),
        (("spec", "trainer", "resources"), {}, "spec.trainer.resources is unknown"),
        (("spec", "trainer", "env", 0, "values"), "x", "values"),
        (("spec", "trainer", "image"), "sd-lora-task", "version"),
        (("spec", "trainer", "args", 1), "--max-restarts=3", "again and again"),
        (("spec", "trainer", "env"), [{"name": "OUTPUT_DIR", "value": "/out/x"}], "HF_TOKEN"),
    ],
)
def test_a_broken_trainjob_is_refused(path, value, said):
    document = copy.deepcopy(load("trainjob.yaml")[0])
    change(document, path, value)
    assert any(said in problem for problem in trainjob_problems(document))


# --- The workflow -----------------------------------------------------------------------------------------------------


def test_the_workflow_asks_for_what_there_is():
    """YAML reads `on` as true; the steps' fields of result.json are the contract's."""
    workflow = yaml.safe_load((DEPLOY / "github-actions.yml").read_text())
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}
    steps = workflow["jobs"]["train"]["steps"]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    scripts = "\n".join(step.get("run", "") for step in steps)
    fields = set(re.findall(r"\.([a-z_]+)", " ".join(re.findall(r"jq .*", scripts)))) - {"json"}
    assert fields and fields <= set(Outcome().done())


def test_the_workflow_keeps_what_it_needs_and_leaves_nothing_running():
    job = yaml.safe_load((DEPLOY / "github-actions.yml").read_text())["jobs"]["train"]
    steps = {step["name"]: step for step in job["steps"] if "name" in step}
    assert "/var/tmp/" in steps["Choose the output folder"]["run"], "a checkout deletes what lies in it"
    assert '--name "$CONTAINER"' in steps["Train"]["run"] and job["env"]["CONTAINER"]
    assert 'docker stop -t 120 "$CONTAINER"' in steps["Stop the container"]["run"]
    assert steps["Stop the container"]["if"] == "cancelled()"
    for name in ("Check the task", "Train"):
        assert "-e HF_TOKEN" in steps[name]["run"] and '-v "$OUT:/out"' in steps[name]["run"]


def test_the_workflow_tells_of_a_job_that_did_not_start(tmp_path):
    """Its image could not be pulled, say: then there is no result.json."""
    workflow = yaml.safe_load((DEPLOY / "github-actions.yml").read_text())
    (tell,) = [
        step["run"] for step in workflow["jobs"]["train"]["steps"] if "GITHUB_STEP_SUMMARY" in step.get("run", "")
    ]
    env = {"PATH": os.environ["PATH"], "OUT": str(tmp_path), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    subprocess.run(["bash", "-e", "-c", tell], env=env, check=True)
    assert "did not start" in (tmp_path / "summary").read_text()
