"""Python's garbage collection at set steps: it stops all ranks at once, where each would keep the others waiting in turn."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = 100


@contextmanager
def collected_by_step(*, freeze: bool = True) -> Iterator[None]:
    """Leave garbage to `collect_at`. Objects that exist already are not examined again, unless `freeze` is False.

    A rank of our agent has frozen what the fork server imported, and must find the garbage of this group when it breaks.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_at(step: int) -> None:
    """Collect garbage if it is time, after a step of the run that is the same on all ranks."""
    if step % _STEPS == 0:
        gc.collect()
