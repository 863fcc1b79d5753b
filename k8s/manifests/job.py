"""A run's manifest: pure functions from a run, its resources and a cluster's profile to Kubernetes objects."""

import copy
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cluster.backends.submission import key_of, refuse_short_limit
from cluster.config import Resources
from cluster.run.directory import CODE_FOLDER, RunDir
from k8s.manifests.strategic_merge import merge
from k8s.profile import K8sProfile

HERE = Path(__file__).parent
Object = dict[str, Any]

RUN_LABEL = "ropewalk/run"
SUBMISSION_LABEL = "ropewalk/submission"  # the attempt that the submission opened
ROLE_LABEL = "ropewalk/role"
OURS = {"app.kubernetes.io/name": "ropewalk", "app.kubernetes.io/managed-by": "ropewalk"}
KEY_ANNOTATION = "ropewalk/key"
OUTCOME_ANNOTATION = "ropewalk/outcome"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
LEAST_ANNOTATION = "kueue.x-k8s.io/job-min-parallelism"
CONTAINER = "ropewalk"
GATE_ENDING = "-gate"
LONGEST_NAME = 54  # of 63, so that a pod's index and more may follow
GRACE_MARGIN_SECONDS = 30  # from the ranks' last save until the pod has left


def render_objects(
    run: RunDir, resources: Resources, profile: K8sProfile, number: int = 1, *, held: bool = False
) -> list[Object]:
    """All objects of a submission, in the order in which they are created; the first owns the others.

    One that is `held` stays suspended until its gate lets it go (k8s/submission/release_controller.py).
    """
    refuse_short_limit(resources)
    objects = [render_job(run, resources, profile, number, held=held)]
    if resources.nodes.most > 1:
        objects.append(render_service(run, number))
    if profile.namespace:
        for each in objects:
            each["metadata"]["namespace"] = profile.namespace
    return objects


def render_job(run: RunDir, resources: Resources, profile: K8sProfile, number: int, *, held: bool = False) -> Object:
    """The Indexed Job."""
    job, name, nodes = load("job.yaml"), name_of(run.id, number), resources.nodes
    metadata, spec = job["metadata"], job["spec"]
    metadata |= {"name": name, "labels": {**labels_of(run, number), ROLE_LABEL: "run"}}
    metadata["annotations"] = {KEY_ANNOTATION: key_of(run, number)}
    spec |= {"completions": nodes.most, "parallelism": nodes.most, "ttlSecondsAfterFinished": round(profile.keep_minutes * 60)}
    if profile.queue or held:
        spec["suspend"] = True  # until Kueue admits it, or its gate lets it go
    if profile.queue:
        if not held:
            metadata["labels"] |= {QUEUE_LABEL: profile.queue}
        if profile.queue_priority:
            metadata["labels"][QUEUE_PRIORITY_LABEL] = profile.queue_priority
        if nodes.elastic:
            metadata["annotations"][LEAST_ANNOTATION] = str(nodes.least)
    spec["template"] = render_pod(run, resources, profile, number, spec["template"])
    return job


def render_service(run: RunDir, number: int) -> Object:
    """The headless Service under whose name the pods reach each other."""
    service = load("service.yaml")
    service["metadata"] |= {"name": name_of(run.id, number), "labels": labels_of(run, number)}
    service["spec"]["selector"] = {RUN_LABEL: run.id}
    return service


def render_gate(run: RunDir, profile: K8sProfile, number: int) -> Object:
    """The Job of the small pod that lets held Jobs go, of those that were submitted together with `run`."""
    job = load("release-controller.yaml")
    labels = {**OURS, RUN_LABEL: run.id, SUBMISSION_LABEL: str(number), ROLE_LABEL: "gate"}
    # short enough for its pods to end in -gate-xxxxx: by that k8s/manifests/admission-policy.yaml knows them
    job["metadata"] |= {"name": f"{name_of(run.id, number, LONGEST_NAME - len(GATE_ENDING))}{GATE_ENDING}", "labels": labels}
    if profile.namespace:
        job["metadata"]["namespace"] = profile.namespace
    pod = job["spec"]["template"]
    pod["metadata"]["labels"] = labels
    container = pod["spec"]["containers"][0]
    container["command"] = [
        profile.python,
        "-m",
        "k8s.submission.release_controller",
        f"{profile.claim_path}/{run.id}",
        str(number),
    ]
    container["env"] += [{"name": n, "value": v} for n, v in environment(run, profile, number).items()]
    job["spec"]["template"] = dress(pod, profile.model_copy(update={"secrets": ()}))  # it needs none of what runs need
    return job


