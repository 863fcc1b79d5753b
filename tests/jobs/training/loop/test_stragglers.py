"""A slow rank is named with its share and its cause; even ranks are not. Rows of ranks are made here."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ropewalk.jobs.runs.show.stragglers import describe_stragglers, stragglers
from ropewalk.jobs.training.loop.report.stragglers import Stragglers, step_without
from ropewalk.jobs.training.loop.update import step_clock
from ropewalk.jobs.training.loop.update.step_clock import EXCHANGE_STEPS, RankRow, StepClock, StepPhase, rows_of

EVEN = (0.01, 0.2, 0.02, 0.02)
HOSTS = [f"n{rank}" for rank in range(4)]


def rows(slow: dict[int, dict[StepPhase, float]] | None = None, noise: float = 0.0, seed: int = 0) -> list[RankRow]:
    """Rows of 4 ranks, of which some take longer in a phase; the others wait for them."""
    draw = random.Random(seed)
    busy = [[each * (1 + draw.gauss(0, noise)) for each in EVEN] for _ in HOSTS]
    for rank, phases in (slow or {}).items():
        for phase, seconds in phases.items():
            busy[rank][phase] += seconds
    step = sum(max(each[phase] for each in busy) for phase in StepPhase)
    return [RankRow(tuple(each), step - sum(each), 0.0, 0.0, 0.0) for each in busy]


def fed(reports: Sequence[Sequence[RankRow]]) -> list[tuple[str, dict[str, Any]]]:
    watch = Stragglers(HOSTS)
    changes = [watch.add(report) for report in reports]
    return [(kind, each) for slow, ended in changes for kind, part in (("slow", slow), ("ended", ended)) for each in part]


@pytest.mark.parametrize("phase", StepPhase)
def test_a_rank_that_is_slow_is_named_once_with_what_it_costs(phase: StepPhase) -> None:
    events = fed([rows({2: {phase: 0.05}}, noise=0.01, seed=seed) for seed in range(10)])
    assert [kind for kind, _ in events] == ["slow"]
    fields = events[0][1]
    assert (fields["rank"], fields["host"], fields["phase"]) == (2, "n2", phase.name.lower())
    assert fields["share"] == pytest.approx(0.05 / 0.25, abs=0.02)
    assert fields["rate_without"] == pytest.approx(0.30 / 0.25, abs=0.02)


def test_even_ranks_and_single_hiccups_are_not_named() -> None:
    assert fed([rows(noise=0.03, seed=seed) for seed in range(200)]) == []
    hiccups = [rows({1: {StepPhase.FORWARD_BACKWARD: 0.5 * (seed % 3 == 0)}}, seed=seed) for seed in range(30)]
    assert fed(hiccups) == []


def test_a_rank_that_catches_up_is_reported() -> None:
    slow = [rows({0: {StepPhase.DATA: 0.05}})] * 3
    assert [kind for kind, _ in fed([*slow, *[rows()] * 3, *slow])] == ["slow", "ended", "slow"]


def test_without_two_slow_ranks_the_step_is_that_of_the_others() -> None:
    both = rows({0: {StepPhase.DATA: 0.05}, 3: {StepPhase.FORWARD_BACKWARD: 0.1}})
    assert step_without(both, {0: "", 3: ""}) == pytest.approx(sum(EVEN))
    assert step_without(both, {3: ""}) == pytest.approx(sum(EVEN) + 0.05)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"without_core": 0.04}, "other processes have its CPU"),
        ({"throttled": 0.04, "without_core": 0.01}, "CPU quota"),
        ({"clock_mhz": 900.0}, "clock is 900 MHz"),
        ({}, ""),
    ],
)
def test_the_cause_is_told_where_it_explains_the_excess(values: dict[str, float], sentence: str) -> None:
    report = [row._replace(clock_mhz=1700.0) for row in rows({1: {StepPhase.FORWARD_BACKWARD: 0.05}})]
    report[1] = report[1]._replace(**values)
    [(_, fields)] = fed([report] * 3)
    assert sentence in fields["cause"]
    assert bool(fields["cause"]) is bool(sentence)


def test_a_slow_rank_is_described_until_it_catches_up_or_the_group_changes() -> None:
    fields = fed([rows({2: {StepPhase.DATA: 0.05}})] * 3)[0][1]
    slow = {"event": "straggler", "step": 12, **fields}
    formed, ended = {"event": "group_formed"}, {"event": "straggler_ended", "rank": 2}

    def ranks_of(*events: dict[str, Any]) -> list[int]:
        run: Any = SimpleNamespace(read_events=lambda: list(events))
        return [each["rank"] for each in stragglers(run)]

    assert (ranks_of(formed, slow), ranks_of(slow, ended), ranks_of(slow, formed)) == ([2], [], [])
    sentence = describe_stragglers([slow])
    assert sentence.startswith("rank 2 on n2 is 20% slower than the others in data (it waits for its data)")
    assert sentence.endswith("without it the run is 1.20 times as fast")


def test_a_clock_excludes_waits_and_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: now[0])
    group: Any = SimpleNamespace(device=torch.device("cpu"), world_size=2, rank=1)
    clock = StepClock(group)

    def work(seconds: float) -> None:
        now[0] += seconds

    for step in range(1, 2 * EXCHANGE_STEPS + 1):
        values = clock.values(step).tolist()
        assert len(values) == clock.exchanged(step)
        factor = 100.0 if step <= step_clock.SKIPPED_STEPS else 1.0
        clock.begin()
        work(0.1 * factor)
        clock.end(StepPhase.DATA)
        work(0.3)
        with clock.waiting():
            work(7.0)
        clock.end(StepPhase.FORWARD_BACKWARD)
        with clock.waiting():
            work(2.0)
        clock.end(StepPhase.REDUCE)
        work(0.2)
        clock.end(StepPhase.UPDATE)
        work(50.0)  # a validation, which is no part of a step
    assert rows_of(values) == []  # the other rank's row is missing
    [row] = rows_of(values[step_clock.WIDTH :])
    assert row.phases == pytest.approx((0.1, 0.3, 0.0, 0.2))
    assert row.waiting == pytest.approx(9.0)
