"""Searches and schedulers at work, each on a toy whose best configuration is known."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.records import TrialState
from tests.fakes.gpus import machine_with
from tests.jobs.sweeping import Swept, sweeps
from tests.patience import until

pytestmark = [pytest.mark.slow]

Start = Callable[..., Swept]
LR = {"optim.lr": {"loguniform": [1e-3, 10.0]}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with sweeps(tmp_path) as begin:
        yield begin


@pytest.mark.soak(
    "40 seconds of CPU time; test_simulate.py has the scheduler, test_trial.py the ends of trials, and chaos/test_sweep.py a real"
    " sweep"
)
def test_asha_stops_the_worse_ones_at_rungs_and_goes_on_after_a_failure(start: Start) -> None:
    choice = {"optim.lr": {"grid": [0.1, 10.0, 50.0, 1.0]}}
    base = {"steps": 25, "pause": 0.15, "fail_above": 20.0, "retries": {"bugs": 0}}
    keys = {"allocation": True, "resources": {"cpus": 1}, "max_concurrent": 1}  # trials on the sweep's own node
    sweep = start(space=choice, trials=4, scheduler="asha", asha={"grace_steps": 5}, base=base, **keys)
    results = sweep.finish()
    assert {record.parameters["optim.lr"]: (record.state, record.stopped_at) for record in sweep.records()} == {
        0.1: (TrialState.SUCCEEDED, None),
        10.0: (TrialState.STOPPED, 5),
        50.0: (TrialState.FAILED, None),
        1.0: (TrialState.STOPPED, 15),  # the second best passes the first rung
    }
    assert "lr 50.0 is too high" in sweep.records()[2].cause
    assert results["parameters"] == {"optim.lr": 0.1}
    assert results["steps_spent"] + results["steps_saved"] == 3 * 25
    assert results["steps_saved"] > 18
    run = sweep.runs()[0]
    assert (run.record["parent"], run.record["trial"], run.record["job"]) == (sweep.run.id, 0, "searched")
    assert run.id.startswith("sweep-trial-0-")
    assert run.record["config"]["wandb"]["group"] == sweep.run.id


@pytest.mark.soak("a sweep of six trials; test_config.py covers spaces, and test_simulate.py searches")
def test_a_grid_runs_each_combination_once_and_conditions_leave_keys_out(start: Start) -> None:
    space = {
        "optim.lr": {"grid": [0.1, 1.0]},
        "optim.kind": {"choice": ["plain", "momentum"]},
        "optim.momentum": {"grid": [0.2, 0.5], "when": {"optim.kind": "momentum"}},
    }
    sweep = start(space=space, search="grid", base={"steps": 2})
    assert sweep.finish()["parameters"] == {"optim.lr": 0.1, "optim.kind": "momentum", "optim.momentum": 0.5}
    result = sorted(tuple(record.parameters.values()) for record in sweep.records())
    assert result == [
        (0.1, "momentum", 0.2),
        (0.1, "momentum", 0.5),
        (0.1, "plain"),
        (1.0, "momentum", 0.2),
        (1.0, "momentum", 0.5),
        (1.0, "plain"),
    ]


@pytest.mark.soak("a sweep of its own; test_trial.py has the ends of trials, and chaos/test_sweep.py a real sweep")
def test_a_trial_that_fails_says_why_and_the_sweep_goes_on(start: Start) -> None:
    base = {"steps": 3, "fail_above": 1.0, "retries": {"bugs": 0}}
    sweep = start(
        base=base, space={"optim.lr": {"grid": [5.0, 0.5, 0.1]}}, search="grid", scheduler="median", median={"grace_steps": 1}
    )
    assert sweep.finish()["best_trial"] == 2
    assert [record.state for record in sweep.records()] == [TrialState.FAILED, TrialState.SUCCEEDED, TrialState.SUCCEEDED]
    assert "lr 5.0 is too high" in sweep.records()[0].cause


@pytest.mark.soak("a sweep of its own; test_trial.py has the ends of trials, and chaos/test_sweep.py a real sweep")
def test_too_many_failures_end_the_sweep(start: Start) -> None:
    base = {"steps": 200, "fail_above": 0.0, "retries": {"bugs": 0}}
    sweep = start(base=base, trials=6, budget={"failed_trials": 1})
    sweep.finish(RunState.FAILED)
    outcome = sweep.run.last_outcome()
    assert outcome is not None
    assert outcome.exit_code == 42
    assert "trials failed; first cause: rank 0: ZeroDivisionError" in outcome.cause
    assert len(sweep.records()) < 6


@pytest.mark.soak("a sweep of its own; test_simulate.py stops trials")
def test_a_budget_of_steps_stops_what_runs(start: Start) -> None:
    sweep = start(base={"steps": 1000, "pause": 0.02}, trials=2, budget={"steps": 60})
    results = sweep.finish()
    assert {record.state for record in sweep.records()} == {TrialState.STOPPED}
    assert {record.cause for record in sweep.records()} == {"the budget is spent"}
    assert 60 <= results["steps_spent"] < 1000


@pytest.mark.soak("a minute of Ray and five trials; test_search.py asks the search itself")
def test_a_model_of_the_space_is_learnt_also_across_a_kill(start: Start) -> None:
    keys = {"search": "optuna", "scheduler": "median", "median": {"grace_steps": 3, "min_trials": 2}}
    keys |= {"optuna": {"startup_trials": 2}}
    space = {**LR, "optim.kind": {"choice": ["plain", "momentum"]}, "optim.momentum": {"uniform": [0.0, 0.9]}}
    sweep = start(space=space, base={"steps": 12, "pause": 0.02}, trials=5, max_concurrent=2, **keys)
    until(lambda: sum(record.state.final for record in sweep.records()) >= 2, describe=sweep.said)
    sweep.kill_driver()
    existing = {record.trial: record.parameters for record in sweep.records()}
    results = sweep.finish()
    records = sweep.records()
    assert len(records) == 5
    assert {record.state for record in records} <= {TrialState.SUCCEEDED, TrialState.STOPPED}
    assert all(record.parameters == existing[record.trial] for record in records if record.trial in existing)
    assert len({record.parameters["optim.lr"] for record in records}) == 5
    assert results["best"] == min(line["loss"] for line in last_lines(sweep))


def last_lines(sweep: Swept) -> list[dict[str, float]]:
    return [run.read_metrics()[-1] for run in sweep.runs()]


@pytest.mark.soak("a sweep of its own; test_gpus.py deals them")
def test_trials_on_this_machine_have_gpus_of_their_own(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(4, monkeypatch, CUDA_VISIBLE_DEVICES="3,1")
    base = {"steps": 2, "gate": 2, "resources": {"gpus": 1}}
    sweep = start(base=base, space={"optim.lr": {"grid": [0.1, 1.0]}}, search="grid", max_concurrent=2)
    until(lambda: sorted(sweep.steps().values()) == [[1], [1]], describe=sweep.said)  # both at the same time
    (sweep.root / "gate").touch()
    sweep.finish()
    assert sorted(run.results()["devices"] for run in sweep.runs()) == ["1", "3"]
