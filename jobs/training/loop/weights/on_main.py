"""Work that rank 0 does for all ranks, without a time limit: the others wait, and no collective times out."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from ropewalk.cluster.errors import RopewalkError, StopRequested
from ropewalk.sharding.group import Group

T = TypeVar("T")

_KEEP_ALIVE_SECONDS = 5.0  # far below the time-out of a collective
_WORKING = "working"
_Message = Literal["working"] | tuple[Any, tuple[list[str], str] | None]  # the result, and class names and text of the error


def on_main(group: Group, work: Callable[[], T]) -> T:
    """Call `work` on rank 0, and return its result, a value of JSON, or raise its error, on every rank."""
    if not group.is_main:
        message: Any = _WORKING
        while message == _WORKING:
            message = group.broadcast_object(None, _Message)
        result: T = _result(message)
        return result
    done = threading.Event()

    def keep_alive() -> None:
        while not done.wait(_KEEP_ALIVE_SECONDS):
            group.broadcast_object(_WORKING, _Message)

    thread = threading.Thread(target=keep_alive, name="keep the other ranks waiting", daemon=True)
    thread.start()
    failure: RopewalkError | StopRequested | None = None
    outcome: Any = None
    try:
        outcome = (work(), None)
    except (RopewalkError, StopRequested) as error:
        failure, outcome = error, (None, ([kind.__name__ for kind in type(error).__mro__], str(error)))
    finally:  # any other error ends this rank, and the others with it
        done.set()
        thread.join()
    answer: Any = group.broadcast_object(outcome, _Message)
    if failure is not None:
        raise failure
    value: T = _result(answer)
    return value


def _result(message: Any) -> Any:
    """Return the result, or raise the error as the nearest class that this rank knows too."""
    value, error = message
    if error is None:
        return value
    names, text = error
    classes: list[type[Exception]] = [StopRequested, *_subclasses(RopewalkError)]
    kind = next(kind for name in names for kind in classes if kind.__name__ == name)
    raise kind.__new__(kind, text)  # not by its constructor, which may take other arguments


def _subclasses(kind: type[RopewalkError]) -> Iterator[type[RopewalkError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)
