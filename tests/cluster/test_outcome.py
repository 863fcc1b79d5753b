"""Table of the outcomes of an attempt by the exits of its agents."""

import pytest

from ropewalk.cluster.spec import RunState, StopReason
from ropewalk.cluster.supervise.outcome import Ending, Verdict, classify, shell_code

LOST = ["node 1 died (SIGKILL)"]


@pytest.mark.parametrize(
    ("end", "verdict"),
    [
        # done
        (Ending(codes={0: 0, 1: 0}), Verdict(RunState.SUCCEEDED, 0, "done")),
        (Ending(codes={0: 0}, lost=LOST, elastic=True), Verdict(RunState.SUCCEEDED, 0, "done")),
        (Ending(codes={0: 0}, lost=LOST), Verdict(RunState.REQUEUED, 143, LOST[0])),
        (Ending(codes={0: 0}, cancelled=True), Verdict(RunState.SUCCEEDED, 0, "done")),
        # what no retry can mend comes before everything else
        (Ending(codes={0: 42, 1: 85}, reason=StopReason.PREEMPTED, cancelled=True), Verdict(RunState.FAILED, 42)),
        (Ending(codes={0: 42, 1: 0}, lost=LOST, retry_bugs=True), Verdict(RunState.FAILED, 42)),
        # cancelled
        (Ending(codes={0: 85}, cancelled=True), Verdict(RunState.CANCELLED, 85, "cancelled after saving")),
        (Ending(codes={0: 85}, reason=StopReason.CANCELLED), Verdict(RunState.CANCELLED, 85, "cancelled after saving")),
        (Ending(codes={0: 1}, cancelled=True), Verdict(RunState.CANCELLED, 85, "cancelled before a new checkpoint was saved")),
        (
            Ending(codes={0: 85}, cancelled=True, unsaved=True),
            Verdict(RunState.CANCELLED, 85, "cancelled before a new checkpoint was saved"),
        ),
        (Ending(codes={0: 85}, cancelled=True, has_checkpoints=False), Verdict(RunState.CANCELLED, 85, "cancelled")),
        (Ending(codes={0: 1}, cancelled=True, has_checkpoints=False), Verdict(RunState.CANCELLED, 85, "cancelled")),
        # stopped by whoever owns the nodes
        (
            Ending(codes={0: 85}, reason=StopReason.PREEMPTED, unsaved=True, has_checkpoints=False),
            Verdict(RunState.PREEMPTED, 85, "stopped: preempted"),
        ),
        (Ending(codes={0: 85}, reason=StopReason.PREEMPTED), Verdict(RunState.PREEMPTED, 85, "stopped: preempted")),
        (Ending(codes={0: 85}, reason=StopReason.TIME_LIMIT), Verdict(RunState.REQUEUED, 85, "stopped: time limit")),
        (Ending(codes={0: 85}), Verdict(RunState.REQUEUED, 85, "stopped: signal")),
        (  # the words alone are others: what follows is what follows a stop
            Ending(codes={0: 85}, reason=StopReason.PREEMPTED, unsaved=True),
            Verdict(RunState.PREEMPTED, 85, "stopped: preempted; no checkpoint was confirmed in time"),
        ),
        (
            Ending(codes={0: 85}, reason=StopReason.TIME_LIMIT, unsaved=True),
            Verdict(RunState.REQUEUED, 85, "stopped: time limit; no checkpoint was confirmed in time"),
        ),
        (
            Ending(codes={0: 85}, unsaved=True),
            Verdict(RunState.REQUEUED, 85, "stopped: signal; no checkpoint was confirmed in time"),
        ),
        (
            Ending(codes={0: 143}, reason="maintenance"),
            Verdict(RunState.REQUEUED, 143, "stopped: maintenance; no checkpoint was confirmed in time"),
        ),
        (
            Ending(codes={0: 143}, reason=StopReason.PREEMPTED),
            Verdict(RunState.PREEMPTED, 143, "stopped: preempted; no checkpoint was confirmed in time"),
        ),
        # lost nodes: what the others of a run of a fixed size saved is not the last step
        (Ending(codes={0: 85}, lost=LOST), Verdict(RunState.REQUEUED, 143, LOST[0])),
        (Ending(codes={0: 85}, lost=LOST, reason=StopReason.PREEMPTED), Verdict(RunState.REQUEUED, 143, LOST[0])),
        (Ending(codes={0: 85}, lost=LOST, elastic=True), Verdict(RunState.REQUEUED, 85, "stopped: signal")),
        (
            Ending(codes={0: 85}, lost=LOST, elastic=True, unsaved=True),
            Verdict(RunState.REQUEUED, 85, "stopped: signal; no checkpoint was confirmed in time"),
        ),
        (Ending(codes={0: 75}, lost=LOST, elastic=True), Verdict(RunState.REQUEUED, 143, LOST[0])),
        (Ending(codes={}, lost=[*LOST, "node 0 died (x)"]), Verdict(RunState.REQUEUED, 143, f"{LOST[0]}; node 0 died (x)")),
        # killed from outside: a disturbance, unless an error came first
        (Ending(codes={0: 0, 1: 137}), Verdict(RunState.REQUEUED, 143, "node 1: the job's process was killed (SIGKILL)")),
        (Ending(codes={0: 1, 1: 137}), Verdict(RunState.FAILED, 1)),
        # an agent that gave up before the program could err, as where Ray did not start in time
        (Ending(codes={0: 143, 1: 85}), Verdict(RunState.REQUEUED, 85, "stopped: signal")),
        (Ending(codes={0: 143, 1: 137}), Verdict(RunState.REQUEUED, 143, "node 1: the job's process was killed (SIGKILL)")),
        (Ending(codes={0: 143}), Verdict(RunState.REQUEUED, 143)),
        (Ending(codes={0: 143, 1: 1}), Verdict(RunState.FAILED, 1)),
        # an error of the program
        (Ending(codes={0: 1, 1: 1}, retry_bugs=True), Verdict(RunState.REQUEUED, 1)),
        (Ending(codes={0: 1, 1: 1}), Verdict(RunState.FAILED, 1)),
    ],
)
def test_what_an_end_means(end: Ending, verdict: Verdict) -> None:
    assert classify(end) == verdict


@pytest.mark.parametrize(
    ("codes", "decided"), [({0: 0, 1: 0}, True), ({0: 42, 1: 85}, True), ({0: 85}, False), ({0: 1}, False), ({}, False)]
)
def test_nobody_is_asked_why_where_the_codes_alone_decide(codes: dict[int, int], decided: bool) -> None:
    assert Ending(codes=codes).is_decided is decided


def test_a_signal_is_a_code_as_a_shell_has_it() -> None:
    assert [shell_code(code) for code in (0, 42, -9)] == [0, 42, 137]
