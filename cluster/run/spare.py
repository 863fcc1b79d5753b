"""Ranks that a group has no place for: they compute nothing, and end with the group."""

import logging
import time
from typing import Protocol

from ropewalk.cluster.errors import EXIT_LOST_PEER, EXIT_REQUEUE
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import Phase

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
RELEASE_SECONDS = 5.0  # for spare ranks to hear of the end; they may be gone
_END, _GONE = "ropewalk/end", "ropewalk/gone"  # exit code of the group; number of spare ranks that have left


class Messages(Protocol):
    """The store in which the ranks of a group met; rank 0 serves it."""

    def check(self, keys: list[str], /) -> bool: ...
    def get(self, key: str, /) -> bytes: ...
    def set(self, key: str, value: str, /) -> None: ...
    def add(self, key: str, amount: int, /) -> int: ...


class SpareRank(Exception):  # noqa: N818 - not an error: the rank waits for the end of its group
    """The group has no place for this rank. `ranks`: all spare ranks."""

    def __init__(self, store: Messages, ranks: range) -> None:
        self.store, self.ranks = store, ranks
        super().__init__(f"ranks {ranks.start} to {ranks.stop - 1} are spare")


def release(store: Messages, num_spare: int, code: int) -> None:
    """Tell the spare ranks that the group ends with this exit code, and wait until they know: the store ends with this rank."""
    store.set(_END, str(code))
    deadline = time.monotonic() + RELEASE_SECONDS
    while store.add(_GONE, 0) < num_spare and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)


def wait_for_group(context: JobContext, spare: SpareRank) -> int:
    """Wait on a spare rank until the group ends or this node must stop; returns the exit code."""
    context.heart.beat(Phase.SPARE)
    if context.rank == spare.ranks.start:
        ranks = str(context.rank) if len(spare.ranks) == 1 else f"{context.rank}..{spare.ranks.stop - 1}"
        context.run.event("ranks_spare", spare=len(spare.ranks), ranks=ranks, computing=spare.ranks.start, group=context.group)
    log.info("spare: waiting for the end of the group")
    stop_flag, store = context.stop_flag, spare.store
    try:
        # not for `regroup_flag`: the others save first, and a node that waits for the next group ends the ranks of this one
        while not (stopped := stop_flag is not None and stop_flag.exists()) and not store.check([_END]):
            time.sleep(POLL_SECONDS)
        code = EXIT_REQUEUE if stopped else int(store.get(_END))
        store.add(_GONE, 1)
        return code
    except RuntimeError as error:  # torch's DistError: rank 0 is gone
        log.warning("rank 0 is gone: %s", error)
        return EXIT_REQUEUE if stopped else EXIT_LOST_PEER
