"""Garbage is collected at set steps and not in between, and afterwards as before."""

import gc
import weakref

from ropewalk.jobs.training.loop.update.garbage import collect_at, collected_by_step


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_cycles_live_until_the_next_collection() -> None:
    assert gc.isenabled()
    with collected_by_step():
        cycles = [weakref.ref(Cycle()) for _ in range(10_000)]
        collect_at(99)
        assert all(cycle() is not None for cycle in cycles)
        collect_at(200)
        assert all(cycle() is None for cycle in cycles)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
