"""What became of a run, of what Kubernetes says of its Job and of what lies in its directory."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.backends.base import BackendState
from cluster.backends.recovery import SETTLE_SECONDS, conclude, has_agents, lost, never_submitted
from cluster.backends.submission import PATIENCE_SECONDS
from cluster.run.directory import RunDir
from cluster.spec import Outcome, RunState
from k8s.manifests.job import OUTCOME_ANNOTATION, QUEUE_LABEL
from k8s.status.pending_reasons import Trouble, event_trouble, pod_trouble, seconds_of, with_remedy, workload_trouble

Object = dict[str, Any]

LEAVING_SECONDS = 60.0  # beyond its grace period, before a Job that is being deleted is taken for gone


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What Kubernetes shows of one run."""

    details: Mapping[str, Any]  # what the newest submission wrote down
    job: Object | None = None
    pods: Sequence[Object] = ()  # those that do not run yet
    workload: Object | None = None
    events: Sequence[Object] = field(default=())  # warnings about the Job and its pods


def judge(run: RunDir, seen: Seen) -> BackendState:
    """The run's state; an end of which only Kubernetes knows is written down as its outcome."""
    attempts = run.attempts()
    if not attempts:
        return never_submitted(run)
    outcome = run.outcome(attempts[-1])
    if outcome is None or not outcome.state.final:
        outcome = told_by(run, seen.job) or outcome
    if outcome is not None and outcome.state.final:
        return BackendState(state=outcome.state, word="ended", reason=outcome.cause)
    if seen.job is None:
        return _unknown(run, seen.details, outcome)
    handle = handle_of(seen.job)
    if "deletionTimestamp" in seen.job["metadata"]:
        return _leaving(run, seen.job, handle)
    if end := end_of(seen.job):
        return _settle(run, seen, end, outcome)
    if outcome is None and has_agents(run) and not seen.job["spec"].get("suspend"):
        return BackendState(state=RunState.RUNNING, word="Running", handle=handle)
    waits = RunState.REQUEUED if outcome is not None or len(attempts) > 1 or has_agents(run) else RunState.PENDING
    trouble = trouble_of(seen)
    if trouble is not None and trouble.hopeless and waits is RunState.PENDING:
        settled = conclude(run, RunState.FAILED, f"never started: {trouble}")
        return BackendState(state=settled.state, word=trouble.word, reason=settled.cause, handle=handle)
    if trouble is None:
        state = RunState.RUNNING if _all_ready(seen.job) and waits is RunState.PENDING else waits
        return BackendState(state=state, word=_word(seen.job), handle=handle)
    return BackendState(state=waits, word=trouble.word, reason=str(trouble), handle=handle)


def ended_unseen(run: RunDir, seen: Seen) -> bool:
    """Its Job has ended or is gone, and nothing that this machine sees tells how the run has."""
    outcome = run.last_outcome()
    if not run.attempts() or (outcome is not None and outcome.state.final) or told_by(run, seen.job) is not None:
        return False
    if seen.job is None:
        return run.cancel_requested or time.time() - float(seen.details.get("created") or 0) > PATIENCE_SECONDS
    return end_of(seen.job) is not None


def trouble_of(seen: Seen) -> Trouble | None:
    """What keeps the run from starting, if anything does; what no waiting mends comes first."""
    if seen.job is not None and seen.job["spec"].get("suspend"):
        if seen.workload is not None:
            return workload_trouble(seen.workload)
        if QUEUE_LABEL in seen.job["metadata"]["labels"]:
            return Trouble(word="Queued", said=f"queue {seen.job['metadata']['labels'][QUEUE_LABEL]} has not looked at it yet")
        return _held(seen)
    by_pod: dict[str, list[Object]] = {}
    for event in seen.events:
        by_pod.setdefault(event["involvedObject"]["name"], []).append(event)
    newest_first = sorted(seen.pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)
    found = [pod_trouble(pod, by_pod.get(pod["metadata"]["name"], ())) for pod in newest_first]
    troubles = sorted((each for each in found if each), key=lambda each: not each.hopeless)
    if troubles:
        return troubles[0]
    told = [event for name in makers_of(seen.job) for event in by_pod.get(name, ())]
    return event_trouble(told) if not _all_ready(seen.job) and not seen.pods else None


