"""Something that rank 0 does for all, however long it takes: the others wait, and no collective times out."""

import threading
from collections.abc import Callable
from typing import TypeVar

from ropewalk.cluster.errors import RopewalkError, StopRequested
from ropewalk.sharding.group import Group

T = TypeVar("T")

_TELL_SECONDS = 5.0  # far below the time-out of a collective
_WORKING = "working"


def on_main(group: Group, work: Callable[[], T]) -> T:
    """Call `work` on rank 0 and return what it returns, a plain value, on every rank; raise what it raises on every rank."""
    if not group.is_main:
        heard: object = _WORKING
        while heard == _WORKING:
            heard = group.broadcast_object(None)
        return _result(heard)
    done = threading.Event()

    def tell() -> None:
        while not done.wait(_TELL_SECONDS):
            group.broadcast_object(_WORKING)

    teller = threading.Thread(target=tell, name="tell the other ranks", daemon=True)
    teller.start()
    said: object = None
    try:
        said = (work(), None)
    except (RopewalkError, StopRequested) as error:
        said = (None, error)
    finally:  # any other error ends this rank, and the others with it
        done.set()
        teller.join()
    group.broadcast_object(said)
    return _result(said)


def _result(said: object) -> T:  # type: ignore[type-var]  # what rank 0 returned
    assert isinstance(said, tuple)
    value, error = said
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]
