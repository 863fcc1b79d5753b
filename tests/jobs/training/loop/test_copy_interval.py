"""The interval of copies to memory: as given, or that at which copies take at most 1% of the time."""

from typing import Any

import pytest

from ropewalk.jobs.training.loop.update.copy_interval import FIRST_STEPS, MEASURED_STEPS, CopyInterval


class OfOtherRanks:
    """A group whose rank 0 has measured the same."""

    def broadcast_object(self, value: Any) -> Any:
        return value


def run(every: Any, step_seconds: float, copy_seconds: float, most: int = 1000, steps: int = 100) -> tuple[list[int], list[Any]]:
    """The steps after which the state is copied, of a run whose copies delay the step after them, and the events."""
    now, copied, events = 0.0, [], []
    interval = CopyInterval(every, most, OfOtherRanks(), lambda kind, **fields: events.append((kind, fields)), lambda: now)  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        now += step_seconds + (copy_seconds if copied[-1:] == [step - 1] else 0.0)
        interval.end_step(step)
        if interval.due(step):
            copied.append(step)
    return copied, events


@pytest.mark.parametrize(
    ("step_seconds", "copy_seconds", "expected"), [(1.0, 0.0, 1), (1.0, 0.01, 1), (1.0, 0.045, 5), (0.1, 0.5, 40)]
)
def test_auto_takes_at_most_one_percent(step_seconds: float, copy_seconds: float, expected: int) -> None:
    copied, events = run("auto", step_seconds, copy_seconds, most=40, steps=200)
    (kind, fields), measured = events[0], FIRST_STEPS + 2 * MEASURED_STEPS + 2
    assert (kind, fields["every_steps"], fields["step"]) == ("memory_interval", expected, measured)
    assert fields["copy_seconds"] == pytest.approx(copy_seconds, abs=1e-9)
    assert copied[: FIRST_STEPS + MEASURED_STEPS - 1] == list(range(1, FIRST_STEPS + MEASURED_STEPS)), "at first after each"
    assert [step for step in copied if step >= measured] == [step for step in range(measured, 201) if step % expected == 0]


def test_a_given_interval_is_kept_and_none_means_no_copies() -> None:
    assert run(7, 1.0, 1.0, steps=30) == ([7, 14, 21, 28], [])
    assert run(None, 1.0, 1.0) == ([], [])
