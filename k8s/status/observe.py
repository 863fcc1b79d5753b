"""What a cluster shows of any number of runs: one list of Jobs, and where some wait one more list per kind of reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.backends.submission import is_over, named_beside, submission_details
from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.api.client import ForbiddenError, Kubernetes, NotFoundError
from ropewalk.k8s.api.objects import Object, end_of
from ropewalk.k8s.names import OUR_LABELS, QUEUE_LABEL, ROLE_LABEL, RUN_LABEL

NOT_RUNNING = "status.phase!=Running,status.phase!=Succeeded"
FEW = 20  # so many runs are asked for by name, more by what all have in common


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What Kubernetes shows of one run."""

    details: Mapping[str, Any]  # what the newest submission wrote down
    job: Object | None = None
    pods: Sequence[Object] = ()  # those that do not run yet
    workload: Object | None = None  # Kueue's
    events: Sequence[Object] = ()  # warnings about the Job and its pods
    after: Sequence[str] = ()  # ids of the runs that it still waits for


def observe(kube: Kubernetes, runs: Sequence[RunDir]) -> dict[str, Observation]:
    """What Kubernetes shows of each run, by run id. Raises BackendError where the Jobs cannot be listed."""
    details = {run.id: submission_details(run) for run in runs}
    jobs = {job["metadata"]["name"]: job for job in kube.list("Job", f"{selector(runs)},{ROLE_LABEL}=run")}
    found = {run: jobs.get(str(own.get("name"))) for run, own in details.items()}
    over = {run.id for run in runs if is_over(run)}  # its Job may not know yet
    waiting = {run: job for run, job in found.items() if job is not None and run not in over and _waits(job)}
    pods = _by_run(_list(kube, "Pod", selector(runs), NOT_RUNNING)) if any(map(_had_pods, waiting.values())) else {}
    queued = any(QUEUE_LABEL in job["metadata"]["labels"] and job["spec"].get("suspend") for job in waiting.values())
    workloads = _by_owner(_list(kube, "Workload")) if queued else {}
    events = _warnings(kube, waiting, pods)
    named = {other for run in waiting for other in details[run].get("after") or ()}
    awaited = {other.id for other in named_beside(runs[0], sorted(named)) if not is_over(other)} if named else set()
    return {
        run: Observation(
            details=details[run],
            job=job,
            pods=pods.get(run, ()) if run in waiting else (),
            workload=workloads.get(job["metadata"]["uid"]) if job is not None else None,
            events=events.get(run, ()),
            after=tuple(other for other in details[run].get("after") or () if other in awaited),
        )
        for run, job in found.items()
    }


def selector(runs: Sequence[RunDir]) -> str:
    """Labels that choose the objects of these runs, and those of others too if these are many."""
    return f"{OUR_LABELS},{RUN_LABEL} in ({','.join(run.id for run in runs)})" if len(runs) <= FEW else OUR_LABELS


def _waits(job: Object) -> bool:
    few_ready = (job.get("status") or {}).get("ready", 0) < job["spec"].get("parallelism", 1)
    return end_of(job) is None and bool(job["spec"].get("suspend") or few_ready)


def _has_pods(job: Object) -> bool:
    return bool((job.get("status") or {}).get("active"))


def _had_pods(job: Object) -> bool:
    return _has_pods(job) or bool((job.get("status") or {}).get("failed"))


def _list(kube: Kubernetes, kind: str, labels: str = "", fields: str = "") -> Sequence[Object]:
    """Objects that explain a state, where the user may see them; the state itself does not depend on these."""
    try:
        return kube.list(kind, labels, fields)
    except (ForbiddenError, NotFoundError):
        return ()


def _warnings(kube: Kubernetes, waiting: dict[str, Object], pods: dict[str, list[Object]]) -> dict[str, list[Object]]:
    """Warnings about Jobs that cannot make pods, and about pods that have a node and do not start, by run id."""
    names: dict[str, str] = {}
    for run, job in waiting.items():
        if not job["spec"].get("suspend") and not _has_pods(job):
            names[job["metadata"]["name"]] = run
        names.update({pod["metadata"]["name"]: run for pod in pods.get(run, ()) if pod["spec"].get("nodeName")})
    found: dict[str, list[Object]] = {}
    for event in _list(kube, "Event", fields="type=Warning") if names else ():
        if named := names.get(event["involvedObject"].get("name", "")):
            found.setdefault(named, []).append(event)
    return found


def _by_run(objects: Sequence[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for each in objects:
        found.setdefault(each["metadata"]["labels"][RUN_LABEL], []).append(each)
    return found


def _by_owner(objects: Sequence[Object]) -> dict[str, Object]:
    return {owner["uid"]: each for each in objects for owner in each["metadata"].get("ownerReferences") or []}
