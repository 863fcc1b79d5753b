"""Outcome of an attempt from the exit codes of its agents, as pure functions."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_NEVER_RETRY, EXIT_REQUEUE, EXIT_TERMINATED
from ropewalk.cluster.spec import RunState, StopReason

KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Facts about an attempt whose agents have all exited."""

    codes: Mapping[int, int]  # agents' exit codes by node, without nodes that were lost or left while others went on
    lost: Sequence[str] = ()  # a sentence for each lost node
    reason: str = ""  # of the stop: a StopReason, or free text of the scheduler
    cancelled: bool = False  # a user cancelled the run
    elastic: bool = False
    retry_bugs: bool = False  # another attempt may follow an error of the program
    unsaved: bool = False  # a program exited after the stop without saving; its agent exits with 85 as well
    has_checkpoints: bool = True  # the job saves some

    @property
    def is_decided(self) -> bool:
        """True if the codes alone determine the outcome, so that the scheduler need not be asked for a stop reason."""
        return EXIT_NEVER_RETRY in self.codes.values() or set(self.codes.values()) == {EXIT_DONE}


@dataclass(frozen=True)
class Verdict:
    """Classification of an attempt. An empty cause stands for the first error that a rank recorded."""

    state: RunState
    exit_code: int
    cause: str = ""


class AgentExit(Enum):
    """Consequence of one agent's exit for the other agents."""

    LOST = "node lost"
    LEFT = "node left; the others go on"
    FINISHED = "done or saved; the others will exit too"
    FAILED = "failed; the others cannot go on"


def shell_code(returncode: int) -> int:
    """Convert a return code to a shell's exit code: 128 + signal number for a killed process."""
    return returncode if returncode >= 0 else 128 - returncode


def classify(end: Ending) -> Verdict:
    """Classify the end of an attempt; the first matching rule decides."""
    codes = set(end.codes.values())
    left = EXIT_REQUEUE in codes  # exited in response to the stop
    saved = left and not end.unsaved
    if EXIT_NEVER_RETRY in codes:
        return Verdict(RunState.FAILED, EXIT_NEVER_RETRY)
    if codes == {EXIT_DONE} and (not end.lost or end.elastic):
        return Verdict(RunState.SUCCEEDED, EXIT_DONE, "done")
    if end.cancelled or end.reason == StopReason.CANCELLED:
        how = " after saving" if saved else " before a new checkpoint was saved"
        return Verdict(RunState.CANCELLED, EXIT_REQUEUE, f"cancelled{how if end.has_checkpoints else ''}")
    if end.lost and not (end.elastic and (left or end.reason)):
        # Slurm requeues a job of fixed size itself; a checkpoint of the other nodes would not contain the last step
        return Verdict(RunState.REQUEUED, EXIT_TERMINATED, "; ".join(end.lost))
    if left or end.reason:
        state = RunState.PREEMPTED if end.reason == StopReason.PREEMPTED else RunState.REQUEUED
        unsaved = "" if saved or not end.has_checkpoints else "; no checkpoint was confirmed in time"
        return Verdict(state, EXIT_REQUEUE if left else EXIT_TERMINATED, f"stopped: {end.reason or 'signal'}{unsaved}")
    if KILLED in codes and EXIT_FAILED not in codes:  # SIGKILL comes from outside (out of memory, a user): not a bug
        node = min(node for node, code in end.codes.items() if code == KILLED)
        return Verdict(RunState.REQUEUED, EXIT_TERMINATED, f"node {node}: the job's process was killed (SIGKILL)")
    if EXIT_TERMINATED in codes and EXIT_FAILED not in codes:  # an agent gave up before the program could fail
        return Verdict(RunState.REQUEUED, EXIT_TERMINATED)
    return Verdict(RunState.REQUEUED if end.retry_bugs else RunState.FAILED, EXIT_FAILED)
