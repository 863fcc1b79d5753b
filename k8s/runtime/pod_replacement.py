"""See to it that pods which are gone are replaced at once, at the hundredth time as at the first.

The Job controller pauses before a successor, and doubles its pause for ever: 10, 20, 40, 80 s. It computes it from the
failed pod's own status, which a survivor may set into the past: then the successor runs 2.0 to 2.7 s later, at the fourth
failure as at the first. A dead node's pod is deleted too, and stays Terminating: were it only declared Failed, its room on
the dead node would count as free, and the scheduler would put the successor there (43 s instead of 11, measured). A JobSet
starts every pod anew, and a dead node blocks it until a person comes; a fresh Job an attempt would lose its place in the queue.
"""

import logging
import threading
import time
from dataclasses import dataclass

from k8s.api.client import ApiError, ForbiddenError
from k8s.api.in_cluster import InClusterApi
from k8s.api.objects import Object
from k8s.runtime.membership import Member
from k8s.runtime.pod_status import DEAD, LEAVING, declared_dead, hurried, long_ended, over

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.3
MISSING_LOOK_SECONDS = 5.0  # while the API server is away, or says no
CRASH_SECONDS = 5.0  # what a node may take to see that a pod has ended
STAND_SECONDS = 20.0  # how long a hurried pod is watched: its node may write its own view of it once more


@dataclass
class _Gone:
    """A pod to be replaced."""

    name: str
    uid: str
    dead_at: float  # when it is declared dead unless it has ended by then, by the monotonic clock
    declared_dead: bool = False
    hurried_at: float = 0.0


class Replacing:
    """Looks after pods that have gone, in a thread of its own, until their successors are under way."""

    def __init__(self, api: InClusterApi) -> None:
        self._api = api
        self._gone: dict[str, _Gone] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="replacing", daemon=True).start()

    def see_to(self, member: Member, grace_seconds: float) -> None:
        """A member goes, or has gone. One that was asked to go may still be saving; one that was not is dead."""
        wait = grace_seconds if member.leaving else 0.0 if member.silent else CRASH_SECONDS
        self.declare_dead(member.pod.name, member.pod.uid, wait)

    def declare_dead(self, name: str, uid: str, in_seconds: float = 0.0) -> None:
        """The pod is to be replaced, whether its node says that it has ended or not."""
        with self._lock:
            self._gone.setdefault(uid, _Gone(name, uid, time.monotonic() + in_seconds))

    def returned(self, uid: str) -> bool:
        """A pod is there. Whether it stays: one that was declared dead before it came back is deleted already."""
        with self._lock:
            if uid in self._gone and self._gone[uid].declared_dead:
                return False
            self._gone.pop(uid, None)
            return True

    def _declare(self, gone: _Gone) -> bool:
        """Whether it has not come back meanwhile."""
        with self._lock:
            gone.declared_dead = gone.uid in self._gone
            return gone.declared_dead

    def close(self) -> None:
        """Leave them to themselves."""
        self._closed.set()

    def _run(self) -> None:
        pause = LOOK_SECONDS
        while not self._closed.wait(pause):
            pause = LOOK_SECONDS
            with self._lock:
                gone = list(self._gone.values())
            for each in gone:
                try:
                    done = self._tend(each)
                except ApiError as error:
                    log.warning("pod %s is gone, and the Job's back-off cannot be reset: %s", each.name, error)
                    pause = MISSING_LOOK_SECONDS
                    continue
                if done:
                    with self._lock:
                        self._gone.pop(each.uid, None)

    def _tend(self, gone: _Gone) -> bool:
        """Look once; True: nothing more needs to be done."""
        pod, now = self._api.pod(gone.name), time.monotonic()
        if pod is None or pod["metadata"]["uid"] != gone.uid or pod["status"].get("phase") == "Succeeded":
            return True
        if hurried(pod):
            gone.hurried_at = gone.hurried_at or now  # an earlier carrier may have done it
            # the node of one that still saves will tell of its end, and begin the pause anew
            return (over(pod) or declared_dead(pod)) and now - gone.hurried_at > STAND_SECONDS
        if not over(pod) and now >= gone.dead_at:
            if not self._declare(gone):
                return True
            self._bury(pod)
        elif over(pod) or "deletionTimestamp" in pod["metadata"]:  # its successor may start while it saves
            self._api.patch_pod_status(gone.name, long_ended(pod, LEAVING))
        else:
            return False
        gone.hurried_at = now
        return False

    def _bury(self, pod: Object) -> None:
        """A dead pod is deleted, and stays where it is: so its successor is not put on the same node, of whose death
        Kubernetes learns later (50 s, where nobody has changed it).
        """
        name, status = pod["metadata"]["name"], long_ended(pod, DEAD)
        log.warning("pod %s is declared dead", name)
        try:
            self._api.delete_pod(name, pod["metadata"]["uid"])
        except ApiError as error:
            if not isinstance(error, ForbiddenError):
                raise
            log.warning("it can only be declared failed: %s", error)
            status["phase"] = "Failed"
        self._api.patch_pod_status(name, status)


def let_go(api: InClusterApi) -> None:
    """The run is over: dead pods that their nodes could not end must not keep its Job from ending."""
    try:
        for pod in api.pods():
            if declared_dead(pod):
                name = pod["metadata"]["name"]
                api.patch_pod_status(name, {"phase": "Failed"})
                api.delete_pod(name, pod["metadata"]["uid"], at_once=True)
    except ApiError as error:
        log.warning("a dead pod may keep the Job from ending until its node is back: %s", error)
