"""Renders a run's Job and pods from the run, its resources and a cluster's profile."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.backends.submission import refuse_short_limit, submission_key
from ropewalk.cluster.config import Resources
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.cluster.secrets.variables import FOLDER_VARIABLE
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.manifests.strategic_merge import merge
from ropewalk.k8s.names import (
    COMMON_LABELS,
    HOST_LABEL,
    JOB_VARIABLE,
    KEY_ANNOTATION,
    MIN_PARALLELISM_ANNOTATION,
    QUEUE_LABEL,
    QUEUE_PRIORITY_LABEL,
    ROLE_LABEL,
    RUN_LABEL,
    SUBMISSION_LABEL,
    labels_of,
    name_of,
    release_name,
)
from ropewalk.k8s.profile import K8sProfile

HERE = Path(__file__).parent
SECRETS_PATH = "/run/ropewalk/secrets"  # in pods
GRACE_MARGIN_SECONDS = 30  # from the ranks' last checkpoint until the pod has exited

# --- Jobs


def render_job(
    run: RunDir,
    resources: Resources,
    profile: K8sProfile,
    number: int = 1,
    *,
    held: bool = False,
    avoided: Sequence[str] = (),
) -> Object:
    """Render the Indexed Job of a run's attempt `number`, with one pod per node.

    A `held` Job stays suspended until its release controller starts it (k8s/submission/release_controller.py). Its pods keep away
    from the `avoided` nodes, given by their label kubernetes.io/hostname.
    Raises ConfigError for a time limit that leaves no time to save.
    """
    refuse_short_limit(resources)
    job, nodes = load_job("job.yaml"), resources.allocated_nodes
    metadata, spec = job["metadata"], job["spec"]
    metadata |= {"name": name_of(run.id, number), "labels": {**labels_of(run, number), ROLE_LABEL: "run"}}
    metadata["annotations"] = {KEY_ANNOTATION: submission_key(run, number)}
    spec |= {"completions": nodes.most, "parallelism": nodes.most, "ttlSecondsAfterFinished": round(profile.keep_minutes * 60)}
    if profile.queue or held:
        spec["suspend"] = True  # until Kueue admits it, or the release controller starts it
    if profile.queue:
        if not held:
            metadata["labels"] |= {QUEUE_LABEL: profile.queue}
        if profile.queue_priority:
            metadata["labels"][QUEUE_PRIORITY_LABEL] = profile.queue_priority
        if nodes.elastic:
            metadata["annotations"][MIN_PARALLELISM_ANNOTATION] = str(nodes.least)
    spec["template"] = _pod_of_run(run, resources, profile, number, spec["template"])
    if avoided:
        _avoid(spec["template"], avoided)
    return _in_namespace(job, profile)


def _pod_of_run(run: RunDir, resources: Resources, profile: K8sProfile, number: int, template: Object) -> Object:
    pod = copy.deepcopy(template)
    pod["metadata"] |= {"labels": labels_of(run, number)}
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    spec["terminationGracePeriodSeconds"] = math.ceil(resources.grace_seconds) + GRACE_MARGIN_SECONDS
    container["command"] = module_command(
        "ropewalk.k8s.runtime.pod_main", f"{profile.claim_path}/{run.id}", python=profile.python
    )
    container["env"] += [{"name": n, "value": v} for n, v in environment(run, profile, number).items()]
    container["resources"] = requests(resources, profile)
    if names := run.record.get("secrets"):
        _mount_secrets(pod, profile.secret_store, names)
    if resources.memory_gib:
        shared_memory = {"medium": "Memory", "sizeLimit": f"{math.ceil(resources.memory_gib * 512)}Mi"}  # half of the memory
        next(v for v in spec["volumes"] if v["name"] == "shm")["emptyDir"] = shared_memory
    return apply_profile(pod, profile)


def _avoid(pod: Object, hosts: Sequence[str]) -> None:
    """Keep a pod from nodes, in addition to what its affinity requires. Kubernetes wants one of the terms to hold."""
    affinity = copy.deepcopy(pod["spec"].get("affinity") or {})
    required = affinity.setdefault("nodeAffinity", {}).setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    others = {"key": HOST_LABEL, "operator": "NotIn", "values": [*hosts]}
    for term in required.setdefault("nodeSelectorTerms", [{}]):
        term["matchExpressions"] = [*(term.get("matchExpressions") or []), others]
    pod["spec"]["affinity"] = affinity


def _mount_secrets(pod: Object, store: str, names: Sequence[str]) -> None:
    """Mount secrets as files for the agent. They are optional for Kubernetes, since the agent names those that are missing."""
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    items = [{"key": name, "path": name} for name in names]
    secret = {"secretName": store, "items": items, "optional": True, "defaultMode": 0o400}
    spec["volumes"].append({"name": "secrets", "secret": secret})
    container["volumeMounts"].append({"name": "secrets", "mountPath": SECRETS_PATH, "readOnly": True})
    container["env"].append({"name": FOLDER_VARIABLE, "value": SECRETS_PATH})


def render_release_controller(run: RunDir, profile: K8sProfile, number: int) -> Object:
    """Render the Job of the small pod that starts the held Jobs of a submission; `run` is the first of its runs."""
    job = load_job("release-controller.yaml")
    labels = {**COMMON_LABELS, RUN_LABEL: run.id, SUBMISSION_LABEL: str(number), ROLE_LABEL: "gate"}
    job["metadata"] |= {"name": release_name(run, number), "labels": labels}
    pod = job["spec"]["template"]
    pod["metadata"]["labels"] = labels
    container = pod["spec"]["containers"][0]
    module, run_path = "ropewalk.k8s.submission.release_controller", f"{profile.claim_path}/{run.id}"
    container["command"] = module_command(module, run_path, str(number), python=profile.python)
    container["env"] += [{"name": n, "value": v} for n, v in environment(run, profile, number).items()]
    job["spec"]["template"] = apply_profile(pod, profile.model_copy(update={"secrets": ()}))  # it needs no secrets
    return _in_namespace(job, profile)


def owned_by(child: Object, owner: Object) -> Object:
    """Return an object with an owner reference, so that it is deleted with its owner, which must exist already."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "blockOwnerDeletion": True, "controller": False}
    reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    return {**child, "metadata": {**child["metadata"], "ownerReferences": [reference]}}


