"""End of all trials by the watchdog's budget of minutes, without Ray."""

import time
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.sweep.config import SweepConfig, SweepContext
from ropewalk.jobs.orchestration.sweep.watchdog import Watchdog
from tests.fakes.sweep import BASE, METRIC, SPACE

NOW = 1_000_000.0


@pytest.fixture
def sweep(tmp_path: Path) -> RunDir:
    config = {"job": "pretrain", "base": BASE, "space": SPACE, "metric": METRIC, "trials": 4, "budget": {"minutes": 10}}
    return RunDir.create("sweep", {"job": "sweep", "config": config}, tmp_path / "runs")


def end_attempt(sweep: RunDir, minutes: float, *, began: bool = True) -> None:
    """An attempt more of the sweep, over after so many minutes."""
    number = sweep.begin_attempt()
    started = NOW - minutes * 60 if began else None
    sweep.write_outcome(number, Outcome(state=RunState.REQUEUED, exit_code=85, cause="preempted", started=started, ended=NOW))


def reason_after(sweep: RunDir, minutes: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """Reason to stop all trials after so many minutes under a budget of ten, or nothing if they go on."""
    config = SweepConfig.model_validate(sweep.record["config"])
    folder = sweep.path.parent.parent
    context = SweepContext(
        sweep=sweep, attempt=1, config=config, cluster="local", scratch=folder, launcher=folder, defaults={}, origin={}
    )
    watchdog = Watchdog(context, lambda: False, total=4)
    monkeypatch.setattr(time, "time", lambda: watchdog._began + minutes * 60)
    watchdog._check()
    monkeypatch.undo()
    return watchdog.stop_reason


def test_a_budget_of_minutes_ends_the_sweep(sweep: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason_after(sweep, 9.9, monkeypatch) == ""
    assert reason_after(sweep, 10.1, monkeypatch) == "budget"


def test_the_minutes_of_earlier_attempts_count(sweep: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    end_attempt(sweep, 4.0)
    end_attempt(sweep, 3.0)
    assert reason_after(sweep, 2.9, monkeypatch) == ""
    assert reason_after(sweep, 3.1, monkeypatch) == "budget"


def test_an_attempt_that_was_over_before_it_began_took_no_time(sweep: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    end_attempt(sweep, 4.0, began=False)
    assert reason_after(sweep, 9.9, monkeypatch) == ""
