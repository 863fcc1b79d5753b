"""Handling of the stop signals by which schedulers announce the end of a job."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.05  # between two checks of a flag
END_SIGNAL = signal.SIGHUP  # from the agent to its sidecars
STOP_SIGNALS = frozenset({signal.SIGUSR2, signal.SIGTERM})


class SignalFlag:
    """A flag that a signal handler may set.

    threading.Event is not safe here: the code that the handler interrupts (such as the handler of an earlier signal) may hold
    the Event's lock, and the process would deadlock.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait until the flag is set, at most `seconds`, and return its state."""
        deadline = time.monotonic() + seconds
        while not self._set and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return self._set


class ShutdownGate:
    """Lock that lets one thread start work or another thread end the process, but never both.

    Once a shutdown has begun, no work can start, and only the thread that began it ends the process. Any other thread that
    calls the gate blocks until the process ends.
    """

    def __init__(self) -> None:
        self._begun = threading.RLock()  # reentrant: a failed shutdown may be repeated
        self._nothing_runs = False

    def pause(self) -> None:
        """Declare that no work with unsaved state is running."""
        self._nothing_runs = True

    def resume(self) -> None:
        """Declare that work is about to start. Never returns once a shutdown has begun."""
        with self._begun:
            self._nothing_runs = False

    def begin(self) -> None:
        """Begin the shutdown; the caller then ends the process."""
        self._begun.acquire()

    def begin_if_nothing_runs(self) -> bool:
        """Begin the shutdown unless work is running, and return whether it has begun."""
        self._begun.acquire()
        if self._nothing_runs:
            return True
        self._begun.release()
        return False


def install_end_handler(handler: Callable[[], object]) -> None:
    """Call `handler` when the agent ends this sidecar, and at once if it did while this process started."""
    for number in (END_SIGNAL, signal.SIGTERM):
        signal.signal(number, lambda *_: handler())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {END_SIGNAL})


@contextmanager
def stop_signals_blocked(*others: signal.Signals) -> Iterator[None]:
    """Start children inside this block with the stop signals, and `others`, blocked, until they install a handler.

    Schedulers signal every process of a job, but only the agent should act on the signal. A child that never installs a
    handler can only be ended by SIGKILL. Blocked signals stay blocked across fork and exec and remain pending, so neither
    this process nor a child that installs a handler later loses one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def install_stop_handler(handler: Callable[[], object]) -> None:
    """Call `handler` at every stop signal and SIGINT, and at once if a stop signal arrived while this process started."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, lambda *_: handler())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
