"""Classification of errors and crashes of ranks: the program's, the machine's, or caused by a lost peer."""

import signal
from typing import Any

import pytest

from ropewalk.cluster.engines.crashes import crashes_in_a_row
from ropewalk.cluster.engines.entry import exit_code_of
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (f"{NCCL}remote process exited or there was a network error\nncclRemoteError: A call failed", EXIT_LOST_PEER),
        (f"{NCCL}unhandled system error\nncclSystemError: System call (e.g. socket, malloc) failed", EXIT_LOST_PEER),
        ("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]", EXIT_LOST_PEER),
        ("The server socket has failed to listen on any local network address. port: 40123, name: EADDRINUSE", EXIT_LOST_PEER),
        (f"{NCCL}invalid usage\nncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0", EXIT_FAILED),
        (f"{NCCL}invalid argument\nncclInvalidArgument: Invalid value for an argument.", EXIT_FAILED),
        (f"{NCCL}unhandled cuda error\nncclUnhandledCudaError: Cuda failure 2 'out of memory'", EXIT_FAILED),
        (f"{NCCL}unhandled cuda error\nCuda failure 'CUDA driver version is insufficient for CUDA runtime version'", EXIT_FAILED),
        (f"{NCCL}unhandled cuda error\nCuda failure 'no kernel image is available for execution on the device'", EXIT_FAILED),
        (f"{NCCL}unhandled cuda error\nCuda failure 'device-side assert triggered'", EXIT_FAILED),
    ],
)
def test_what_nccl_says_of_the_machine_or_the_program_is_no_lost_peer(message: str, code: int) -> None:
    assert exit_code_of(RuntimeError(message)) == code


def lost(group: int, code: int, attempt: int = 1, time: float | None = None) -> dict[str, Any]:
    ended = 100.0 * group if time is None else time
    return {"event": "rank_lost", "group": group, "exit_code": code, "attempt": attempt, "time": ended}


def saved(step: int) -> dict[str, Any]:
    return {"event": "checkpoint", "step": step}


GONE, HUNG = ({"event": kind, "attempt": 1} for kind in ("node_lost", "ranks_hung"))
ABORT, KILL = -signal.SIGABRT, -signal.SIGKILL


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([], 0),
        ([lost(1, ABORT), lost(2, EXIT_LOST_PEER), lost(3, -signal.SIGSEGV)], 3),
        ([lost(1, ABORT), lost(1, EXIT_LOST_PEER)], 1),  # of two nodes
        ([lost(1, ABORT), lost(2, ABORT), saved(10), lost(3, ABORT)], 1),
        ([saved(10), lost(1, ABORT), saved(10), lost(2, ABORT)], 2),  # an old step once more is no progress
        ([lost(1, ABORT), lost(2, EXIT_LOST_PEER), lost(2, KILL), lost(3, ABORT)], 1),
        ([lost(1, EXIT_LOST_PEER), lost(1, KILL)], 0),
        ([lost(1, EXIT_LOST_PEER), GONE, lost(2, EXIT_LOST_PEER)], 1),
        ([lost(1, ABORT), HUNG, lost(2, ABORT)], 1),
        ([lost(1, ABORT), lost(2, EXIT_FAILED), lost(3, ABORT)], 2),  # bugs have a budget of their own
        ([lost(1, ABORT, attempt=2), lost(1, ABORT)], 1),
        ([lost(1, ABORT, time=0), lost(2, ABORT, time=3000), lost(3, ABORT, time=6000)], 3),
        ([lost(1, ABORT, time=0), lost(2, ABORT, time=50), lost(3, ABORT, time=9000)], 1),  # a program that commits nothing
    ],
)
def test_formations_in_a_row_that_nothing_from_outside_has_ended(events: list[dict[str, Any]], count: int) -> None:
    assert crashes_in_a_row(events, attempt=1).count == count


@pytest.mark.parametrize(
    ("events", "after_seconds", "bug"),
    [
        ([lost(1, ABORT), lost(2, ABORT)], 10_000, False),
        ([lost(1, ABORT), lost(2, EXIT_LOST_PEER), lost(2, ABORT), lost(3, ABORT)], 1, True),
        ([lost(1, ABORT), lost(2, EXIT_LOST_PEER), lost(3, ABORT)], 599, False),  # a network that is away comes back
        ([lost(1, EXIT_LOST_PEER), lost(2, EXIT_LOST_PEER), lost(3, EXIT_LOST_PEER)], 599, False),
        ([lost(1, EXIT_LOST_PEER), lost(2, EXIT_LOST_PEER), lost(3, EXIT_LOST_PEER)], 600, True),
        ([], 10_000, False),
    ],
)
def test_what_ends_group_after_group_is_a_bug(events: list[dict[str, Any]], after_seconds: float, bug: bool) -> None:
    assert crashes_in_a_row(events, attempt=1).is_bug(100.0 + after_seconds) == bug
