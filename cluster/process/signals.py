"""Stop signals: which process of a job gets the scheduler's signals, and what it does with them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 0.05  # between two looks at a flag
STOP_SIGNALS = frozenset({signal.SIGUSR2, signal.SIGTERM})  # by which schedulers announce an end


class SignalFlag:
    """A flag that a signal handler may set.

    threading.Event would not do: the code that the handler interrupts may hold the Event's lock (as the same handler does on
    its way through an earlier signal), and the process would wait for itself for ever.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Set the flag, from a signal handler or from anywhere else."""
        self._set = True

    def clear(self) -> None:
        """Reset the flag, to wait for the next signal."""
        self._set = False

    def is_set(self) -> bool:
        """Return whether the flag was set since the last `clear`."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait until the flag is set, at most so many seconds; returns whether it is."""
        deadline = time.monotonic() + seconds
        while not self._set and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
        return self._set


class ShutdownGate:
    """Lets one thread start work and another end the process, never both at once.

    Once a shutdown has begun nothing starts any more, and only the thread that began it says how the process ends; any other
    thread that comes to the gate waits for the end of the process.
    """

    def __init__(self) -> None:
        self._begun = threading.RLock()  # what fails in the middle of a shutdown is tried again
        self._nothing_runs = False

    def pause(self) -> None:
        """Declare that from now on nothing runs that has anything to save."""
        self._nothing_runs = True

    def resume(self) -> None:
        """Declare that work is about to start. Does not return once a shutdown has begun."""
        with self._begun:
            self._nothing_runs = False

    def begin(self) -> None:
        """Begin the shutdown: the caller will end the process."""
        self._begun.acquire()

    def begin_if_nothing_runs(self) -> bool:
        """Begin the shutdown unless work runs; returns whether it has begun."""
        self._begun.acquire()
        if self._nothing_runs:
            return True
        self._begun.release()
        return False


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the scheduler's signals in children that are started inside, until each calls `install_stop_handler`.

    Schedulers signal every process of a job, not the first one alone, and only the agent knows what to do. A child that never
    installs a handler ends by SIGKILL alone. A blocked signal stays blocked across fork and exec, and is kept: neither this
    process nor a child that installs its handler later loses one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def install_stop_handler(handler: Callable[[], object]) -> None:
    """Call `handler` at every stop signal and SIGINT, and at once for a stop signal that came while this process started."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, lambda *_: handler())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def exit_on_sigterm_from(pid: int) -> None:
    """In a process whose stop signals are blocked: exit at a SIGTERM from process `pid`, and ignore those of all others.

    torch's agent ends its ranks by SIGTERM; a scheduler's SIGTERM must not.
    """

    def listen() -> None:
        while True:
            found = signal.sigwaitinfo(STOP_SIGNALS)
            if found.si_signo == signal.SIGTERM and found.si_pid == pid:
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, name="stop-signals", daemon=True).start()
