"""Distinction between bugs and disturbances, by error messages and by crashes of successive groups."""

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER, GroupBrokenError
from ropewalk.cluster.run.directory import RunDir

CRASHES_ALLOWED = 2  # consecutive groups without a checkpoint that may crash without a lost peer; one more is a bug
ROW_SECONDS = 3600.0  # a longer time between two crashes starts a new row: a program may commit no checkpoints
NETWORK_SECONDS = 600.0  # a network outage is over by then; crashes that go on have another cause
_FAULT_SIGNS = (  # in messages of NCCL and CUDA, lower case; a new group would fail in the same way
    "ncclinvalidusage",
    "ncclinvalidargument",
    "duplicate gpu detected",
    "no kernel image",
    "device-side assert",
    "driver version is insufficient",
    "out of memory",
)
CRASHES = frozenset(
    {EXIT_LOST_PEER, -signal.SIGABRT, -signal.SIGSEGV}
)  # exit codes of a rank that lost a peer or crashed in native code
# a port in use: another process took it after torch had chosen it
_LOST_PEER_SIGNS = (
    *("connection closed by peer", "connection reset by peer", "broken pipe", "connect timeout", "gloo", "nccl"),
    "eaddrinuse",
)
_NODE_GONE = {"node_lost", "node_left", "node_left_early", "node_silent"}


def is_fault(message: str) -> bool:
    """Return True if an error message, such as NCCL's, shows a fault of the program or the machine rather than a lost peer."""
    return any(sign in message.lower() for sign in _FAULT_SIGNS)


def is_lost_peer(error: BaseException) -> bool:
    """Return True if an error shows that another rank is gone; a fault, such as two ranks on one GPU, does not."""
    if isinstance(error, GroupBrokenError):
        return True
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _LOST_PEER_SIGNS) and not is_fault(text)


@dataclass(frozen=True)
class Row:
    """Consecutive groups that ended in errors or crashes of ranks, with no new checkpoint between them."""

    count: int = 0
    native: bool = False  # native code crashed in all of them; otherwise the network may be down
    began: float = 0.0  # end of the first one, seconds since the epoch

    def is_bug(self, now: float) -> bool:
        """Return True if a new group would probably fail in the same way."""
        return self.count > CRASHES_ALLOWED and (self.native or now - self.began >= NETWORK_SECONDS)


def crashes_in_a_row(events: Iterable[Mapping[str, Any]], attempt: int) -> Row:
    """Return the row of an attempt's newest groups that ended in errors or crashes of ranks.

    `events`: all events of the run, sorted by time; the newest ones of other nodes may be missing. The row is interrupted by
    a rank that was killed from outside, a lost node, a hang, or an hour without a crash.
    """
    crashed: dict[int, _Formation] = {}  # by group, in order of time
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
            formation = crashed.setdefault(group, _Formation(last))
            formation.native |= int(event["exit_code"]) < 0
        elif kind == "rank_lost" and event.get("exit_code") != EXIT_FAILED:
            excused.add(group)
    groups = list(crashed)
    last_excused = max((groups.index(group) for group in excused if group in crashed), default=-1)
    row = list(crashed.values())[last_excused + 1 :]
    return Row(len(row), all(formation.native for formation in row), row[0].ended) if row else Row()


def newest_checkpoint(run: RunDir) -> int:
    """Return the step of the run's newest checkpoint, by its events."""
    return max((int(e.get("step", 0)) for e in run.read_events(afresh=True) if e["event"] == "checkpoint"), default=0)


@dataclass
class _Formation:
    ended: float
    native: bool = False
