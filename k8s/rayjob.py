"""A run's RayJob: a pure function as in k8s/manifests/job.py, and a look at a RayJob as if it were the run's Job."""

import os
from typing import Any

from cluster.backends.submission import key_of, refuse_short_limit
from cluster.config import Resources
from cluster.run.directory import RunDir
from k8s.api.in_cluster import KIND_VARIABLE
from k8s.manifests.job import (
    KEY_ANNOTATION,
    QUEUE_LABEL,
    QUEUE_PRIORITY_LABEL,
    ROLE_LABEL,
    labels_of,
    load,
    name_of,
    render_pod,
)
from k8s.manifests.strategic_merge import merge
from k8s.profile import K8sProfile

Object = dict[str, Any]

KIND = "RayJob"
LONGEST_NAME = 47  # KubeRay's: cluster, service and pods have longer ones
GCS_PORT, JOBS_PORT, RAYLET_PORT = 6379, 8265, 6380  # as k8s/rayjob.yaml names them
OTHER_PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# of KubeRay's words for a deployment, those after which nothing comes; in a Job's words
ENDS = {"Complete": "Complete", "Failed": "Failed", "ValidationFailed": "Failed"}


def render_rayjob(run: RunDir, resources: Resources, profile: K8sProfile, number: int = 1) -> list[Object]:
    """The only object of such a submission."""
    refuse_short_limit(resources)
    job, name = skeleton(), rayjob_name(run.id, number)
    metadata, spec = job["metadata"], job["spec"]
    metadata |= {"name": name, "labels": {**labels_of(run, number), ROLE_LABEL: "run"}}
    metadata["annotations"] = {KEY_ANNOTATION: key_of(run, number)}
    if profile.namespace:
        metadata["namespace"] = profile.namespace
    if profile.queue:
        spec["suspend"] = True  # until Kueue admits it
        metadata["labels"][QUEUE_LABEL] = profile.queue
        if profile.queue_priority:
            metadata["labels"][QUEUE_PRIORITY_LABEL] = profile.queue_priority
    cluster, workers = spec["rayClusterSpec"], resources.nodes.most - 1
    head = cluster["headGroupSpec"]
    head["template"] = _pod(run, resources, profile, number, head["template"], module="k8s.ray_head")
    spec["entrypoint"] = " ".join(head["template"]["spec"]["containers"][0]["command"])
    group = cluster["workerGroupSpecs"][0]
    group |= {"replicas": workers, "minReplicas": workers, "maxReplicas": workers}
    group["template"] = _pod(run, resources, profile, number, group["template"], module="k8s.ray_worker")
    if not workers:
        del cluster["workerGroupSpecs"]
    return [job]


def rayjob_name(run_id: str, number: int) -> str:
    """As `name_of`, for an object of KubeRay's, which begins with a letter."""
    return name_of(run_id if run_id[:1].isalpha() else f"r{run_id}", number, LONGEST_NAME)


def skeleton() -> Object:
    """The template, its pods put together with those of k8s/manifests/job.yaml; nothing is filled in."""
    job = load("rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        group["template"] = merge(load("job.yaml")["spec"]["template"], group["template"])
    return job


def pod_templates(job: Object) -> list[Object]:
    """The templates of all pods of a run's Job or RayJob; whoever carries the run comes first."""
    if job["kind"] != KIND:
        return [job["spec"]["template"]]
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", []))]


def _pod(run: RunDir, resources: Resources, profile: K8sProfile, number: int, template: Object, *, module: str) -> Object:
    name = rayjob_name(run.id, number)
    pod = render_pod(run, resources, profile, number, template, module=module)
    container = pod["spec"]["containers"][0]
    own = {"ROPEWALK_JOB": name, KIND_VARIABLE: KIND}
    if os.path.isabs(profile.python):  # a container that KubeRay adds to workers calls `ray` by name
        own["PATH"] = f"{os.path.dirname(profile.python)}:{OTHER_PROGRAMS}"
    env = [variable for variable in container["env"] if variable["name"] not in own or variable["name"] == "PATH"]
    given = {variable["name"] for variable in env}
    container["env"] = [*env, *({"name": n, "value": v} for n, v in own.items() if n not in given)]
    return pod


def seen_as_job(rayjob: Object) -> Object:
    """What `k8s.status.run_state` asks of a Job, told of a RayJob: suspended, ended, how many pods are ready."""
    spec, status = rayjob["spec"], rayjob.get("status") or {}
    cluster = status.get("rayClusterStatus") or {}
    groups = spec["rayClusterSpec"].get("workerGroupSpecs") or []
    pods = 1 + sum(int(group.get("replicas") or 0) for group in groups)
    head_ready = any(c["type"] == "HeadPodReady" and c["status"] == "True" for c in cluster.get("conditions") or [])
    found: Object = {
        "kind": KIND,
        "metadata": rayjob["metadata"],
        "spec": {
            "suspend": bool(spec.get("suspend")),
            "parallelism": pods,
            "template": spec["rayClusterSpec"]["headGroupSpec"]["template"],
        },
        "status": {"ready": int(head_ready) + int(cluster.get("readyWorkerReplicas") or 0)},
    }
    if made := status.get("rayClusterName"):
        found["status"] |= {"active": pods, "cluster": made}
    if end := ENDS.get(status.get("jobDeploymentStatus") or ""):
        reason, message = status.get("reason") or status.get("jobStatus"), status.get("message")
        condition = {"type": end, "status": "True", "reason": reason, "message": message}
        found["status"]["conditions"] = [{**condition, "lastTransitionTime": status.get("endTime")}]
    return found
