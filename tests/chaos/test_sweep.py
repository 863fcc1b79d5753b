"""Sweeps whose driver, Ray or trials are killed: every trial finishes once, and nothing is left behind."""

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.records import TrialState
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.status import final_outcome
from tests.jobs.sweeping import Swept, sweeps
from tests.patience import HANG_SECONDS, Patience, until

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

Start = Callable[..., Swept]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with sweeps(tmp_path) as begin:
        yield begin


@pytest.mark.parametrize(
    ("times", "trials"), [(1, 2), pytest.param(5, 8, marks=pytest.mark.soak("five kills; make test runs one"))]
)
def test_a_killed_driver_finishes_every_trial_once(start: Start, times: int, trials: int) -> None:
    sweep = start(base={"steps": 40, "pause": 0.05}, trials=trials, max_concurrent=2)
    for kills in range(times):
        until(lambda kills=kills: sum(r.state.final for r in sweep.records()) >= kills, describe=sweep.said)
        sweep.kill_driver()
    sweep.finish(patience=Patience.CLUSTER)
    records = sweep.records()
    assert [record.state for record in records] == [TrialState.SUCCEEDED] * trials
    assert [len(record.runs) for record in records] == [1] * trials
    assert len({record.parameters["optim.lr"] for record in records}) == trials
    steps = sweep.steps()
    assert all(sorted(set(run_steps)) == list(range(1, 41)) for run_steps in steps.values())
    redone = sum(len(run_steps) - len(set(run_steps)) for run_steps in steps.values())
    log.info("%d kills of the driver: %d of %d steps redone", times, redone, trials * 40)
    assert redone == 0, "the trials go on while nobody drives the sweep"
    assert len(sweep.events("trial_finished")) == trials


@pytest.mark.soak("a minute; make test cancels trials in jobs/orchestration/sweep/test_trial.py")
def test_a_cancelled_sweep_leaves_nothing_and_goes_on_when_resumed(start: Start) -> None:
    sweep = start(base={"steps": 400, "pause": 0.02}, trials=3, max_concurrent=2)
    until(
        lambda: len(sweep.runs()) == 2 and all(max(steps, default=0) >= 5 for steps in sweep.steps().values()),
        describe=sweep.said,
    )
    assert any("saves a checkpoint and exits" in item.message for item in cancel_runs([sweep.run.id]))
    sweep.finish(RunState.CANCELLED)
    sweep.nothing_is_left()
    assert {record.state for record in sweep.records()} <= {TrialState.CANCELLED}
    assert [final_outcome(run).state for run in sweep.runs()] == [RunState.CANCELLED] * 2  # type: ignore[union-attr]
    before = sweep.steps()
    sweep.resume()
    assert sweep.finish()["trials"] == {"SUCCEEDED": 3}
    assert all(steps == list(range(1, 401)) for steps in sweep.steps().values()), "what was saved is not done again"
    assert all(set(before[run.id]) <= set(sweep.steps()[run.id]) for run in sweep.runs()[:2])


@pytest.mark.soak("a minute; make test runs test_a_killed_driver_finishes_every_trial_once")
def test_trials_end_when_a_sweep_without_driver_is_cancelled(start: Start) -> None:
    sweep = start(base={"steps": 400, "pause": 0.05}, trials=2, max_concurrent=2)
    until(lambda: len(sweep.steps()) == 2 and all(sweep.steps().values()), describe=sweep.said)
    supervisor = psutil.Process(int((read_json(sweep.run.path / "supervisor.json") or {})["pid"]))
    for process in [*supervisor.children(recursive=True), supervisor]:
        process.kill()
    until(lambda: not sweep.processes_of_driver(), Patience.START)
    cancelled = list(cancel_runs([sweep.run.id]))
    assert len(cancelled) == 3, "its trials are told too"
    until(lambda: all(final_outcome(run) for run in sweep.runs()), describe=sweep.said)
    assert [final_outcome(run).state for run in sweep.runs()] == [RunState.CANCELLED] * 2  # type: ignore[union-attr]
    sweep.resume()
    assert sweep.finish()["trials"] == {"SUCCEEDED": 2}, "they go on with it"


@pytest.mark.soak("a minute; make test runs test_a_killed_driver_finishes_every_trial_once")
def test_a_preempted_driver_leaves_its_trials_at_work(start: Start) -> None:
    sweep = start(base={"steps": 100, "pause": 0.05}, trials=2, max_concurrent=2)
    until(lambda: len(sweep.steps()) == 2 and all(sweep.steps().values()), describe=sweep.said)
    psutil.Process(int((read_json(sweep.run.path / "supervisor.json") or {})["pid"])).send_signal(signal.SIGUSR2)
    assert sweep.finish()["trials"] == {"SUCCEEDED": 2}
    assert [sweep.run.outcome(number).exit_code for number in sweep.run.attempts()] == [85, 0]  # type: ignore[union-attr]
    assert all(steps == list(range(1, 101)) for steps in sweep.steps().values())
    assert {run.attempts()[-1] for run in sweep.runs()} == {1}, "no trial was stopped"


@pytest.mark.soak("kills each part of Ray; make test runs test_a_killed_driver_finishes_every_trial_once")
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_a_sweep_whose_ray_is_killed_follows_its_trials_again(start: Start, victim: str) -> None:
    sweep = start(base={"steps": 120, "pause": 0.05}, trials=2, max_concurrent=2)
    until(lambda: len(sweep.steps()) == 2 and all(sweep.steps().values()), describe=sweep.said)
    driver = psutil.Process(sweep.driver_pid())
    family = driver.children(recursive=True)
    next(process for process in family if process.name() == victim).kill()
    until(lambda: sweep.run.outcome(1), Patience.STEP, sweep.said)
    _, alive = psutil.wait_procs([driver, *family], timeout=HANG_SECONDS)
    assert not alive, "no process of the first attempt is left"
    assert sweep.finish()["trials"] == {"SUCCEEDED": 2}
    assert {run.attempts()[-1] for run in sweep.runs()} == {1}
    assert all(steps == list(range(1, 121)) for steps in sweep.steps().values())