def render_pod(
    run: RunDir, resources: Resources, profile: K8sProfile, number: int, template: Object, *, module: str = "k8s.runtime.pod_main"
) -> Object:
    """A pod template with all that the job and the profile ask for; the profile's own patch comes last."""
    pod = copy.deepcopy(template)
    pod["metadata"] |= {"labels": labels_of(run, number)}
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    if "subdomain" in spec:
        spec["subdomain"] = name_of(run.id, number)
    spec["terminationGracePeriodSeconds"] = math.ceil(resources.grace_seconds) + GRACE_MARGIN_SECONDS
    container["command"] = [profile.python, "-m", module, f"{profile.claim_path}/{run.id}"]
    container["env"] += [{"name": n, "value": v} for n, v in environment(run, profile, number).items()]
    container["resources"] = requests(resources, profile)
    if resources.memory_gib:
        sized = {"medium": "Memory", "sizeLimit": f"{math.ceil(resources.memory_gib * 512)}Mi"}  # half of it
        next(v for v in spec["volumes"] if v["name"] == "shm")["emptyDir"] = sized
    if not pod["metadata"].get("annotations"):
        pod["metadata"].pop("annotations", None)
    return dress(pod, profile)


def dress(pod: Object, profile: K8sProfile) -> Object:
    """A pod template with what the profile says of every pod: image, volumes, place, user; then the profile's own patch."""
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    container |= {"image": profile.image, "imagePullPolicy": profile.image_pull_policy}
    mounts = {f"mount-{i}": mount for i, mount in enumerate(profile.mounts)}
    for volume in spec["volumes"]:
        if volume["name"] == "runs":
            volume["persistentVolumeClaim"] = {"claimName": profile.claim}
    spec["volumes"] += [
        {"name": name, "persistentVolumeClaim": {"claimName": m.claim, "readOnly": m.read_only}} for name, m in mounts.items()
    ]
    for place in container["volumeMounts"]:
        if place["name"] == "runs":
            place["mountPath"] = profile.claim_path
    if profile.runs and (here := os.path.abspath(os.path.expanduser(profile.runs))) != profile.claim_path:
        # paths that the user gives, such as data's, mean the same there and here
        container["volumeMounts"].append({"name": "runs", "mountPath": here})
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
    spec.setdefault("tolerations", []).extend(t.model_dump(exclude_none=True) for t in profile.tolerations)
    if not spec["tolerations"]:
        del spec["tolerations"]
    patched: Object = merge(pod, profile.pod)
    return patched


def environment(run: RunDir, profile: K8sProfile, number: int) -> dict[str, str]:
    """Variables of the run's container, beside those that job.yaml takes from the pod itself."""
    values = {"ROPEWALK_RUNS": profile.claim_path, "ROPEWALK_JOB": name_of(run.id, number)}
    if run.code is not None:  # the copy of the code that the run was submitted with comes before the image's
        values["PYTHONPATH"] = f"{profile.claim_path}/{run.code.relative_to(run.path.parent)}"
        assert values["PYTHONPATH"].startswith(f"{profile.claim_path}/{CODE_FOLDER}")
    return {**values, **profile.environment}


def requests(resources: Resources, profile: K8sProfile) -> Object:
    """What a container asks for. Memory and devices are limits too; CPUs are not, since a limit throttles what is idle."""
    asked: dict[str, str | int] = {"cpu": resources.cpus or resources.local_world_size}
    hard: dict[str, str | int] = dict(profile.devices)
    if resources.memory_gib:
        hard["memory"] = f"{math.ceil(resources.memory_gib * 1024)}Mi"
    if resources.gpus:
        hard[profile.gpu] = resources.gpus
    return {"requests": {**asked, **hard}, **({"limits": hard} if hard else {})}


# --- names


def name_of(run_id: str, number: int, longest: int = LONGEST_NAME) -> str:
    """The name of a submission's objects: the run's, cut where Kubernetes allows no longer one, and the attempt it opened."""
    ending = f"-{number}"
    if len(run_id) + len(ending) > longest:
        digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
        run_id = f"{run_id[: longest - len(ending) - 9].rstrip('-')}-{digest}"
    return f"{run_id}{ending}"


def labels_of(run: RunDir, number: int) -> dict[str, str]:
    """Labels of everything that belongs to a submission."""
    return {**OURS, RUN_LABEL: run.id, SUBMISSION_LABEL: str(number)}


def owned_by(each: Object, owner: Object) -> Object:
    """An object that goes when its owner, which exists already, goes."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "blockOwnerDeletion": True, "controller": False}
    reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    return {**each, "metadata": {**each["metadata"], "ownerReferences": [reference]}}


# --- files


def load(template: str) -> Object:
    """A template beside this module, as an object of one's own."""
    return copy.deepcopy(_read(template))


@lru_cache
def _read(template: str) -> Object:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: Object = yaml.load((HERE / template).read_text(), Loader=loader)
    return loaded


class _Dumper(yaml.SafeDumper):
    """People read manifests: what occurs twice is written twice, not once with an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(objects: Sequence[Mapping[str, Any]]) -> str:
    """Objects as kubectl takes them."""
    documents = (yaml.dump(dict(each), Dumper=_Dumper, sort_keys=False, width=130) for each in objects)
    return "---\n".join(documents)
