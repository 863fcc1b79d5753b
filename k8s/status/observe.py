"""Queries the state of any number of runs: one list of Jobs and, if some of them wait, one more list per kind of reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.backends.submission import dependencies_beside, is_over, submission_details
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, end_of
from ropewalk.k8s.names import COMMON_SELECTOR, QUEUE_LABEL, ROLE_LABEL, RUN_LABEL

NOT_RUNNING = "status.phase!=Running,status.phase!=Succeeded"
FEW = 20  # up to this number runs are selected by name, more by their common labels


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Objects of one run in Kubernetes that determine its state."""

    details: Mapping[str, Any]  # recorded by the newest submission
    job: Object | None = None
    pods: Sequence[Object] = ()  # pods that are not running yet
    workload: Object | None = None  # of Kueue
    events: Sequence[Object] = ()  # warnings about the Job and its pods
    after: Sequence[str] = ()  # ids of runs that it still waits for


def observe(kube: Kubernetes, runs: Sequence[RunDir]) -> dict[str, Observation]:
    """Query the objects of each run, by run id. Raises BackendError if the Jobs cannot be listed."""
    details = {run.id: submission_details(run) for run in runs}
    jobs = {job["metadata"]["name"]: job for job in kube.list("Job", f"{selector(runs)},{ROLE_LABEL}=run")}
    job_of_run = {run: jobs.get(str(record.get("name"))) for run, record in details.items()}
    over = {run.id for run in runs if is_over(run)}  # its Job may not reflect that yet
    waiting = {run: job for run, job in job_of_run.items() if job is not None and run not in over and _is_waiting(job)}
    pods = _by_run(_list(kube, "Pod", selector(runs), NOT_RUNNING)) if any(map(_had_pods, waiting.values())) else {}
    queued = any(QUEUE_LABEL in job["metadata"]["labels"] and job["spec"].get("suspend") for job in waiting.values())
    workloads = _by_owner(_list(kube, "Workload")) if queued else {}
    events = _warnings(kube, waiting, pods)
    dependencies = {other for run in waiting for other in details[run].get("after") or ()}
    unfinished = dependencies_beside(runs[0], sorted(dependencies)) if dependencies else []
    awaited = {str(other): other.run.id for other in unfinished if not is_over(other.run)}
    return {
        run: Observation(
            details=details[run],
            job=job,
            pods=pods.get(run, ()) if run in waiting else (),
            workload=workloads.get(job["metadata"]["uid"]) if job is not None else None,
            events=events.get(run, ()),
            after=tuple(awaited[other] for other in details[run].get("after") or () if other in awaited),
        )
        for run, job in job_of_run.items()
    }


def selector(runs: Sequence[RunDir]) -> str:
    """Return a label selector for the objects of these runs; for many runs it selects all runs of ropewalk."""
    return f"{COMMON_SELECTOR},{RUN_LABEL} in ({','.join(run.id for run in runs)})" if len(runs) <= FEW else COMMON_SELECTOR


def _is_waiting(job: Object) -> bool:
    few_ready = (job.get("status") or {}).get("ready", 0) < job["spec"].get("parallelism", 1)
    return end_of(job) is None and bool(job["spec"].get("suspend") or few_ready)


def _has_pods(job: Object) -> bool:
    return bool((job.get("status") or {}).get("active"))


def _had_pods(job: Object) -> bool:
    """Return True if pods of the Job run or have failed; Kubernetes counts those that have just failed as neither."""
    status = job.get("status") or {}
    return _has_pods(job) or bool(status.get("failed") or (status.get("uncountedTerminatedPods") or {}).get("failed"))


def _list(kube: Kubernetes, kind: str, labels: str = "", fields: str = "") -> Sequence[Object]:
    """List objects that only explain a state; empty if the user may not see them."""
    try:
        return kube.list(kind, labels, fields)
    except (ForbiddenError, NotFoundError):
        return ()


def _warnings(kube: Kubernetes, waiting: dict[str, Object], pods: dict[str, list[Object]]) -> dict[str, list[Object]]:
    """Return warnings about Jobs that cannot create pods, and about pods that have a node but do not start, by run id."""
    names: dict[str, str] = {}
    for run, job in waiting.items():
        if not job["spec"].get("suspend") and not _has_pods(job):
            names[job["metadata"]["name"]] = run
        names.update({pod["metadata"]["name"]: run for pod in pods.get(run, ()) if pod["spec"].get("nodeName")})
    by_run: dict[str, list[Object]] = {}
    for event in _list(kube, "Event", fields="type=Warning") if names else ():
        if run_id := names.get(event["involvedObject"].get("name", "")):
            by_run.setdefault(run_id, []).append(event)
    return by_run


def _by_run(objects: Sequence[Object]) -> dict[str, list[Object]]:
    by_run: dict[str, list[Object]] = {}
    for item in objects:
        by_run.setdefault(item["metadata"]["labels"][RUN_LABEL], []).append(item)
    return by_run


def _by_owner(objects: Sequence[Object]) -> dict[str, Object]:
    return {owner["uid"]: item for item in objects for owner in item["metadata"].get("ownerReferences") or []}
