"""Tell errors of the program and of its machine from disturbances: what a message says, and what ends group after group."""

import signal
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import EXIT_FAILED, EXIT_LOST_PEER

CRASHES_ALLOWED = 2  # formations in a row, without a checkpoint, that may end in what no lost peer explains; one more is a bug
_FAULT_SIGNS = (  # in messages of NCCL and CUDA, lower case: a new group meets them again
    "ncclinvalidusage",
    "ncclinvalidargument",
    "duplicate gpu detected",
    "no kernel image",
    "device-side assert",
    "driver version is insufficient",
    "out of memory",
)
CRASHES = frozenset({EXIT_LOST_PEER, -signal.SIGABRT, -signal.SIGSEGV})  # how a rank ends by an error or in native code
_NODE_GONE = {"node_lost", "node_left", "node_left_early"}


def is_fault(message: str) -> bool:
    """Whether an error's message tells a fault of the program or of its machine, though it be NCCL's: no peer is lost."""
    return any(sign in message.lower() for sign in _FAULT_SIGNS)


def crashes_in_a_row(events: Iterable[Mapping[str, Any]], attempt: int) -> int:
    """Count an attempt's newest formations that ended in errors or crashes of ranks, with no new checkpoint between them.

    `events` are the run's, by time. A formation with a rank that something else killed does not count and breaks the row, and
    so does a lost node or a hang. What happened on other nodes just now may be missing.
    """
    crashed: dict[int, None] = {}  # formations, in their order
    excused: set[int] = set()
    newest = 0
    for event in events:
        kind, step = event["event"], int(event.get("step") or 0)
        if kind == "checkpoint" and step > newest:
            newest = step
            crashed.clear()
        elif event.get("attempt") != attempt:
            continue
        elif kind in _NODE_GONE or kind == "ranks_hung":
            crashed.clear()
        elif kind == "rank_lost" and event.get("exit_code") in CRASHES:
            crashed[int(event.get("group") or 0)] = None
        elif kind == "rank_lost" and event.get("exit_code") != EXIT_FAILED:
            excused.add(int(event.get("group") or 0))
    groups = list(crashed)
    last_excused = max((groups.index(group) for group in excused if group in crashed), default=-1)
    return len(groups) - last_excused - 1
