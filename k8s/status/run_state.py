"""Derives a run's state from its Job in Kubernetes and its run directory. Writes nothing."""

import json
import time
from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.backends.recovery import SETTLE_SECONDS, has_agents, lost_state, missing_outcome, unsubmitted_state
from ropewalk.cluster.backends.submission import PATIENCE_SECONDS, is_over
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.k8s.api.objects import Object, end_of, seconds_of
from ropewalk.k8s.names import OUTCOME_ANNOTATION, QUEUE_LABEL
from ropewalk.k8s.status.observe import Observation
from ropewalk.k8s.status.pending_reasons import PendingReason, pod_reason, reason_of_events, with_remedy, workload_reason

LEAVING_SECONDS = 60.0  # after the grace period a Job that is being deleted counts as gone


def run_state(run: RunDir, observation: Observation) -> BackendState:
    """Return the run's state, and the reason if it waits."""
    attempts = run.attempts()
    if not attempts:
        return unsubmitted_state(run)
    outcome = run.outcome(attempts[-1])
    if outcome is None or not outcome.state.final:
        outcome = unrecorded_outcome(run, observation) or outcome
    if outcome is not None and outcome.state.final:
        return BackendState(state=outcome.state, word="ended", reason=outcome.cause)
    if observation.job is None:
        return _state_without_job(run, observation.details, outcome)
    handle = handle_of(observation.job)
    if "deletionTimestamp" in observation.job["metadata"]:
        return BackendState(state=RunState.RUNNING, word="Terminating", reason="checkpointing before it stops", handle=handle)
    if end := end_of(observation.job):
        return BackendState(state=RunState.RUNNING, word=str(end["type"]), reason="ended; waiting for its outcome")
    if outcome is None and has_agents(run) and not observation.job["spec"].get("suspend"):
        return BackendState(state=RunState.RUNNING, word="Running", handle=handle)
    waiting_state, reason = _waiting_state(run, outcome), pending_reason(observation)
    if reason is None:
        state = RunState.RUNNING if _all_ready(observation.job) and waiting_state is RunState.PENDING else waiting_state
        return BackendState(state=state, word=_word(observation.job), handle=handle)
    return BackendState(state=waiting_state, word=reason.word, reason=str(reason), handle=handle)


def unrecorded_outcome(run: RunDir, observation: Observation) -> Outcome | None:
    """Return the outcome of a run that only Kubernetes knows; None if the run has not ended or recorded its outcome itself."""
    attempts = run.attempts()
    outcome = run.outcome(attempts[-1]) if attempts else None
    if not attempts or (outcome is not None and outcome.state.final):
        return None
    if (annotated := outcome_on(observation.job)) is not None:
        return annotated
    if observation.job is None:
        cause = "cancelled; its Job was gone" if outcome is None else "cancelled while waiting"
        return missing_outcome(run, RunState.CANCELLED, cause) if run.cancel_requested else None
    if "deletionTimestamp" in observation.job["metadata"]:
        return _outcome_of_stuck_deletion(run, observation.job)
    if end := end_of(observation.job):
        awaited = outcome is None and has_agents(run) and time.time() - seconds_of(end.get("lastTransitionTime")) < SETTLE_SECONDS
        return None if awaited else _outcome_of_job(run, end)
    if never_starts(run, observation):
        return missing_outcome(run, RunState.FAILED, f"never started: {pending_reason(observation)}")
    return None


def never_starts(run: RunDir, observation: Observation) -> bool:
    """Return True if the run has not started and never will. Its Job, which has not ended, is useless then."""
    job, outcome = observation.job, run.last_outcome()
    if job is None or end_of(job) is not None or "deletionTimestamp" in job["metadata"]:
        return False
    reason = pending_reason(observation) if _waiting_state(run, outcome) is RunState.PENDING else None
    return reason is not None and reason.permanent


def ended_unseen(run: RunDir, observation: Observation) -> bool:
    """Return True if its Job has ended or is gone and no file or object visible here has the outcome."""
    if not run.attempts() or is_over(run) or outcome_on(observation.job) is not None:
        return False
    if observation.job is None:
        return run.cancel_requested or time.time() - float(observation.details.get("created") or 0) > PATIENCE_SECONDS
    return end_of(observation.job) is not None


