"""Read ahead: same batches in order, errors at the consumer, no thread left behind."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from ropewalk.datapipe.loader.prefetch import prefetch, tell_ahead
from tests.patience import HANG_SECONDS


def echo(positions: Sequence[int]) -> np.ndarray:
    return np.asarray(positions)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "prefetch"]


def test_gives_every_batch_in_order() -> None:
    plan = [[i, i + 1] for i in range(50)]
    assert [b.tolist() for b in prefetch(echo, plan)] == plan
    assert not threads()


def test_reads_no_further_ahead_than_asked() -> None:
    done: list[int] = []
    reached = threading.Event()

    def read(positions: Sequence[int]) -> np.ndarray:
        done.append(positions[0])
        if len(done) == 4:
            reached.set()
        return echo(positions)

    batches = prefetch(read, ([i] for i in range(100)), depth=3)
    next(batches)
    assert reached.wait(HANG_SECONDS)
    batches.close()
    assert done == [0, 1, 2, 3]  # the one taken and three ahead


def test_closing_early_ends_the_thread() -> None:
    def forever() -> Iterator[Sequence[int]]:
        number = 0
        while True:
            yield [number]
            number += 1

    batches = prefetch(echo, forever())
    assert next(batches).tolist() == [0]
    batches.close()
    assert not threads()


def test_an_error_arrives_after_the_batches_before_it() -> None:
    def read(positions: Sequence[int]) -> np.ndarray:
        if positions[0] == 3:
            raise RuntimeError("disk on fire")
        return echo(positions)

    batches = prefetch(read, ([i] for i in range(10)))
    assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="disk on fire"):
        next(batches)
    assert not threads()


def test_an_error_of_the_plan_arrives_too() -> None:
    def plan() -> Iterator[Sequence[int]]:
        yield [0]
        raise KeyError("plan")

    batches = prefetch(echo, plan())
    next(batches)
    with pytest.raises(KeyError):
        next(batches)
    assert not threads()


def test_what_comes_is_told_ahead() -> None:
    announced: list[list[int]] = []
    plan = tell_ahead([[0], [1], [2], [3]], announced.append, ahead=2)
    assert next(plan) == [0]
    assert announced == [[0], [1], [2]]
    assert list(plan) == [[1], [2], [3]]
    assert announced == [[0], [1], [2], [3]]
