"""Have Kubernetes replace pods that are gone at once, at the hundredth time as at the first.

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

from ropewalk.k8s.api.client import ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.runtime.membership import Member
from ropewalk.k8s.runtime.pod_status import DEAD, LEAVING, backdated_termination, is_backdated, is_declared_dead, over
from ropewalk.k8s.runtime.timings import (
    BACKDATED_WATCH_SECONDS,
    CRASH_SECONDS,
    REPLACEMENT_AWAY_POLL_SECONDS,
    REPLACEMENT_POLL_SECONDS,
)

log = logging.getLogger(__name__)


@dataclass
class _Gone:
    """A pod to be replaced."""

    name: str
    uid: str
    dead_at: float  # when it is declared dead unless it has ended by then, by the monotonic clock
    declared_dead: bool = False
    backdated_at: float = 0.0


class PodReplacer:
    """Watches pods that have gone, in a thread of its own, until their successors are under way."""

    def __init__(self, api: InClusterApi) -> None:
        self._api = api
        self._gone: dict[str, _Gone] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="replacing", daemon=True).start()

    def replace(self, member: Member, grace_seconds: float) -> None:
        """Replace a member that goes, or has gone. One that was asked to go may still be saving; one that was not is dead."""
        wait = grace_seconds if member.leaving else 0.0 if member.silent else CRASH_SECONDS
        self.declare_dead(member.pod.name, member.pod.uid, wait)

    def declare_dead(self, name: str, uid: str, in_seconds: float = 0.0) -> None:
        """Replace a pod, whether its node reports that it has ended or not; after some seconds, unless it has returned."""
        with self._lock:
            self._gone.setdefault(uid, _Gone(name, uid, time.monotonic() + in_seconds))

    def returned(self, uid: str) -> bool:
        """Note that a pod is there; False: it cannot stay, as it was declared dead before it came back, and is deleted."""
        with self._lock:
            if uid in self._gone and self._gone[uid].declared_dead:
                return False
            self._gone.pop(uid, None)
            return True

    def _declare(self, gone: _Gone) -> bool:
        """Mark a pod as declared dead; False: it has come back meanwhile."""
        with self._lock:
            gone.declared_dead = gone.uid in self._gone
            return gone.declared_dead

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _run(self) -> None:
        pause = REPLACEMENT_POLL_SECONDS
        while not self._closed.wait(pause):
            pause = REPLACEMENT_POLL_SECONDS
            with self._lock:
                gone = list(self._gone.values())
            for each in gone:
                try:
                    done = self._tend(each)
                except ApiError as error:
                    log.warning("pod %s is gone, and the Job's back-off cannot be reset: %s", each.name, error)
                    pause = REPLACEMENT_AWAY_POLL_SECONDS
                    continue
                if done:
                    with self._lock:
                        self._gone.pop(each.uid, None)

    def _tend(self, gone: _Gone) -> bool:
        """Look at a pod once; True: nothing more needs to be done."""
        pod, now = self._api.pod(gone.name), time.monotonic()
        if pod is None or pod["metadata"]["uid"] != gone.uid or pod["status"].get("phase") == "Succeeded":
            return True
        if is_backdated(pod):
            gone.backdated_at = gone.backdated_at or now  # an earlier leader may have done it
            # the node of one that still saves will tell of its end, and begin the pause anew
            return (over(pod) or is_declared_dead(pod)) and now - gone.backdated_at > BACKDATED_WATCH_SECONDS
        if not over(pod) and now >= gone.dead_at:
            if not self._declare(gone):
                return True
            self._mark_lost(pod)
        elif over(pod) or "deletionTimestamp" in pod["metadata"]:  # its successor may start while it saves
            self._api.patch_pod_status(gone.name, backdated_termination(pod, LEAVING))
        else:
            return False
        gone.backdated_at = now
        return False

    def _mark_lost(self, pod: Object) -> None:
        """Delete a dead pod; it stays on its node, so that its successor is not put there: Kubernetes learns later that the
        node is dead (after 50 s, where nobody has changed that).
        """
        name, status = pod["metadata"]["name"], backdated_termination(pod, DEAD)
        log.warning("pod %s is declared dead", name)
        try:
            self._api.delete_pod(name, pod["metadata"]["uid"])
        except ApiError as error:
            if not isinstance(error, ForbiddenError):
                raise
            log.warning("pod %s cannot be deleted, and is declared failed: %s", name, error)
            status["phase"] = "Failed"
        self._api.patch_pod_status(name, status)


def release_stuck_pods(api: InClusterApi) -> None:
    """Delete dead pods whose nodes could not end them: they would keep the Job of a run that is over from ending."""
    try:
        for pod in api.pods():
            if is_declared_dead(pod):
                name = pod["metadata"]["name"]
                api.patch_pod_status(name, {"phase": "Failed"})
                api.delete_pod(name, pod["metadata"]["uid"], at_once=True)
    except ApiError as error:
        log.warning("a dead pod may keep the Job from ending until its node is back: %s", error)
