"""What a Kubernetes server would refuse, and what this project asks of its manifests beyond that.

The API's schemas (unknown fields, wrong types) are kubernetes-validate's work. The rules here are in the API's
validation code, not in its schemas: https://kubernetes.io/docs/concepts/workloads/controllers/job/ for Jobs and their
failure policy, https://kubernetes.io/docs/concepts/security/pod-security-standards/ for "restricted".
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate

VERSION = "1.37"
NO_RETRY = [2, 3, 4, 5, 6, 7, 8, 70, 137]
"""The exit codes after which the same command would fail again: docs/contract.md's, and the out-of-memory killer's."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"(\d+(\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_SUFFIXES = {None: 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SUFFIXES |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

Manifest = dict[str, Any]


def problems(documents: list[Manifest]) -> list[str]:
    """Everything wrong with the manifests that are applied together, a line each."""
    found = []
    for document in documents:
        where = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
        found += [f"{where}: {problem}" for problem in _document_problems(document, documents)]
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    found += [f"{kind}/{name} is there twice" for kind, name in sorted(set(names)) if names.count((kind, name)) > 1]
    return found


def schema_problems(document: Manifest) -> list[str]:
    """What the API's strict schema refuses."""
    return _schema_problems(json.dumps(document))


@functools.cache
def _schema_problems(text: str) -> list[str]:
    try:
        kubernetes_validate.validate(json.loads(text), VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def _document_problems(document: Manifest, documents: list[Manifest]) -> Iterator[str]:
    yield from schema_problems(document)
    if not _NAME.fullmatch(document["metadata"]["name"]):
        yield "its name is no RFC 1123 label"
    if document["kind"] == "Job":
        spec = document["spec"]
        yield from _job_problems(spec)
        yield from pod_problems(spec["template"]["spec"], documents)
        yield from _network_problems(document, documents)
        yield from _label_problems(document)
    if document["kind"] == "ConfigMap" and document.get("immutable") is not True:
        yield "the task is not immutable: a job's next pod might find another one"
    if document["kind"] == "PersistentVolumeClaim":
        yield from _quantities(document["spec"]["resources"])


def _label_problems(job: Manifest) -> Iterator[str]:
    """Jobs and pods are found by label, by the network policy too."""
    labels = {"app.kubernetes.io/name": "sd-lora-task", "app.kubernetes.io/instance": job["metadata"]["name"]}
    for metadata in (job["metadata"], job["spec"]["template"].get("metadata", {})):
        if metadata.get("labels") != labels:
            yield f"the labels of the Job and its pods must be {labels}"


def _job_problems(spec: Manifest) -> Iterator[str]:
    pod = spec["template"]["spec"]
    indexed = spec.get("completionMode") == "Indexed"
    policy = spec.get("podFailurePolicy")
    if not policy:
        yield "no podFailurePolicy: a wrong task would be tried again and again"
    else:
        if pod.get("restartPolicy") != "Never":
            yield "podFailurePolicy needs restartPolicy Never"
        if spec.get("podReplacementPolicy") != "Failed":
            yield "podReplacementPolicy must be Failed"
        yield from _rule_problems(policy["rules"], {container["name"] for container in pod["containers"]})
    for container in pod["containers"]:
        yield from _probe_problems(container)
    if "backoffLimitPerIndex" in spec and not indexed:
        yield "backoffLimitPerIndex needs completionMode Indexed"
    if indexed and not spec.get("completions"):
        yield "completionMode Indexed needs completions"
    if indexed and spec.get("parallelism") != spec.get("completions"):
        yield "nodes of one training must all run at once: parallelism is not completions"
    for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        if not spec.get(key):
            yield f"no {key}"


def _rule_problems(rules: list[Manifest], containers: set[str]) -> Iterator[str]:
    for number, rule in enumerate(rules):
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if (codes is None) == (conditions is None):
            yield f"rule {number} needs exactly one of onExitCodes and onPodConditions"
        if codes is None:
            continue
        values = codes["values"]
        if values != sorted(set(values)):
            yield f"rule {number}: exit codes are not ascending and unique"
        if codes["operator"] == "In" and 0 in values:
            yield f"rule {number}: 0 is no failure"
        if not set(values) <= set(range(256)):
            yield f"rule {number}: exit codes are 0 to 255"
        if codes.get("containerName") not in containers:
            yield f"rule {number}: there is no container {codes.get('containerName')}"
    disruption = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    if not rules or rules[0] != disruption:
        yield "the first rule must ignore DisruptionTarget: an evicted pod's exit code says nothing"
    failing = [rule["onExitCodes"]["values"] for rule in rules if rule.get("action") == "FailJob"]
    if failing != [NO_RETRY]:
        yield f"FailJob must be on the exit codes {NO_RETRY}"


def pod_problems(pod: Manifest, documents: list[Manifest]) -> Iterator[str]:
    """What is wrong with a pod's containers, volumes and rights."""
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    yield from (f"two volumes are called {name}" for name in sorted(set(volumes)) if volumes.count(name) > 1)
    for volume in pod.get("volumes", []):
        yield from _source_problems(volume, documents)
    for container in pod["containers"]:
        yield from _container_problems(container, set(volumes))
    if pod.get("automountServiceAccountToken") is not False:
        yield "it gets the cluster's token, which it does not need"
    if pod.get("terminationGracePeriodSeconds", 30) < 120:
        yield "terminationGracePeriodSeconds is below 120: no time to save the progress"
    yield from (f"{key} shares the machine's own" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    yield from _restricted_pod_problems(pod.get("securityContext", {}))


def _probe_problems(container: Manifest) -> Iterator[str]:
    """A job that is stuck is stopped; one that starts slowly is not."""
    startup, liveness = container.get("startupProbe"), container.get("livenessProbe")
    if not startup or not liveness or startup["exec"] != liveness["exec"]:
        yield "it needs a startup and a liveness probe of one command"
    elif startup["failureThreshold"] * startup["periodSeconds"] < 600:
        yield "the startup probe allows less than ten minutes for imports from a slow disk"


def _source_problems(volume: Manifest, documents: list[Manifest]) -> Iterator[str]:
    """A claim or configuration of this project's must be in some manifest."""
    sources = set(volume) - {"name"}
    if len(sources) > 1:
        yield f"volume {volume['name']} has two sources: {', '.join(sorted(sources))}"
    if "hostPath" in sources:
        yield f"volume {volume['name']} is a folder of the machine's"
    claim, config = volume.get("persistentVolumeClaim"), volume.get("configMap")
    for kind, name in (
        ("PersistentVolumeClaim", claim and claim["claimName"]),
        ("ConfigMap", config and config["name"]),
    ):
        if name and not any(d["kind"] == kind and d["metadata"]["name"] == name for d in documents):
            yield f"volume {volume['name']}: there is no {kind} {name}"
    if size := volume.get("emptyDir", {}).get("sizeLimit"):
        yield from _quantities({"sizeLimit": {volume["name"]: size}})


def _container_problems(container: Manifest, volumes: set[str]) -> Iterator[str]:
    mounts = container.get("volumeMounts", [])
    paths = [mount["mountPath"] for mount in mounts]
    yield from (f"{path} is mounted twice" for path in sorted(set(paths)) if paths.count(path) > 1)
    yield from (f"there is no volume {m['name']}" for m in mounts if m["name"] not in volumes)
    yield from (f"{path} is not mounted" for path in ("/task", "/out", "/cache", "/tmp") if path not in paths)
    for variable in container.get("env", []):
        if ("value" in variable) and ("valueFrom" in variable):
            yield f"{variable['name']} has both value and valueFrom"
    variables = {variable["name"] for variable in container.get("env", [])}
    yield from (f"{name} is not passed on" for name in ("HF_TOKEN", "OUTPUT_DIR") if name not in variables)
    yield from _quantities(container["resources"])
    if "ephemeral-storage" not in container["resources"].get("requests", {}):
        yield "the room that /tmp takes on the node is not requested: ephemeral-storage"
    yield from _container_security_problems(container.get("securityContext", {}))
    if not re.fullmatch(r"[^:]+:[\w.-]+", container["image"]) or container["image"].endswith(":latest"):
        yield "the image is not named by its version, which is part of the bits"


def _container_security_problems(security: Manifest) -> Iterator[str]:
    if security.get("runAsNonRoot") is False or security.get("runAsUser") == 0:
        yield "it must run as a user that is not root: the container's word counts more than the pod's"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "allowPrivilegeEscalation must be false"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "all capabilities must be dropped"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "the root file system must be read-only"


def _restricted_pod_problems(security: Manifest) -> Iterator[str]:
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "it must run as a user that is not root"
    if security.get("fsGroup") is None:
        yield "without fsGroup it cannot write to a fresh volume"
    if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile must be RuntimeDefault"


def _quantities(resources: Manifest) -> Iterator[str]:
    amounts: dict[str, dict[str, float]] = {}
    for group, entries in resources.items():
        for name, value in entries.items():
            match = _QUANTITY.fullmatch(str(value))
            if match is None:
                yield f"{group}.{name} is {value!r}, which is no quantity"
                continue
            amount = amounts.setdefault(group, {})[name] = float(match[1]) * _SUFFIXES[match[3]]
            if "/" in name and amount != int(amount):
                yield f"{group}.{name} is {value!r}: a device cannot be divided"
    limits = amounts.get("limits", {})
    for name, value in amounts.get("requests", {}).items():
        if value > limits.get(name, value):
            yield f"requests.{name} is above its limit"
    for name in sorted({*limits, *amounts.get("requests", {})}):
        if "/" in name and amounts.get("requests", limits).get(name, limits.get(name)) != limits.get(name):
            yield f"{name} cannot be overcommitted: request and limit must be equal"


def _network_problems(job: Manifest, documents: list[Manifest]) -> Iterator[str]:
    """Pods that meet by name need a headless service that selects them, named as their subdomain."""
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    arguments = [str(argument) for c in pod["containers"] for argument in c.get("args", [])]
    endpoint = next((a.partition("=")[2] for a in arguments if a.startswith("--rdzv-endpoint=")), None)
    if endpoint is None:
        return
    host, _, port = endpoint.partition(":")
    if host != f"{name}-0.{pod.get('subdomain')}":
        yield f"the rendezvous is {host}, but the first pod is {name}-0.{pod.get('subdomain')}"
    service = next(
        (d["spec"] for d in documents if d["kind"] == "Service" and d["metadata"]["name"] == pod.get("subdomain")), None
    )
    if service is None or service.get("clusterIP") != "None":
        yield "there is no headless service of the subdomain's name"
    elif service["selector"] != {"batch.kubernetes.io/job-name": name}:
        yield "the service selects other pods"
    elif int(port) not in [entry["port"] for entry in service["ports"]]:
        yield f"the service has no port {port}"
    elif not service.get("publishNotReadyAddresses"):
        yield "pods must find each other before they are ready"
    if arguments[0] != "torchrun" or "--max-restarts=0" not in arguments:
        yield "without our torchrun and --max-restarts=0 a wrong task is started again and again"
    if f"--nnodes={job['spec'].get('completions')}" not in arguments:
        yield "torch's launcher expects another number of nodes"
    gpus = {str(c["resources"]["limits"].get("nvidia.com/gpu")) for c in pod["containers"]}
    if not any(f"--nproc-per-node={count}" in arguments for count in gpus):
        yield "torch's launcher starts another number of processes than there are GPUs"
