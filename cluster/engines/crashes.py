"""Tell errors of the program and of its machine from disturbances: what a message says, and what ends group after group."""

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER

CRASHES_ALLOWED = 2  # formations in a row, without a checkpoint, that may end in what no lost peer explains; one more is a bug
ROW_SECONDS = 3600.0  # between two crashes of a row: a program that commits no checkpoints loses a peer now and then
NETWORK_SECONDS = 600.0  # a network that is away comes back, or else it is not what ends group after group
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


@dataclass(frozen=True)
class Row:
    """Formations in a row that ended in errors or crashes of ranks, with no new checkpoint between them."""

    count: int = 0
    native: bool = False  # whether native code crashed in each of them; else the network may be away
    began: float = 0.0  # when the first of them ended, in seconds since the epoch

    def is_bug(self, now: float) -> bool:
        """Whether a new group would meet the same again."""
        return self.count > CRASHES_ALLOWED and (self.native or now - self.began >= NETWORK_SECONDS)


def crashes_in_a_row(events: Iterable[Mapping[str, Any]], attempt: int) -> Row:
    """Find an attempt's newest formations that ended in errors or crashes of ranks.

    `events` are the run's, by time. A formation with a rank that something else killed does not count and breaks the row, and
    so does a lost node, a hang, or an hour without a crash. What happened on other nodes just now may be missing.
    """
    crashed: dict[int, _Formation] = {}  # in their order
    excused: set[int] = set()
    newest, last = 0, 0.0
    for event in events:
        kind, step, group = event["event"], int(event.get("step") or 0), int(event.get("group") or 0)
        if kind == "checkpoint" and step > newest:
            newest = step
            crashed.clear()
        elif event.get("attempt") != attempt:
            continue
        elif kind in _NODE_GONE or kind == "ranks_hung":
            crashed.clear()
        elif kind == "rank_lost" and event.get("exit_code") in CRASHES:
            if event["time"] - last > ROW_SECONDS:
                crashed.clear()
            last = event["time"]
            found = crashed.setdefault(group, _Formation(last))
            found.native |= int(event["exit_code"]) < 0
        elif kind == "rank_lost" and event.get("exit_code") != EXIT_FAILED:
            excused.add(group)
    groups = list(crashed)
    last_excused = max((groups.index(group) for group in excused if group in crashed), default=-1)
    row = list(crashed.values())[last_excused + 1 :]
    return Row(len(row), all(one.native for one in row), row[0].ended) if row else Row()


@dataclass
class _Formation:
    ended: float
    native: bool = False