def _in_namespace(job: Object, profile: K8sProfile) -> Object:
    if profile.namespace:
        job["metadata"]["namespace"] = profile.namespace
    return job


# --- pods


def apply_profile(pod: Object, profile: K8sProfile) -> Object:
    """Apply the profile's settings for all pods to a pod template, and the profile's own patch last."""
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    container |= {"image": profile.image, "imagePullPolicy": profile.image_pull_policy}
    mounts = {f"mount-{i}": mount for i, mount in enumerate(profile.mounts) if mount.claim}
    for volume in spec["volumes"]:
        if volume["name"] == "runs":
            volume["persistentVolumeClaim"] = {"claimName": profile.claim}
    spec["volumes"] += [
        {"name": name, "persistentVolumeClaim": {"claimName": m.claim, "readOnly": m.read_only}} for name, m in mounts.items()
    ]
    for volume_mount in container["volumeMounts"]:
        if volume_mount["name"] == "runs":
            volume_mount["mountPath"] = profile.claim_path
    if profile.runs and (local_path := os.path.abspath(os.path.expanduser(profile.runs))) != profile.claim_path:
        # mounted a second time, so that paths in the user's configuration are valid in pods and on this machine
        container["volumeMounts"].append({"name": "runs", "mountPath": local_path})
    container["volumeMounts"] += [{"name": name, "mountPath": m.path, "readOnly": m.read_only} for name, m in mounts.items()]
    spec["securityContext"] |= {"runAsUser": profile.user, "runAsGroup": profile.user, "fsGroup": profile.user}
    if profile.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in profile.secrets]
    optional = {
        "serviceAccountName": profile.service_account,
        "priorityClassName": profile.priority_class,
        "nodeSelector": profile.node_selector,
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
    }
    spec |= {key: value for key, value in optional.items() if value}
    spec["tolerations"] += [toleration.model_dump(exclude_none=True) for toleration in profile.tolerations]
    patched: Object = merge(pod, profile.pod)
    return patched


def environment(run: RunDir, profile: K8sProfile, number: int) -> dict[str, str]:
    """Return the variables of a run's container, apart from those that job.yaml takes from the pod itself."""
    values = {"ROPEWALK_RUNS": profile.claim_path, JOB_VARIABLE: name_of(run.id, number)}
    if run.code is not None and run.code_is_program:  # the submitted copy has priority over the image's
        values["PYTHONPATH"] = f"{profile.claim_path}/{run.code.relative_to(run.path.parent)}"
        assert values["PYTHONPATH"].startswith(f"{profile.claim_path}/{CODE_FOLDER}")
    return {**values, **profile.environment}


def requests(resources: Resources, profile: K8sProfile) -> Object:
    """Return a container's resources. Memory and devices are also limits; a limit on CPUs would throttle despite idle cores."""
    soft: dict[str, str | int] = {"cpu": resources.cpus or resources.local_world_size}
    hard: dict[str, str | int] = dict(profile.devices)
    if resources.memory_gib:
        hard["memory"] = f"{math.ceil(resources.memory_gib * 1024)}Mi"
    if resources.gpus:
        hard[profile.gpu] = resources.gpus
    return {"requests": {**soft, **hard}, **({"limits": hard} if hard else {})}


# --- files


def load_job(template: str) -> Object:
    """Load a Job template of this folder, with its pod merged into pod.yaml; the caller may change the result."""
    job = load(template)
    job["spec"]["template"] = merge(load("pod.yaml"), job["spec"]["template"])
    return job


def load(template: str) -> Object:
    """Load a template of this folder; the caller may change the result."""
    return copy.deepcopy(_read(template))


@lru_cache
def _read(template: str) -> Object:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: Object = yaml.load((HERE / template).read_text(), Loader=loader)
    return loaded


class _Dumper(yaml.SafeDumper):
    """Writes repeated values in full instead of with YAML anchors, because people read manifests."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(objects: Sequence[Mapping[str, Any]]) -> str:
    """Format objects for kubectl."""
    documents = (yaml.dump(dict(item), Dumper=_Dumper, sort_keys=False, width=130) for item in objects)
    return "---\n".join(documents)
