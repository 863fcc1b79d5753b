"""Processes: find and end those that belong to a directory; keep the scheduler's signals from all but the agent."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 0.05  # between two looks at a flag


class Flag:
    """What a signal handler may set. An Event's lock may be held by the very code that the handler interrupts, such as the
    same handler on its way through an earlier signal: the process would wait for itself for ever.
    """

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """From a handler, or from anywhere."""
        self._set = True

    def clear(self) -> None:
        """Wait for the next one."""
        self._set = False

    def is_set(self) -> bool:
        """Whether it was set since the last `clear`."""
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so long; whether it is."""
        deadline = time.monotonic() + seconds
        while not self._set and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
        return self._set


class Departure:
    """How a process leaves of which one thread starts work and another may end it all: once it leaves, nothing starts any
    more, and only whoever began the departure says how it ends. Anyone else waits for the end of the process.
    """

    def __init__(self) -> None:
        self._begun = threading.Lock()
        self._nothing_runs = False

    def pause(self) -> None:
        """From now on nothing runs that has anything to save."""
        self._nothing_runs = True

    def resume(self) -> None:
        """Something is about to start. Does not return once the process leaves."""
        with self._begun:
            self._nothing_runs = False

    def begin(self) -> None:
        """The caller will end the process."""
        self._begun.acquire()

    def begin_if_nothing_runs(self) -> bool:
        """The same, unless something runs; whether it does not."""
        self._begun.acquire()
        if self._nothing_runs:
            return True
        self._begun.release()
        return False


STOP_SIGNALS = frozenset({signal.SIGUSR2, signal.SIGTERM})  # by which schedulers announce an end


@contextmanager
def deaf_children() -> Iterator[None]:
    """Children started inside do not hear the scheduler's signals before they `hear_stops`; those that never do end by SIGKILL.

    Schedulers signal every process of a job, not the first one alone, and only the agent knows what to do. A blocked
    signal stays blocked across fork and exec, and is kept: neither this process nor a child that will listen loses one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_stops(handler: Callable[[], object]) -> None:
    """Call `handler` whenever somebody wants this process to leave, and now if that was said while it started."""
    for word in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(word, lambda *_: handler())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_on_word_of(pid: int) -> None:
    """In a deaf process: leave on a SIGTERM of process `pid` (torch ends its ranks so), ignore anyone else's."""

    def listen() -> None:
        while True:
            found = signal.sigwaitinfo(STOP_SIGNALS)
            if found.si_signo == signal.SIGTERM and found.si_pid == pid:
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=listen, name="stop-signals", daemon=True).start()
