"""A thread that writes metrics and events, so that no training step waits for a file system."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Write = Callable[[list[Any]], None]

PAUSE_SECONDS = 0.25  # what comes meanwhile is written together: a shared file system is asked some times a second, not a step
MOST_WAITING = 10_000  # items; of a file system that stands still for longer than these the caller waits


class BackgroundWriter:
    """Hands items to their writers, those of one writer together and in the order in which they came.

    `check` is called before anything is written, and raises where this process may no longer write. The first error ends the
    thread; every later call of `put`, `flush` and `raise_error` raises it. Before `put` waits for the file system it calls
    `waits`.
    """

    def __init__(
        self,
        check: Callable[[], None],
        *,
        waits: Callable[[], None] = lambda: None,
        pause_seconds: float = PAUSE_SECONDS,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._check, self._waits, self._pause_seconds, self._most_waiting = check, waits, pause_seconds, most_waiting
        self._items: deque[tuple[Write, Any]] = deque()
        self._changed = threading.Condition()
        self._flushes = self._writing = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    def put(self, write: Write, item: Any) -> None:
        """Have `write` called soon with a list that holds the item. Raises the first error of an earlier write."""
        with self._changed:
            if len(self._items) >= self._most_waiting and self._error is None:
                self._waits()
            while len(self._items) >= self._most_waiting and self._error is None:
                self._changed.wait()
            self.raise_error()
            self._items.append((write, item))
            if len(self._items) == 1:  # else the thread knows, and a step need not wake it
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all items are written. Raises the first error of a write."""
        with self._changed:
            self._flushes = True
            self._changed.notify_all()
            while (self._items or self._writing) and self._error is None:
                self._changed.wait()
            self._flushes = False
            self.raise_error()

    def raise_error(self) -> None:
        """Raise the first error of a write, if there was one. Touches no file."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while self._error is None:
            items = self._next_items()
            error = None
            try:
                self._check()
                for write, group in items.items():
                    write(group)
            except BaseException as caught:  # raised by the next call
                error = caught
            with self._changed:
                self._error, self._writing = error, False
                self._changed.notify_all()

    def _next_items(self) -> dict[Write, list[Any]]:
        with self._changed:
            while not self._items:
                self._changed.wait()
            self._changed.wait_for(lambda: self._flushes, self._pause_seconds)
            items: dict[Write, list[Any]] = {}
            for write, item in self._items:
                items.setdefault(write, []).append(item)
            self._items.clear()
            self._writing = True
            self._changed.notify_all()
        return items
