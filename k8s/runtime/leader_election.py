"""Whether this pod may carry the run now: nobody does, it is alive by the word of the API server, and it is its turn."""

import logging
import time
from collections.abc import Sequence

from cluster.run.directory import RunDir
from k8s.api.client import ApiError, ForbiddenError
from k8s.api.in_cluster import InClusterApi
from k8s.api.objects import Object
from k8s.runtime.leader_terms import Claim, given_up
from k8s.runtime.pod_status import Pod, alive, index_of, over
from k8s.runtime.protocol import LOST_SECONDS

log = logging.getLogger(__name__)

ASK_SECONDS = 1.0  # between two questions to the API server
FIRST_SECONDS = 10.0  # how long the pod of index 0 has the first claim for itself: it is the last to go when a run shrinks
STARTING_SECONDS = 30.0  # the same where it has a node already, and is on its way
REFUSED_SECONDS = 1.5  # of a pod that refuses connections, or is asked to go and does not answer
TURN_SECONDS = 0.3  # by which a pod waits longer than the one before it
MOST_TURNS = 10
STANDING = 10  # so many of the lowest indexes stand first, then as many more each time that all before have had their turns
BLOCK_SECONDS = MOST_TURNS * TURN_SECONDS + 1.0
UNPROVEN_SECONDS = 30.0  # of no answer of a pod, where the API server may not be asked
SAY_SECONDS = 30.0


class Succession:
    """What this pod knows of the last carrier, gathered from look to look."""

    def __init__(self, run: RunDir, pod: Pod, api: InClusterApi) -> None:
        self._run, self._pod, self._api = run, pod, api
        self._began = time.monotonic()
        self._failing: tuple[int, float, bool] | None = None  # claim, since when it cannot be reached, whether it refuses
        self._free_since: float | None = None
        self._next_question = self._next_word = 0.0

    def reached(self) -> None:
        """There is a carrier, and it answers."""
        self._failing = self._free_since = None

    def unreachable(self, claim: Claim, *, refused: bool, silent_seconds: float = 0.0) -> None:
        """The carrier of the newest claim cannot be reached, and said nothing for some seconds before."""
        since = time.monotonic() - silent_seconds
        if self._failing is None or self._failing[0] != claim.number:
            self._failing = (claim.number, since, refused)
        else:
            self._failing = (claim.number, min(since, self._failing[1]), refused)

    def my_turn(self, last: Claim | None) -> bool:
        """Whether this pod may make the claim that follows `last`."""
        now = time.monotonic()
        if last is None:
            if self._pod.index == 0:
                return True
            if now - self._began < FIRST_SECONDS:
                return False
        if now < self._next_question:
            return False
        self._next_question = now + ASK_SECONDS
        try:
            return self._is_my_turn(last, now)
        except ApiError as error:
            self._say(f"cannot ask who may carry the run: {error}")
            return isinstance(error, ForbiddenError) and self._pod.index == 0 and self._silent_for(last) > UNPROVEN_SECONDS

    def _is_my_turn(self, last: Claim | None, now: float) -> bool:
        """What is asked is small: a thousand pods ask at the same time. Raises ApiError."""
        starting = last is None and now - self._began < STARTING_SECONDS
        if starting and any(map(_is_first_on_its_way, self._api.pods_of_indexes([0]))):
            return False
        if not self._free(last):
            self._free_since = None
            return False
        self._free_since = self._free_since or now
        waited, block = now - self._free_since, self._pod.index // STANDING
        if waited < min(block, MOST_TURNS) * BLOCK_SECONDS:
            return False
        self._next_question = now + TURN_SECONDS
        pods = self._api.pods_of_indexes(range(self._pod.index + 1)) if block == 0 else self._api.pods()
        before_me = self._before_me(pods, last)
        return before_me is not None and waited >= min(before_me, MOST_TURNS) * TURN_SECONDS

    def _free(self, last: Claim | None) -> bool:
        """Nobody carries the run."""
        if last is None or given_up(self._run, last):
            return True
        if last.unfinished:
            return False
        holder = self._api.pod(last.pod)
        if holder is None or holder["metadata"]["uid"] != last.uid or over(holder):
            return True
        certain = "deletionTimestamp" in holder["metadata"] or (self._failing is not None and self._failing[2])
        return self._silent_for(last) > (REFUSED_SECONDS if certain else LOST_SECONDS)

    def _silent_for(self, last: Claim | None) -> float:
        if last is None:
            return time.monotonic() - self._began
        return time.monotonic() - self._failing[1] if self._failing and self._failing[0] == last.number else 0.0

    def _before_me(self, pods: Sequence[Object], last: Claim | None) -> int | None:
        """How many live pods have a lower index; None if this one is not alive."""
        gone = last.uid if last is not None and not given_up(self._run, last) else ""
        living = [pod for pod in pods if alive(pod) and pod["metadata"]["uid"] != gone]
        if not any(pod["metadata"]["uid"] == self._pod.uid for pod in living):
            return None
        return sum(index_of(pod) < self._pod.index for pod in living)

    def _say(self, words: str) -> None:
        if time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + SAY_SECONDS
            log.warning("%s", words)


def _is_first_on_its_way(pod: Object) -> bool:
    """The pod of index 0 has a node; its image, its volumes or its Python may take their time."""
    return (
        index_of(pod) == 0 and bool(pod["spec"].get("nodeName")) and "deletionTimestamp" not in pod["metadata"] and not over(pod)
    )
