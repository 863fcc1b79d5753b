"""What a cluster shows of any number of runs: one list of Jobs, one of RayJobs if any run is one, and where some wait one more
list a kind of reason.
"""

from collections.abc import Sequence
from typing import Any

from cluster.backends.submission import submission_details
from cluster.run.directory import RunDir
from k8s.api.client import ForbiddenError, Kubernetes, NotFoundError, Object
from k8s.manifests.job import OURS, QUEUE_LABEL, ROLE_LABEL, RUN_LABEL
from k8s.rayjob import KIND, seen_as_job
from k8s.status.run_state import Seen, end_of, makers_of

NOT_AT_WORK = "status.phase!=Running,status.phase!=Succeeded"
FEW = 20  # so many runs are asked for by name, more by what all have in common


def look(kube: Kubernetes, runs: Sequence[RunDir]) -> dict[str, Seen]:
    """What there is of each run, by run id."""
    details = {run.id: submission_details(run) for run in runs}
    carriers = f"{selector(runs)},{ROLE_LABEL}=run"
    jobs = {job["metadata"]["name"]: job for job in kube.list("Job", carriers)}
    if any(own.get("kind") == KIND for own in details.values()):
        jobs |= {each["metadata"]["name"]: seen_as_job(each) for each in kube.list(KIND, carriers)}
    mine = {run: jobs.get(str(own.get("name"))) for run, own in details.items()}
    open_runs = {run.id for run in runs if (job := mine[run.id]) is not None and _waits(job) and not _is_over(run)}
    waiting = {run: job for run, job in mine.items() if job is not None and run in open_runs}
    pods = _by_run(_list(kube, "Pod", selector(runs), NOT_AT_WORK)) if any(map(_had_pods, waiting.values())) else {}
    queued = any(QUEUE_LABEL in job["metadata"]["labels"] and job["spec"].get("suspend") for job in waiting.values())
    workloads = _by_owner(_list(kube, "Workload")) if queued else {}
    events = _warnings(kube, waiting, pods)
    return {
        run: Seen(
            details=details[run],
            job=job,
            pods=pods.get(run, ()) if run in waiting else (),
            workload=workloads.get(job["metadata"]["uid"]) if job is not None else None,
            events=events.get(run, ()),
        )
        for run, job in mine.items()
    }


def selector(runs: Sequence[RunDir]) -> str:
    """Labels that choose objects of these runs, and if they are many, of others too."""
    ours = ",".join(f"{key}={value}" for key, value in OURS.items())
    return f"{ours},{RUN_LABEL} in ({','.join(run.id for run in runs)})" if len(runs) <= FEW else ours


def _is_over(run: RunDir) -> bool:
    """Its Job may not know yet."""
    outcome = run.last_outcome()
    return outcome is not None and outcome.state.final


def _waits(job: Object) -> bool:
    few_ready = (job.get("status") or {}).get("ready", 0) < job["spec"].get("parallelism", 1)
    return end_of(job) is None and bool(job["spec"].get("suspend") or few_ready)


def _has_pods(job: Object) -> bool:
    return bool((job.get("status") or {}).get("active"))


def _had_pods(job: Object) -> bool:
    return _has_pods(job) or bool((job.get("status") or {}).get("failed"))


def _list(kube: Kubernetes, kind: str, labels: str = "", fields: str = "") -> Sequence[Object]:
    """Objects that explain, where one may see them; the states themselves do not depend on these."""
    try:
        return kube.list(kind, labels, fields)
    except (ForbiddenError, NotFoundError):
        return ()


def _warnings(kube: Kubernetes, waiting: dict[str, Object], pods: dict[str, list[Object]]) -> dict[str, list[Object]]:
    """Warnings about Jobs and RayClusters that cannot make pods, and about pods that stand on a node and do not start."""
    names: dict[str, str] = {}
    for run, job in waiting.items():
        without_pods = not _has_pods(job) or (job.get("kind") == KIND and not pods.get(run))
        if not job["spec"].get("suspend") and without_pods:
            names.update(dict.fromkeys(makers_of(job), run))
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


def _by_owner(objects: Sequence[Any]) -> dict[str, Object]:
    return {owner["uid"]: each for each in objects for owner in each["metadata"].get("ownerReferences") or []}
