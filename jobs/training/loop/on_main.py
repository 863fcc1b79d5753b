"""Work that rank 0 does for all ranks, without a time limit: the others wait, and no collective times out."""

import threading
from collections.abc import Callable
from typing import TypeVar

from ropewalk.cluster.errors import RopewalkError, StopRequested
from ropewalk.sharding.group import Group

T = TypeVar("T")

_KEEP_ALIVE_SECONDS = 5.0  # far below the time-out of a collective
_WORKING = "working"


def on_main(group: Group, work: Callable[[], T]) -> T:
    """Call `work` on rank 0, and return its result, a plain value, or raise its error, on every rank."""
    if not group.is_main:
        message: object = _WORKING
        while message == _WORKING:
            message = group.broadcast_object(None)
        return _result(message)
    done = threading.Event()

    def keep_alive() -> None:
        while not done.wait(_KEEP_ALIVE_SECONDS):
            group.broadcast_object(_WORKING)

    thread = threading.Thread(target=keep_alive, name="keep the other ranks waiting", daemon=True)
    thread.start()
    outcome: object = None
    try:
        outcome = (work(), None)
    except (RopewalkError, StopRequested) as error:
        outcome = (None, error)
    finally:  # any other error ends this rank, and the others with it
        done.set()
        thread.join()
    group.broadcast_object(outcome)
    return _result(outcome)


def _result(outcome: object) -> T:  # type: ignore[type-var]
    assert isinstance(outcome, tuple)
    value, error = outcome
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]
