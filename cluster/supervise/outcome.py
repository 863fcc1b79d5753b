"""What the exits of an attempt's agents mean: pure functions from exit codes to the attempt's outcome."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED
from ropewalk.cluster.spec import RunState, StopReason

KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is known of an attempt when its last agent has exited."""

    codes: Mapping[int, int]  # the exit code of each node's agent, of nodes that were neither lost nor left the others
    lost: Sequence[str] = ()  # the nodes that were lost, in words
    reason: str = ""  # why the attempt was asked to stop: a StopReason, or plain words of the owner of the nodes
    cancelled: bool = False  # a user asked for the end of the run
    elastic: bool = False
    retry_bugs: bool = False  # another attempt may follow an error of the program
    without_word: bool = False  # a program ended after the stop, and did not say that it has saved; its agent's code is 85 too

    @property
    def decided(self) -> bool:
        """Whether the codes alone decide the outcome, so that nobody need be asked why the attempt was stopped."""
        return EXIT_NEVER_RETRY in self.codes.values() or set(self.codes.values()) == {EXIT_DONE}


@dataclass(frozen=True)
class Verdict:
    """An attempt's end: the run's state, the exit code, and the cause; empty: the first error that a rank recorded."""

    state: RunState
    exit_code: int
    cause: str = ""


class AgentExit(Enum):
    """What the exit of one agent means for the others."""

    LOST = "its node was lost"
    LEFT = "its node was wanted back, and the others go on"
    FINISHED = "it was done, or has saved; the others follow"
    FAILED = "it failed, and the others cannot go on"


def shell_code(returncode: int) -> int:
    """Return a process's return code as a shell has it: 128 + the signal that killed it."""
    return returncode if returncode >= 0 else 128 - returncode


def classify(end: Ending) -> Verdict:
    """Say what an attempt's end means for its run. The first rule that holds decides."""
    codes = set(end.codes.values())
    left = EXIT_REQUEUE in codes  # at the stop, as it should
    saved = left and not end.without_word
    if EXIT_NEVER_RETRY in codes:
        return Verdict(RunState.FAILED, EXIT_NEVER_RETRY)
    if codes == {EXIT_DONE} and (not end.lost or end.elastic):
        return Verdict(RunState.SUCCEEDED, EXIT_DONE, "done")
    if end.cancelled or end.reason == StopReason.CANCELLED:
        return Verdict(
            RunState.CANCELLED, EXIT_REQUEUE, "cancelled after saving" if saved else "cancelled before a new checkpoint was saved"
        )
    if end.lost and not (end.elastic and (left or end.reason)):
        # Slurm requeues a job of a fixed size itself; what the other nodes saved then is not the last step
        return Verdict(RunState.REQUEUED, EXIT_TERMINATED, "; ".join(end.lost))
    if left or end.reason:
        state = RunState.PREEMPTED if end.reason == StopReason.PREEMPTED else RunState.REQUEUED
        unsaved = "" if saved else "; no checkpoint was confirmed in time"
        return Verdict(state, EXIT_REQUEUE if left else EXIT_TERMINATED, f"stopped: {end.reason or 'signal'}{unsaved}")
    if KILLED in codes and EXIT_FAILED not in codes:  # from outside, as ranks may be: no bug
        node = min(node for node, code in end.codes.items() if code == KILLED)
        return Verdict(RunState.REQUEUED, EXIT_TERMINATED, f"node {node}: the job's process was killed (SIGKILL)")
    if EXIT_TERMINATED in codes and EXIT_FAILED not in codes:  # a node's agent gave up before the program could err
        return Verdict(RunState.REQUEUED, EXIT_TERMINATED)
    return Verdict(RunState.REQUEUED if end.retry_bugs else RunState.FAILED, EXIT_FAILED)
