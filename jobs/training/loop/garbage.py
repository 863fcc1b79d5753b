"""Python's garbage collection at set steps: it stops all ranks at once, where each would keep the others waiting in turn."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = 100


@contextmanager
def collected_by_step() -> Iterator[None]:
    """Leave garbage to `collect_at`. Objects that exist already are not examined again."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def collect_at(step: int) -> None:
    """Collect garbage if it is time, after a step of the run that is the same on all ranks."""
    if step % _STEPS == 0:
        gc.collect()
