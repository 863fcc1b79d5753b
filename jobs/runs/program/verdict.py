"""Interpretation of a program's exit for its run."""

import os
import re
import signal
from pathlib import Path

from ropewalk.cluster.engines.crashes import is_fault
from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE, RopewalkError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.event_log import STOPPED_UNSAVED
from ropewalk.jobs.runs.program.last_words import innermost_frame, last_words

TAIL_BYTES = 65_536
ENDING_LETTERS = 16_384  # at the end of the log that are searched for a lost peer
SHELLS_SIGNAL = 128  # a shell whose program was killed by a signal exits with this plus the signal's number
_SIGNALS = frozenset(signal.Signals)
_LOST_PEER = re.compile(
    r"connection (closed|reset) by peer|broken pipe|ncclRemoteError|ncclSystemError|connectFullMesh|Socket Timeout"
    r"|DistNetworkError|DistBackendError|Timed out waiting .* for recv|watchdog.*(timeout|timed out)",
    re.IGNORECASE,
)


class ProgramFailedError(RopewalkError):
    """The user's program failed; it may be retried."""

    retryable = True
    logs_traceback = False


class ProgramRefusedError(RopewalkError):
    """The user's program exited with 42: it must not be retried."""


class LostPeerError(RuntimeError):
    """The user's program failed because another rank was lost."""


def judge(code: int, stop: signal.Signals | None, context: JobContext, text: str) -> None:
    """Return if the program is done; otherwise raise the exception that stands for its exit code.

    `stop`: the signal that was sent to it. `text`: the end of its output. Raises StopRequested, ProgramRefusedError,
    LostPeerError, ProgramFailedError.
    """
    if code == EXIT_DONE and stop is None:
        return
    if code == EXIT_REQUEUE or (stop is not None and code == EXIT_DONE):
        raise StopRequested(f"the program exited with {code}{f' after {stop.name}' if stop else ''}")
    if code == EXIT_NEVER_RETRY:
        raise ProgramRefusedError(f"the program ended with {EXIT_NEVER_RETRY}: {last_words(text) or 'it printed nothing'}")
    if stop is not None:
        context.run.event(STOPPED_UNSAVED, rank=context.rank, exit_code=code, attempt=context.attempt, group=context.group)
        raise StopRequested(f"the program exited with {code} after {stop.name}, without saving")
    if code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)  # so that the agent sees the kill as that of a rank, a disturbance
    ending = text[-ENDING_LETTERS:]
    if code == EXIT_LOST_PEER or (context.world_size > 1 and _LOST_PEER.search(ending) and not is_fault(ending)):
        raise LostPeerError(f"another rank was lost (connection closed by peer): {last_words(text)}")
    error = ProgramFailedError(f"the program {how_it_ended(code)}: {last_words(text) or 'it printed nothing'}")
    for line in innermost_frame(text):
        error.add_note(line)  # so that the recorded traceback ends with this frame
    raise error


def how_it_ended(code: int) -> str:
    """Describe an exit code: negative for a signal (subprocess), above 128 for a signal (shells)."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    inner = code - SHELLS_SIGNAL
    by_signal = f", as a shell does whose program was ended by {signal.Signals(inner).name}" if inner in _SIGNALS else ""
    return f"ended with exit code {code}{by_signal}"


def log_of(context: JobContext) -> Path:
    """Return the log file of this process's program."""
    return context.run.log_dir(context.attempt) / (context.shared_log or f"rank-{context.rank}.log")


def log_size(context: JobContext) -> int:
    """Return the current size of the log in bytes."""
    try:
        return log_of(context).stat().st_size
    except FileNotFoundError:
        return 0


def tail(context: JobContext, since_bytes: int) -> str:
    """Return the end of a log that belongs to this process alone, without the part before `since_bytes`."""
    try:
        with log_of(context).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(since_bytes if since_bytes <= size else 0, size - TAIL_BYTES))  # smaller if it was rotated
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