def _held(seen: Seen) -> Trouble:
    """Its gate has not let it go yet."""
    if others := seen.details.get("after"):
        return Trouble(word="Dependency", said=f"it waits for {' and '.join(others)}")
    if at_once := seen.details.get("at_once"):
        return Trouble(word="Turn", said=f"{at_once} of the runs that were submitted with it run at a time")
    return Trouble(word="Suspended", said="somebody has suspended its Job", remedy="`kubectl patch` its spec.suspend to false")


def told_by(run: RunDir, job: Object | None) -> Outcome | None:
    """The outcome that the run left on its Job, written down where this machine does not see the run's own file.

    Other pods of the namespace may be able to write there too: it counts once the Job has ended, or somebody has deleted it.
    """
    if job is None or (end_of(job) is None and "deletionTimestamp" not in job["metadata"]):
        return None
    text = (job["metadata"].get("annotations") or {}).get(OUTCOME_ANNOTATION)
    if not text:
        return None
    raw = json.loads(text)
    outcome = Outcome(**{**raw, "state": RunState(raw["state"])})
    if run.attempts():
        with suppress(OSError):
            run.write_outcome(run.attempts()[-1], outcome)
    return outcome


def handle_of(job: Object) -> str:
    """k8s:NAMESPACE/NAME."""
    return f"k8s:{job['metadata']['namespace']}/{job['metadata']['name']}"


def end_of(job: Object) -> Mapping[str, Any] | None:
    """The condition with which a Job has ended, if it has."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] in {"Complete", "Failed"} and c["status"] == "True"), None)


def makers_of(job: Object | None) -> list[str]:
    """Whose events tell why there are no pods: the Job, or the RayJob and its RayCluster."""
    if job is None:
        return []
    return [name for name in (job["metadata"]["name"], (job.get("status") or {}).get("cluster")) if name]


def _all_ready(job: Object | None) -> bool:
    return job is not None and (job.get("status") or {}).get("ready", 0) >= job["spec"].get("parallelism", 1)


def _word(job: Object) -> str:
    status = job.get("status") or {}
    if job["spec"].get("suspend"):
        return "Suspended"
    return "Running" if _all_ready(job) else f"{status.get('ready', 0)}/{job['spec'].get('parallelism', 1)} pods ready"


def _unknown(run: RunDir, details: Mapping[str, Any], outcome: Outcome | None) -> BackendState:
    if run.cancel_requested:
        cause = "cancelled; no Job carried it" if outcome is None else "cancelled while it waited"
        return BackendState(state=RunState.CANCELLED, word="lost", reason=conclude(run, RunState.CANCELLED, cause).cause)
    if outcome is None and time.time() - float(details.get("created") or 0) < PATIENCE_SECONDS and not has_agents(run):
        return BackendState(state=RunState.PENDING, word="submitting")
    said = f"Kubernetes has no Job {details.get('name') or 'of it'} any more, and it left no final outcome"
    return lost(run, said)


def _leaving(run: RunDir, job: Object, handle: str) -> BackendState:
    """Its Job is being deleted: by our cancel, or by somebody's kubectl."""
    grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    # the timestamp is when the deletion was asked for
    if time.time() - seconds_of(job["metadata"]["deletionTimestamp"]) > grace + LEAVING_SECONDS:
        cause = "cancelled; a node that does not answer still holds a pod of it"
        return BackendState(state=RunState.CANCELLED, word="ended", reason=conclude(run, RunState.CANCELLED, cause).cause)
    return BackendState(state=RunState.RUNNING, word="Terminating", reason="checkpointing before it stops", handle=handle)


def _settle(run: RunDir, seen: Seen, end: Mapping[str, Any], outcome: Outcome | None) -> BackendState:
    """A Job that ended without a word of ours."""
    word = str(end["type"])
    if time.time() - seconds_of(end.get("lastTransitionTime")) < SETTLE_SECONDS and has_agents(run) and outcome is None:
        return BackendState(state=RunState.RUNNING, word=word, reason="ended; its outcome is awaited")
    said = ": ".join(str(each) for each in (end.get("reason"), end.get("message")) if each)
    state = RunState.CANCELLED if run.cancel_requested else RunState.FAILED
    settled = conclude(run, state, with_remedy(f"Kubernetes says {word}{f' ({said})' if said else ''}"))
    return BackendState(state=settled.state, word=word, reason=settled.cause)
