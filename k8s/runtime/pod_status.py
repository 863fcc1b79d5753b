"""What a pod's description says: whether it lives, why it has to go, and how the back-off of its successor is reset."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ropewalk.cluster.spec import StopReason
from ropewalk.k8s.api.objects import Object

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
LONG_AGO = "2020-01-01T00:00:00Z"  # longer than the Job controller ever waits
DEAD, LEAVING = "NodeLost", "Leaving"  # reasons of a container's end that its node has not reported
# reasons of the condition DisruptionTarget, in plain words; Kubernetes' own word is kept beside them
DISRUPTIONS = {
    "PreemptionByScheduler": StopReason.PREEMPTED,
    "DeletionByTaintManager": "its node does not answer or is tainted",
    "EvictionByEvictionAPI": "evicted, as by a drain of its node",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node shuts down or is short of something",
}


@dataclass(frozen=True, kw_only=True)
class Pod:
    """One pod of a run's Job, as it describes itself."""

    name: str
    uid: str
    index: int
    address: str

    @classmethod
    def this(cls, environment: Mapping[str, str] = os.environ) -> "Pod":
        """This pod, of the variables that the manifest sets."""
        return cls(
            name=environment["POD_NAME"],
            uid=environment["POD_UID"],
            index=int(environment["JOB_COMPLETION_INDEX"]),
            address=environment["POD_IP"],
        )


def index_of(pod: Object) -> int:
    """The pod's index in the Job; -1: it has none."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION, -1))


def alive(pod: Object) -> bool:
    """Whether the pod runs, and was not asked to go."""
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def over(pod: Object) -> bool:
    """Whether none of the pod's processes is left."""
    return pod["status"].get("phase") in {"Failed", "Succeeded"}


def disruption_reason(pod: Object | None, job: Object | None) -> str:
    """Why a pod has to go, by what Kubernetes says of it and of its Job."""
    if job is None or "deletionTimestamp" in job["metadata"]:
        return StopReason.CANCELLED  # deleting the Job is a person's way to end a run
    if job["spec"].get("suspend") or _suspended_since(pod, job):
        return StopReason.PREEMPTED  # this is how queues take the nodes away
    for condition in (pod or {}).get("status", {}).get("conditions", []):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            words = DISRUPTIONS.get(condition["reason"], "")
            return words if words == StopReason.PREEMPTED else f"{words or 'taken away'} ({condition['reason']})"
    return "its pod was deleted"


def _suspended_since(pod: Object | None, job: Object) -> bool:
    """Whether a pod's Job was suspended after the pod was made, and perhaps resumed at once, on the nodes that are left to it."""
    status = job.get("status", {})
    if any(each["type"] == "Suspended" and each["status"] == "True" for each in status.get("conditions") or []):
        return True
    made = str(pod["metadata"].get("creationTimestamp") or "") if pod else ""
    return made != "" and (status.get("startTime") or "") > made  # a resumed Job starts anew; these texts sort as times do


def backdated_termination(pod: Object, reason: str) -> Object:
    """A status by which the Job controller replaces a pod that is over or being deleted at once, and not after a pause.

    The controller counts an index's pause from the end of its last pod: 10 s, then 20, 40 ... 600, of which it forgets none.
    `reason` is written for containers whose node has not reported their end.
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


def _terminated(status: Object, otherwise: Object) -> Object:
    said = status.get("state", {}).get("terminated") or otherwise
    return {**said, "startedAt": LONG_AGO, "finishedAt": LONG_AGO}


def is_backdated(pod: Object) -> bool:
    """Whether `backdated_termination` was written into the pod's status, and stands."""
    ends = [end.get("finishedAt") for end in _ends(pod)]
    return (over(pod) or "deletionTimestamp" in pod["metadata"]) and all(end == LONG_AGO for end in ends)


def is_declared_dead(pod: Object) -> bool:
    """Whether the run's other pods have declared the pod dead, and its node has not said that it ended."""
    return not over(pod) and any(end.get("reason") == DEAD for end in _ends(pod))


def _ends(pod: Object) -> list[Object]:
    return [each.get("state", {}).get("terminated", {}) for each in pod["status"].get("containerStatuses", [])]
