"""Read batches ahead of the training loop in one thread."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

B = TypeVar("B")  # a batch
P = TypeVar("P")  # positions of a batch


class _End:
    """Last item of the thread: the plan is finished, or failed with an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def tell_ahead(plan: Iterable[P], expect: Callable[[P], None], ahead: int = 16) -> Iterator[P]:
    """Yield the items of the plan, after calling `expect` for each and for the next `ahead` ones."""
    upcoming: deque[P] = deque()
    for positions in plan:
        expect(positions)
        upcoming.append(positions)
        if len(upcoming) > ahead:
            yield upcoming.popleft()
    yield from upcoming


def prefetch(read: Callable[[Sequence[int]], B], plan: Iterable[Sequence[int]], depth: int = 2) -> Generator[B, None, None]:
    """Yield the result of `read` for each item of the plan, in order, reading up to `depth` items ahead.

    An error of `read` or of the plan is raised here, after the batches before it. The thread ends with the plan, or when the
    generator is closed.
    """
    assert depth >= 1, "at least one batch must be under way"
    ready: queue.SimpleQueue[B | _End] = queue.SimpleQueue()
    free = threading.Semaphore(depth)
    closed = threading.Event()

    def work() -> None:
        try:
            for positions in plan:
                free.acquire()
                if closed.is_set():
                    return
                ready.put(read(positions))
            ready.put(_End())
        except BaseException as error:  # raised at the consumer
            ready.put(_End(error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            free.release()
            yield item
    finally:
        closed.set()
        free.release()
        thread.join()