def pending_reason(observation: Observation) -> PendingReason | None:
    """Return the reason why the run does not start, if there is one; permanent reasons come first."""
    if observation.job is not None and observation.job["spec"].get("suspend"):
        if observation.workload is not None:
            return workload_reason(observation.workload)
        if queue := observation.job["metadata"]["labels"].get(QUEUE_LABEL):
            return PendingReason(word="Queued", message=f"queue {queue} has not considered it yet")
        return _suspension_reason(observation)
    by_pod: dict[str, list[Object]] = {}
    for event in observation.events:
        by_pod.setdefault(event["involvedObject"]["name"], []).append(event)
    newest_first = sorted(observation.pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)
    all_reasons = [pod_reason(pod, by_pod.get(pod["metadata"]["name"], ())) for pod in newest_first]
    reasons = sorted((each for each in all_reasons if each), key=lambda each: not each.permanent)
    if reasons:
        return reasons[0]
    if observation.job is None or observation.pods or _all_ready(observation.job):
        return None
    return reason_of_events(by_pod.get(observation.job["metadata"]["name"], ()))


def _suspension_reason(observation: Observation) -> PendingReason:
    """Return the reason why a Job is suspended that no queue has suspended."""
    if observation.after:
        return PendingReason(word="Dependency", message=f"waits for {' and '.join(observation.after)}")
    if at_once := observation.details.get("at_once"):
        message = f"only {at_once} of the runs that were submitted with it run at a time"
        return PendingReason(word="Turn", message=message)
    if others := observation.details.get("after"):
        message = f"its dependencies have ended ({', '.join(others)}); the pod of its release controller starts it"
        return PendingReason(word="Dependency", message=message, remedy="if that takes over a minute, `cancel` and `resume` it")
    remedy = "set its spec.suspend to false with `kubectl patch`"
    return PendingReason(word="Suspended", message="someone has suspended its Job", remedy=remedy)


def outcome_on(job: Object | None) -> Outcome | None:
    """Return the outcome that a run's pods have written to its Job.

    Other pods of the namespace may be able to write there too, so it counts only after the Job has ended or was deleted.
    """
    if job is None or (end_of(job) is None and "deletionTimestamp" not in job["metadata"]):
        return None
    text = (job["metadata"].get("annotations") or {}).get(OUTCOME_ANNOTATION)
    if not text:
        return None
    raw = json.loads(text)
    return Outcome(**{**raw, "state": RunState(raw["state"])})


def handle_of(job: Object) -> str:
    """Return a Job's handle: k8s:NAMESPACE/NAME."""
    return f"k8s:{job['metadata']['namespace']}/{job['metadata']['name']}"


def _waiting_state(run: RunDir, outcome: Outcome | None) -> RunState:
    """Return the state of a run that does not run: PENDING before its first start, else REQUEUED."""
    begun = outcome is not None or len(run.attempts()) > 1 or has_agents(run)
    return RunState.REQUEUED if begun else RunState.PENDING


def _all_ready(job: Object) -> bool:
    return bool((job.get("status") or {}).get("ready", 0) >= job["spec"].get("parallelism", 1))


def _word(job: Object) -> str:
    status = job.get("status") or {}
    if job["spec"].get("suspend"):
        return "Suspended"
    return "Running" if _all_ready(job) else f"{status.get('ready', 0)}/{job['spec'].get('parallelism', 1)} pods ready"


def _state_without_job(run: RunDir, details: Mapping[str, Any], outcome: Outcome | None) -> BackendState:
    if outcome is None and time.time() - float(details.get("created") or 0) < PATIENCE_SECONDS and not has_agents(run):
        return BackendState(state=RunState.PENDING, word="submitting")
    return lost_state(run, f"Kubernetes no longer has Job {details.get('name') or 'of it'}, and it left no final outcome")


def _outcome_of_stuck_deletion(run: RunDir, job: Object) -> Outcome | None:
    """Return the outcome of a run whose Job is being deleted for longer than its pods may take to exit."""
    grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    # the timestamp is the time of the deletion request
    if time.time() - seconds_of(job["metadata"]["deletionTimestamp"]) <= grace + LEAVING_SECONDS:
        return None
    return missing_outcome(run, RunState.CANCELLED, "cancelled; an unreachable node still holds one of its pods")


def _outcome_of_job(run: RunDir, end: Mapping[str, Any]) -> Outcome:
    """Return the outcome of a run whose Job ended before a pod could record one, with Kubernetes' message."""
    details = ": ".join(str(each) for each in (end.get("reason"), end.get("message")) if each)
    state = RunState.CANCELLED if run.cancel_requested else RunState.FAILED
    message = f"Kubernetes reports {end['type']}{f' ({details})' if details else ''}"
    return missing_outcome(run, state, with_remedy(message))
