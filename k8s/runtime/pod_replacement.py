"""Makes Kubernetes replace lost pods immediately, no matter how often pods were lost before.

The Job controller delays a successor by 10, 20, 40, 80 s and so on, doubling with each failure and never resetting. It computes
the delay from the failed pod's status, which the run's other pods may backdate: then the successor starts 2.0 to 2.7 s later,
after the fourth failure as after the first. The pod of a dead node is deleted and stays Terminating; if it were only marked as
Failed, its resources on the dead node would count as free, and the scheduler would place the successor there (43 s instead of 11,
measured). Alternatives were worse: a JobSet restarts every pod, and a dead node blocks it until someone intervenes; a new Job per
attempt would lose its place in the queue.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ropewalk.k8s.api.client import ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.runtime.membership import Member
from ropewalk.k8s.runtime.pod_status import (
    DEAD,
    LEAVING,
    backdated_termination,
    is_backdated,
    is_declared_dead,
    is_machine_lost,
    is_over,
)
from ropewalk.k8s.runtime.timings import (
    BACKDATED_WATCH_SECONDS,
    CRASH_SECONDS,
    MACHINE_POLL_SECONDS,
    MACHINE_WATCH_SECONDS,
    REPLACEMENT_AWAY_POLL_SECONDS,
    REPLACEMENT_POLL_SECONDS,
)

log = logging.getLogger(__name__)


@dataclass
class _LostPod:
    """A pod to be replaced."""

    name: str
    uid: str
    dead_at: float  # monotonic time at which it is declared dead unless it has ended by then
    declared_dead: bool = False
    backdated_at: float = 0.0
    machine_lost: bool = False  # Kubernetes reports that the pod's node failed
    next_look: float = 0.0


class PodReplacer:
    """Watches lost pods in a thread until their successors are about to start, and which nodes failed under them."""

    def __init__(self, api: InClusterApi, on_machine_lost: Callable[[str], None]) -> None:
        self._api, self._on_machine_lost = api, on_machine_lost
        self._lost: dict[str, _LostPod] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="replacing", daemon=True).start()

    def replace(self, member: Member, grace_seconds: float) -> None:
        """Replace a member that is leaving or lost. A leaving pod gets time to save; one that disappeared is dead."""
        wait = grace_seconds if member.leaving else 0.0 if member.silent else CRASH_SECONDS
        self.declare_dead(member.pod.name, member.pod.uid, wait)

    def declare_dead(self, name: str, uid: str, in_seconds: float = 0.0) -> None:
        """Replace a pod after some seconds unless it has reconnected, even if its node does not report its end."""
        with self._lock:
            self._lost.setdefault(uid, _LostPod(name, uid, time.monotonic() + in_seconds))

    def try_return(self, uid: str) -> bool:
        """Accept a pod that has reconnected. Returns False if it was already declared dead and is being deleted."""
        with self._lock:
            if uid in self._lost and self._lost[uid].declared_dead:
                return False
            self._lost.pop(uid, None)
            return True

    def _declare(self, lost: _LostPod) -> bool:
        """Mark a pod as declared dead. Returns False if it has reconnected in the meantime."""
        with self._lock:
            lost.declared_dead = lost.uid in self._lost
            return lost.declared_dead

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        pause = REPLACEMENT_POLL_SECONDS
        while not self._closed.wait(pause):
            pause = REPLACEMENT_POLL_SECONDS
            with self._lock:
                lost_pods = list(self._lost.values())
            for each in lost_pods:
                try:
                    done = self._process(each)
                except ApiError as error:
                    log.warning("cannot reset the Job's back-off for lost pod %s: %s", each.name, error)
                    pause = REPLACEMENT_AWAY_POLL_SECONDS
                    continue
                if done:
                    with self._lock:
                        self._lost.pop(each.uid, None)

    def _process(self, lost: _LostPod) -> bool:
        """Check a pod once. Returns True if nothing more needs to be done."""
        if time.monotonic() < lost.next_look:
            return False
        pod, now = self._api.pod(lost.name), time.monotonic()
        if pod is None or pod["metadata"]["uid"] != lost.uid or pod["status"].get("phase") == "Succeeded":
            return True
        if is_backdated(pod):
            lost.backdated_at = lost.backdated_at or now  # possibly done by an earlier leader
            if is_machine_lost(pod) and not lost.machine_lost:
                lost.machine_lost = True
                self._on_machine_lost(str(pod["spec"].get("nodeName", "")))
            if is_declared_dead(pod):
                lost.next_look = now + (MACHINE_POLL_SECONDS if now - lost.backdated_at > BACKDATED_WATCH_SECONDS else 0.0)
                return now - lost.backdated_at > MACHINE_WATCH_SECONDS
            # the node of a pod that is still saving will report its end and restart the delay
            return is_over(pod) and now - lost.backdated_at > BACKDATED_WATCH_SECONDS
        if not is_over(pod) and now >= lost.dead_at:
            if not self._declare(lost):
                return True
            self._mark_lost(pod)
        elif is_over(pod) or "deletionTimestamp" in pod["metadata"]:  # the successor may start while this pod saves
            self._api.patch_pod_status(lost.name, backdated_termination(pod, LEAVING))
        else:
            return False
        lost.backdated_at = now
        return False

    def _mark_lost(self, pod: Object) -> None:
        """Delete a dead pod. It keeps its place on the node, so that its successor is scheduled elsewhere.

        Kubernetes notices later that the node is dead (after 50 s by default).
        """
        name, status = pod["metadata"]["name"], backdated_termination(pod, DEAD)
        log.warning("pod %s is declared dead", name)
        try:
            self._api.delete_pod(name, pod["metadata"]["uid"])
        except ApiError as error:
            if not isinstance(error, ForbiddenError):
                raise
            log.warning("pod %s cannot be deleted and is marked as failed instead: %s", name, error)
            status["phase"] = "Failed"
        self._api.patch_pod_status(name, status)


def release_stuck_pods(api: InClusterApi) -> None:
    """Delete dead pods that their nodes could not end, because they would keep the Job of a finished run active."""
    try:
        for pod in api.pods():
            if is_declared_dead(pod):
                name = pod["metadata"]["name"]
                api.patch_pod_status(name, {"phase": "Failed"})
                api.delete_pod(name, pod["metadata"]["uid"], at_once=True)
    except ApiError as error:
        log.warning("a dead pod may keep the Job active until its node is back: %s", error)
