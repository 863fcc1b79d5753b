"""Decides whether this pod may lead the run: no pod leads it, the API server reports this pod as alive, and it has its turn."""

import logging
import time
from collections.abc import Sequence

from ropewalk.k8s.api.client import ApiError, ForbiddenError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.pod_status import Pod, index_of, is_alive, is_over
from ropewalk.k8s.runtime.timings import (
    ELECTION_QUERY_SECONDS,
    FIRST_POD_SECONDS,
    FIRST_POD_START_SECONDS,
    LOG_REPEAT_SECONDS,
    LOST_SECONDS,
    TURN_SECONDS,
    UNPROVEN_SECONDS,
    UNREACHABLE_SECONDS,
)

log = logging.getLogger(__name__)

MAX_TURNS = 10
CANDIDATES = 10  # indexes per block; a block becomes eligible after all earlier blocks had their turns
BLOCK_SECONDS = MAX_TURNS * TURN_SECONDS + 1.0


class LeaderElection:
    """This pod as a candidate, with its observations of the last leader."""

    def __init__(self, terms: LeaderTerms, pod: Pod, api: InClusterApi) -> None:
        self._terms, self._pod, self._api = terms, pod, api
        self._began = time.monotonic()
        self._failing: tuple[int, float, bool] | None = None  # term, unreachable since, whether its process is gone
        self._free_since: float | None = None
        self._next_query = self._next_warning = 0.0

    def reached(self) -> None:
        self._failing = self._free_since = None

    def unreachable(self, term: LeaderTerm, *, gone: bool, silent_seconds: float = 0.0) -> None:
        """Record that the newest term's leader cannot be reached, after `silent_seconds` without a message.

        `gone`: its machine has closed the connection, or refuses another one.
        """
        since = time.monotonic() - silent_seconds
        if self._failing is not None and self._failing[0] == term.number:
            since, gone = min(since, self._failing[1]), gone or self._failing[2]
        self._failing = (term.number, since, gone)

    def is_my_turn(self, last: LeaderTerm | None) -> bool:
        """Return True if this pod may take the term after `last`."""
        now = time.monotonic()
        if last is None:
            if self._pod.index == 0:
                return True
            if now - self._began < FIRST_POD_SECONDS:
                return False
        if now < self._next_query or (last is not None and 0.0 < self._silent_for(last) <= UNREACHABLE_SECONDS):
            return False
        self._next_query = now + (TURN_SECONDS if self._pod.index < CANDIDATES else ELECTION_QUERY_SECONDS)
        try:
            return self._query_turn(last, now)
        except ApiError as error:
            self._warn(f"cannot query who may lead the run: {error}")
            return isinstance(error, ForbiddenError) and self._pod.index == 0 and self._silent_for(last) > UNPROVEN_SECONDS

    def _query_turn(self, last: LeaderTerm | None, now: float) -> bool:
        """Query the API server with few small requests, because a thousand pods may do so at once. Raises ApiError."""
        starting = last is None and now - self._began < FIRST_POD_START_SECONDS
        if starting and any(map(_is_first_pod_starting, self._api.pods_of_indexes([0]))):
            return False
        if not self._is_free(last):
            self._free_since = None
            return False
        self._free_since = self._free_since or now
        waited, block = now - self._free_since, self._pod.index // CANDIDATES
        if waited < min(block, MAX_TURNS) * BLOCK_SECONDS:
            return False
        self._next_query = now + TURN_SECONDS
        pods = self._api.pods_of_indexes(range(self._pod.index + 1)) if block == 0 else self._api.pods()
        num_before = self._num_before(pods, last)
        return num_before is not None and waited >= min(num_before, MAX_TURNS) * TURN_SECONDS

    def _is_free(self, last: LeaderTerm | None) -> bool:
        """Return True if no pod leads the run. Raises ApiError."""
        if last is None or self._terms.has_left(last):
            return True
        if last.unfinished:
            return False
        holder = self._api.pod(last.pod)
        if holder is None or holder["metadata"]["uid"] != last.uid or is_over(holder):
            return True
        certain = "deletionTimestamp" in holder["metadata"] or (self._failing is not None and self._failing[2])
        return self._silent_for(last) > (UNREACHABLE_SECONDS if certain else LOST_SECONDS)

    def _silent_for(self, last: LeaderTerm | None) -> float:
        if last is None:
            return time.monotonic() - self._began
        return time.monotonic() - self._failing[1] if self._failing and self._failing[0] == last.number else 0.0

    def _num_before(self, pods: Sequence[Object], last: LeaderTerm | None) -> int | None:
        """Return the number of live pods with a lower index; None if this pod is not alive."""
        gone = last.uid if last is not None and not self._terms.has_left(last) else ""
        living = [pod for pod in pods if is_alive(pod) and pod["metadata"]["uid"] != gone]
        if not any(pod["metadata"]["uid"] == self._pod.uid for pod in living):
            return None
        return sum(index_of(pod) < self._pod.index for pod in living)

    def _warn(self, message: str) -> None:
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + LOG_REPEAT_SECONDS
            log.warning("%s", message)


def _is_first_pod_starting(pod: Object) -> bool:
    """Return True if the pod of index 0 has a node; its image, its volumes or its Python can take some time."""
    is_first = index_of(pod) == 0 and bool(pod["spec"].get("nodeName"))
    return is_first and "deletionTimestamp" not in pod["metadata"] and not is_over(pod)
