"""What the end of a program means for its run."""

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
ENDING_LETTERS = 16_384  # in which a lost peer is looked for
SHELLS_SIGNAL = 128  # a shell whose program was ended by a signal leaves with this and the signal's number
_SIGNALS = frozenset(signal.Signals)
_LOST_PEER = re.compile(
    r"connection (closed|reset) by peer|broken pipe|ncclRemoteError|ncclSystemError|connectFullMesh|Socket Timeout"
    r"|DistNetworkError|DistBackendError|Timed out waiting .* for recv|watchdog.*(timeout|timed out)",
    re.IGNORECASE,
)


class ProgramFailedError(RopewalkError):
    """The user's program ended with an error of its own; it may be tried again."""

    retryable = True


class ProgramRefusedError(RopewalkError):
    """The user's program ended with 42: another attempt cannot mend it."""


class LostPeerError(RuntimeError):
    """The user's program broke off because another rank was gone; no fault of its own."""


def judge(code: int, stop: signal.Signals | None, context: JobContext, since_bytes: int = 0) -> None:
    """Return if the program is done; else raise what the run's supervisor understands. `stop`: the signal it was sent.

    What stands in the log before `since_bytes` was said by an earlier group of the same attempt.
    """
    text = tail(context, since_bytes)
    if code == EXIT_DONE and stop is None:
        return
    if code == EXIT_REQUEUE or (stop is not None and code == EXIT_DONE):
        raise StopRequested(f"the program left with {code} after {stop.name if stop else 'its own wish'}")
    if code == EXIT_NEVER_RETRY:
        raise ProgramRefusedError(f"the program ended with {EXIT_NEVER_RETRY}: {last_words(text) or 'it said nothing'}")
    if stop is not None:
        context.run.event(STOPPED_UNSAVED, rank=context.rank, exit_code=code, attempt=context.attempt, group=context.group)
        raise StopRequested(f"the program ended with {code} after {stop.name}, without saying that it has saved")
    if code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)  # from outside, as ranks may be: whoever waits for us sees it so
    ending = text[-ENDING_LETTERS:]
    if code == EXIT_LOST_PEER or (context.world_size > 1 and _LOST_PEER.search(ending) and not is_fault(ending)):
        raise LostPeerError(f"another rank was gone (connection closed by peer): {last_words(text)}")
    error = ProgramFailedError(f"the program {how_it_ended(code)}: {last_words(text) or 'it said nothing'}")
    for line in innermost_frame(text):
        error.add_note(line)  # the record of the error ends with it, as with a frame of its own
    raise error


def how_it_ended(code: int) -> str:
    """An exit code in words; negative for a signal, as subprocess has it, above 128 for one as shells have it."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    inner = code - SHELLS_SIGNAL
    told = f", as a shell does whose program was ended by {signal.Signals(inner).name}" if inner in _SIGNALS else ""
    return f"ended with exit code {code}{told}"


def log_of(context: JobContext) -> Path:
    """The log of this process's program."""
    return context.run.log_dir(context.attempt) / f"rank-{context.rank}.log"


def said_so_far(context: JobContext) -> int:
    """The size of the log, bytes."""
    try:
        return log_of(context).stat().st_size
    except FileNotFoundError:
        return 0


def tail(context: JobContext, since_bytes: int) -> str:
    """The end of the log, of what was written behind `since_bytes`."""
    try:
        with log_of(context).open("rb") as stream:
            stream.seek(max(since_bytes, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
