"""Reads a pod's description: whether it is alive, why it is being deleted; backdates its end to reset the Job's back-off."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ropewalk.cluster.run.node_ledger import NODE_VARIABLE
from ropewalk.cluster.spec import StopReason
from ropewalk.k8s.api.objects import Object

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
LONG_AGO = "2020-01-01T00:00:00Z"  # longer ago than the Job controller ever waits
DEAD, LEAVING = "NodeLost", "Leaving"  # reasons for a container's end that its node has not reported
# reasons of the condition DisruptionTarget in plain words; messages contain the original word as well
DISRUPTIONS = {
    "PreemptionByScheduler": StopReason.PREEMPTED,
    "DeletionByTaintManager": "its node does not answer or is tainted",
    "EvictionByEvictionAPI": "evicted, as by a drain of its node",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node shuts down or is short of something",
}

MACHINE_LOST = ("DeletionByTaintManager", "DeletionByPodGC")


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A pod of a run's Job, as it describes itself."""

    name: str
    uid: str
    index: int
    address: str
    machine: str = ""  # name of its node in Kubernetes

    @classmethod
    def this(cls, environment: Mapping[str, str] = os.environ) -> "Pod":
        """Return this pod from the variables that the manifest sets."""
        return cls(
            name=environment["POD_NAME"],
            uid=environment["POD_UID"],
            index=int(environment["JOB_COMPLETION_INDEX"]),
            address=environment["POD_IP"],
            machine=environment.get(NODE_VARIABLE, ""),
        )


def index_of(pod: Object) -> int:
    """Return the pod's index in the Job; -1 if it has none."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION, -1))


def is_alive(pod: Object) -> bool:
    """Return True if the pod runs and is not being deleted."""
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def is_over(pod: Object) -> bool:
    """Return True if all processes of the pod have ended."""
    return pod["status"].get("phase") in {"Failed", "Succeeded"}


def disruption_reason(pod: Object | None, job: Object | None) -> str:
    """Return why a pod is being deleted, from its description and its Job's."""
    if job is None or "deletionTimestamp" in job["metadata"]:
        return StopReason.CANCELLED  # users end a run by deleting its Job
    if job["spec"].get("suspend") or _suspended_since(pod, job):
        return StopReason.PREEMPTED  # queues reclaim nodes by suspending the Job
    for condition in (pod or {}).get("status", {}).get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            reason = DISRUPTIONS.get(condition["reason"], "")
            return reason if reason == StopReason.PREEMPTED else f"{reason or 'taken away'} ({condition['reason']})"
    return "its pod was deleted"


def _suspended_since(pod: Object | None, job: Object) -> bool:
    """Return True if the Job was suspended after the pod was created, even if it was resumed since, with fewer nodes."""
    status = job.get("status", {})
    if any(each["type"] == "Suspended" and each["status"] == "True" for each in status.get("conditions") or []):
        return True
    created = str(pod["metadata"].get("creationTimestamp") or "") if pod else ""
    return created != "" and (status.get("startTime") or "") > created  # resuming resets startTime; timestamps sort as text


def backdated_termination(pod: Object, reason: str) -> Object:
    """Return a status with which the Job controller replaces an ended or deleted pod immediately.

    The controller delays the successor by 10 s, then 20, 40 ... 600, counted from the end of the index's last pod, and never
    resets the delay. `reason` is set for containers whose end the node has not reported.
    """
    end = {"exitCode": 137, "reason": reason, "message": "reported by the run's other pods"}
    statuses = [
        {**each, "ready": False, "started": False, "state": {"terminated": {**_terminated(each, end)}}}
        for each in pod["status"].get("containerStatuses", [])
    ]
    conditions = [
        {**each, "status": "False", "lastTransitionTime": LONG_AGO} if each["type"] == "Ready" else each
        for each in pod["status"].get("conditions", [])
    ]
    return {"containerStatuses": statuses, "conditions": conditions}


def _terminated(status: Object, default: Object) -> Object:
    terminated = status.get("state", {}).get("terminated") or default
    return {**terminated, "startedAt": LONG_AGO, "finishedAt": LONG_AGO}


def is_backdated(pod: Object) -> bool:
    """Return True if the pod's status is that of `backdated_termination`."""
    ends = [end.get("finishedAt") for end in _ends(pod)]
    return (is_over(pod) or "deletionTimestamp" in pod["metadata"]) and all(end == LONG_AGO for end in ends)


def is_declared_dead(pod: Object) -> bool:
    """Return True if the run's other pods have declared the pod dead and its node has not reported its end."""
    return not is_over(pod) and any(end.get("reason") == DEAD for end in _ends(pod))


def is_machine_lost(pod: Object) -> bool:
    """Return True if Kubernetes removes a pod that was declared dead, because its node does not answer or is gone."""
    conditions = pod["status"].get("conditions") or []
    return is_declared_dead(pod) and any(
        each["type"] == "DisruptionTarget" and each["status"] == "True" and each.get("reason") in MACHINE_LOST
        for each in conditions
    )


def _ends(pod: Object) -> list[Object]:
    return [each.get("state", {}).get("terminated", {}) for each in pod["status"].get("containerStatuses", [])]
