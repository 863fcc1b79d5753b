"""Reports of training steps are written in the background: in order, whole, and with their errors."""

import threading
from typing import Any

import pytest

from ropewalk.cluster.errors import StaleAttemptError
from ropewalk.cluster.run.background import BackgroundWriter
from tests.patience import Patience, until


class Pages:
    """Two writers that write down what they are given, and when."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[Any]]] = []
        self.closed = threading.Event()

    def left(self, items: list[Any]) -> None:
        self.calls.append(("left", items))

    def right(self, items: list[Any]) -> None:
        self.calls.append(("right", items))

    def stuck(self, items: list[Any]) -> None:
        self.closed.wait()


def test_the_order_is_kept_and_all_of_one_file_is_written_at_once() -> None:
    pages, checks = Pages(), list[int]()
    writer = BackgroundWriter(lambda: checks.append(1), pause_seconds=100.0)
    for number in range(100):
        writer.put(pages.left, number)
    writer.put(pages.right, "a")
    writer.put(pages.left, 100)
    writer.flush()
    assert pages.calls == [("left", list(range(101))), ("right", ["a"])]
    assert len(checks) == 1, "a shared file system is not asked for every line"
    writer.flush()


def test_what_goes_wrong_is_raised_by_the_next_word_and_nothing_more_is_written() -> None:
    pages = Pages()

    def check() -> None:
        raise StaleAttemptError("there is a newer one")

    writer = BackgroundWriter(check, pause_seconds=0.0)
    writer.put(pages.left, 1)
    with pytest.raises(StaleAttemptError):
        writer.flush()
    with pytest.raises(StaleAttemptError):
        writer.put(pages.left, 2)
    with pytest.raises(StaleAttemptError):
        writer.raise_error()
    assert pages.calls == []


def test_whoever_is_far_ahead_waits() -> None:
    pages, reported = Pages(), list[int]()
    put: list[int] = []
    writer = BackgroundWriter(lambda: None, waits=lambda: reported.append(len(put)), pause_seconds=0.0, most_waiting=3)

    def write_much() -> None:
        for number in range(10):
            writer.put(pages.stuck, number)
            put.append(number)

    thread = threading.Thread(target=write_much)
    thread.start()
    until(lambda: len(put) >= 3, Patience.SIGNAL)
    thread.join(0.3)
    assert thread.is_alive()
    assert len(put) <= 6, "at most what waits, and what is being written"
    assert reported[-1:] == [len(put)], "it is told before it waits"
    pages.closed.set()
    thread.join()
    writer.flush()
