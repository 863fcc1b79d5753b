"""Background thread that writes metrics and events, so that training steps do not wait for a file system."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

Write = Callable[[list[Any]], None]

PAUSE_SECONDS = 0.25  # items of this interval are written together, to limit the load of a shared file system
MOST_WAITING = 10_000  # items; when so many are waiting, `put` blocks


class BackgroundWriter:
    """Passes items to their write functions, in order and in batches per function.

    `check` is called before each batch, and raises if this process may no longer write. The first error ends the thread, and
    is raised by every later call of `put`, `flush` and `raise_error`. `waits` is called before `put` blocks.
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
        self._flushes = self._writing = self._ends = False
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="writer", daemon=True).start()

    def put(self, write: Write, item: Any) -> None:
        """Queue an item for `write`. Raises the first error of an earlier write."""
        with self._changed:
            if len(self._items) >= self._most_waiting and self._error is None:
                self._waits()
            while len(self._items) >= self._most_waiting and self._error is None:
                self._changed.wait()
            self.raise_error()
            self._items.append((write, item))
            if len(self._items) == 1:  # otherwise the thread is awake already
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

    def end(self) -> None:
        """End the thread; what is queued is lost."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while self._error is None and not self._ends:
            items = self._next_items()
            error = None
            try:
                self._check()
                for write, group in items.items():
                    write(group)
            except BaseException as caught:  # raised again by the next call
                error = caught
            with self._changed:
                self._error, self._writing = error, False
                self._changed.notify_all()

    def _next_items(self) -> dict[Write, list[Any]]:
        with self._changed:
            while not self._items and not self._ends:
                self._changed.wait()
            self._changed.wait_for(lambda: self._flushes or self._ends, self._pause_seconds)
            items: dict[Write, list[Any]] = {}
            for write, item in self._items:
                items.setdefault(write, []).append(item)
            self._items.clear()
            self._writing = True
            self._changed.notify_all()
        return items
