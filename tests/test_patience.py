"""A loaded machine gets more time, and a condition that never comes says what was waited for."""

import pytest

from tests import patience
from tests.patience import MachineClock, Patience, until


def test_seconds_count_less_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0])
    monkeypatch.setattr("tests.patience.time.monotonic", lambda: next(now))
    load = iter([1.0, 4.0])
    monkeypatch.setattr("tests.patience.slowness", lambda: next(load))
    clock = MachineClock()
    assert (clock.look(), clock.look()) == (1.0, 2.0)


@pytest.mark.parametrize(("running", "slow"), [(1, 1.0), (2, 1.0), (5, 2.0), (999, patience.SLOWEST)])
def test_slowness_is_programs_for_each_core(running: int, slow: float, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "load").write_text(f"0.1 0.1 0.1 {running}/300 4711\n")
    monkeypatch.setattr("tests.patience.LOAD", tmp_path / "load")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert patience.slowness() == slow


def test_the_value_is_returned_and_its_absence_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0, "", "there"])
    assert until(lambda: next(values), Patience.SIGNAL) == "there"
    monkeypatch.setattr("tests.patience.MachineClock.look", lambda self: 1e9)
    with pytest.raises(AssertionError, match=r"Patience.SIGNAL: the last words"):
        until(lambda: False, Patience.SIGNAL, lambda: "the last words")


def test_expensive_looks_are_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    spent, pauses = iter([0.0, 0.0, 0.0, 0.01, 0.01, 9.0, 9.0]), list[float]()
    monkeypatch.setattr("tests.patience._cpu_seconds", lambda: next(spent))
    monkeypatch.setattr("tests.patience.time.sleep", pauses.append)
    until(lambda: len(pauses) == 3, Patience.SIGNAL)
    assert pauses == pytest.approx([patience.LOOK_SECONDS, 0.01 / patience.LOOK_SHARE, patience.MOST_LOOK_SECONDS])
