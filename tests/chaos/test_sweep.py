"""Sweeps whose driver, Ray or trials are killed: every trial finishes once, and nothing is left behind."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.sweeps.records import TrialState
from tests.jobs.sweeping import Swept, sweeps, until

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Start = Callable[..., Swept]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with sweeps(tmp_path) as begin:
        yield begin


def test_a_driver_killed_five_times_finishes_every_trial_once(start: Start) -> None:
    sweep = start(base={"steps": 40, "pause": 0.05}, trials=12, max_concurrent=2, retries={"bugs": 10})
    for kills in range(5):
        until(lambda kills=kills: sum(r.state.final for r in sweep.records()) >= 2 * kills, said=sweep.said)
        sweep.kill_driver()
    sweep.finish(seconds=200)
    records = sweep.records()
    assert [record.state for record in records] == [TrialState.SUCCEEDED] * 12
    assert [len(record.runs) for record in records] == [1] * 12
    assert len({record.parameters["optim.lr"] for record in records}) == 12
    steps = sweep.steps()
    assert all(sorted(set(own)) == list(range(1, 41)) for own in steps.values())
    redone = sum(len(own) - len(set(own)) for own in steps.values())
    log.info("five kills of the driver: %d of %d steps redone", redone, 12 * 40)
    assert redone == 0, "the trials go on while nobody drives the sweep"
    assert len(sweep.events("trial_finished")) == 12
