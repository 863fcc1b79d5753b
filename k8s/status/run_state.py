"""What became of a run, by what Kubernetes shows of its Job and by what lies in its directory. Writes nothing."""

import json
import time
from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import SETTLE_SECONDS, end_without_word, has_agents, lost, never_submitted
from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, is_over
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.k8s.api.objects import Object, end_of, seconds_of
from ropewalk.k8s.names import OUTCOME_ANNOTATION, QUEUE_LABEL
from ropewalk.k8s.status.observe import Observation
from ropewalk.k8s.status.pending_reasons import PendingReason, pod_reason, reason_of_events, with_remedy, workload_reason

LEAVING_SECONDS = 60.0  # beyond its grace period, before a Job that is being deleted is taken for gone


def run_state(run: RunDir, seen: Observation) -> BackendState:
    """The run's state, and why it waits if it does."""
    attempts = run.attempts()
    if not attempts:
        return never_submitted(run)
    outcome = run.outcome(attempts[-1])
    if outcome is None or not outcome.state.final:
        outcome = unwritten_end(run, seen) or outcome
    if outcome is not None and outcome.state.final:
        return BackendState(state=outcome.state, word="ended", reason=outcome.cause)
    if seen.job is None:
        return _without_job(run, seen.details, outcome)
    handle = handle_of(seen.job)
    if "deletionTimestamp" in seen.job["metadata"]:
        return BackendState(state=RunState.RUNNING, word="Terminating", reason="checkpointing before it stops", handle=handle)
    if end := end_of(seen.job):
        return BackendState(state=RunState.RUNNING, word=str(end["type"]), reason="ended; its outcome is awaited")
    if outcome is None and has_agents(run) and not seen.job["spec"].get("suspend"):
        return BackendState(state=RunState.RUNNING, word="Running", handle=handle)
    waits, reason = _waits_as(run, outcome), pending_reason(seen)
    if reason is None:
        state = RunState.RUNNING if _all_ready(seen.job) and waits is RunState.PENDING else waits
        return BackendState(state=state, word=_word(seen.job), handle=handle)
    return BackendState(state=waits, word=reason.word, reason=str(reason), handle=handle)


def unwritten_end(run: RunDir, seen: Observation) -> Outcome | None:
    """How the run has ended, where only Kubernetes knows it; None where it has not, or its directory says how."""
    attempts = run.attempts()
    outcome = run.outcome(attempts[-1]) if attempts else None
    if not attempts or (outcome is not None and outcome.state.final):
        return None
    if (told := outcome_on(seen.job)) is not None:
        return told
    if seen.job is None:
        cause = "cancelled; it had no Job any more" if outcome is None else "cancelled while it waited"
        return end_without_word(run, RunState.CANCELLED, cause) if run.cancel_requested else None
    if "deletionTimestamp" in seen.job["metadata"]:
        return _held_by_a_dead_node(run, seen.job)
    if end := end_of(seen.job):
        awaited = outcome is None and has_agents(run) and time.time() - seconds_of(end.get("lastTransitionTime")) < SETTLE_SECONDS
        return None if awaited else _ended_without_word(run, end)
    if never_starts(run, seen):
        return end_without_word(run, RunState.FAILED, f"never started: {pending_reason(seen)}")
    return None


def never_starts(run: RunDir, seen: Observation) -> bool:
    """Whether the run has not started and no waiting helps: its Job, which has not ended, serves nothing any more."""
    job, outcome = seen.job, run.last_outcome()
    if job is None or end_of(job) is not None or "deletionTimestamp" in job["metadata"]:
        return False
    reason = pending_reason(seen) if _waits_as(run, outcome) is RunState.PENDING else None
    return reason is not None and reason.permanent


def ended_unseen(run: RunDir, seen: Observation) -> bool:
    """Whether its Job has ended or is gone, and nothing that this machine sees tells how the run has."""
    if not run.attempts() or is_over(run) or outcome_on(seen.job) is not None:
        return False
    if seen.job is None:
        return run.cancel_requested or time.time() - float(seen.details.get("created") or 0) > PATIENCE_SECONDS
    return end_of(seen.job) is not None


def pending_reason(seen: Observation) -> PendingReason | None:
    """What keeps the run from starting, if anything does; what no waiting mends comes first."""
    if seen.job is not None and seen.job["spec"].get("suspend"):
        if seen.workload is not None:
            return workload_reason(seen.workload)
        if queue := seen.job["metadata"]["labels"].get(QUEUE_LABEL):
            return PendingReason(word="Queued", said=f"queue {queue} has not looked at it yet")
        return _held(seen)
    by_pod: dict[str, list[Object]] = {}
    for event in seen.events:
        by_pod.setdefault(event["involvedObject"]["name"], []).append(event)
    newest_first = sorted(seen.pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)
    found = [pod_reason(pod, by_pod.get(pod["metadata"]["name"], ())) for pod in newest_first]
    reasons = sorted((each for each in found if each), key=lambda each: not each.permanent)
    if reasons:
        return reasons[0]
    if seen.job is None or seen.pods or _all_ready(seen.job):
        return None
    return reason_of_events(by_pod.get(seen.job["metadata"]["name"], ()))


def _held(seen: Observation) -> PendingReason:
    """Why the Job is suspended that no queue has suspended."""
    if seen.after:
        return PendingReason(word="Dependency", said=f"it waits for {' and '.join(seen.after)}")
    if at_once := seen.details.get("at_once"):
        return PendingReason(word="Turn", said=f"{at_once} of the runs that were submitted with it run at a time")
    if others := seen.details.get("after"):
        said = f"what it waited for has ended ({', '.join(others)}); its release controller, a pod, starts it"
        return PendingReason(word="Dependency", said=said, remedy="`cancel` and `resume` it if that takes more than a minute")
    remedy = "`kubectl patch` its spec.suspend to false"
    return PendingReason(word="Suspended", said="somebody has suspended its Job", remedy=remedy)


def outcome_on(job: Object | None) -> Outcome | None:
    """The outcome that a run's pods have left on its Job.

    Other pods of the namespace may be able to write there too: it counts once the Job has ended, or somebody has deleted it.
    """
    if job is None or (end_of(job) is None and "deletionTimestamp" not in job["metadata"]):
        return None
    text = (job["metadata"].get("annotations") or {}).get(OUTCOME_ANNOTATION)
    if not text:
        return None
    raw = json.loads(text)
    return Outcome(**{**raw, "state": RunState(raw["state"])})


def handle_of(job: Object) -> str:
    """A Job's handle: k8s:NAMESPACE/NAME."""
    return f"k8s:{job['metadata']['namespace']}/{job['metadata']['name']}"


def _waits_as(run: RunDir, outcome: Outcome | None) -> RunState:
    """What a run that does not run is: it has never begun, or goes on after an attempt."""
    begun = outcome is not None or len(run.attempts()) > 1 or has_agents(run)
    return RunState.REQUEUED if begun else RunState.PENDING


def _all_ready(job: Object) -> bool:
    return bool((job.get("status") or {}).get("ready", 0) >= job["spec"].get("parallelism", 1))


def _word(job: Object) -> str:
    status = job.get("status") or {}
    if job["spec"].get("suspend"):
        return "Suspended"
    return "Running" if _all_ready(job) else f"{status.get('ready', 0)}/{job['spec'].get('parallelism', 1)} pods ready"


def _without_job(run: RunDir, details: Mapping[str, Any], outcome: Outcome | None) -> BackendState:
    if outcome is None and time.time() - float(details.get("created") or 0) < PATIENCE_SECONDS and not has_agents(run):
        return BackendState(state=RunState.PENDING, word="submitting")
    return lost(run, f"Kubernetes has no Job {details.get('name') or 'of it'} any more, and it left no final outcome")


def _held_by_a_dead_node(run: RunDir, job: Object) -> Outcome | None:
    """The end of a run whose Job is being deleted, by a cancel or by somebody's kubectl, for longer than its pods may take."""
    grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    # the timestamp is when the deletion was asked for
    if time.time() - seconds_of(job["metadata"]["deletionTimestamp"]) <= grace + LEAVING_SECONDS:
        return None
    return end_without_word(run, RunState.CANCELLED, "cancelled; a node that does not answer still holds a pod of it")


def _ended_without_word(run: RunDir, end: Mapping[str, Any]) -> Outcome:
    """The end of a run whose Job ended before a pod could write how, in Kubernetes' words."""
    said = ": ".join(str(each) for each in (end.get("reason"), end.get("message")) if each)
    state = RunState.CANCELLED if run.cancel_requested else RunState.FAILED
    return end_without_word(run, state, with_remedy(f"Kubernetes says {end['type']}{f' ({said})' if said else ''}"))
