"""Searches that start from the trials of earlier sweeps."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import append_line
from ropewalk.jobs.orchestration.sweep.earlier import earlier_trials
from ropewalk.jobs.orchestration.sweep.keys import SweepKeys
from ropewalk.jobs.orchestration.sweep.records import read_records
from ropewalk.jobs.orchestration.sweep.search.plan import SearchPlan
from ropewalk.jobs.orchestration.sweep.search.searches import Search
from ropewalk.jobs.orchestration.sweep.search.space import Parameter
from tests.fakes.sweep import BASE, METRIC, make_sweep


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A sweep whose trials have ended."""
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    return make_sweep(tmp_path / "runs")


def keys(earlier: RunDir, **others: Any) -> SweepKeys:
    """A sweep that continues the earlier one."""
    config = earlier.record["config"]
    values = {"job": config["job"], "metric": METRIC, "space": config["space"], "base": config["base"], "search": "optuna"}
    return SweepKeys.model_validate({**values, "warm_start": [earlier.id], **others})


def test_ended_trials_inside_the_space_are_known(earlier: RunDir) -> None:
    trials = earlier_trials(keys(earlier))
    assert len(trials) == 15, "all but the one that failed"
    diverged = RunDir(earlier.path.parent / read_records(earlier)[0].runs[0])
    append_line(diverged.metrics, {"step": 1000, "attempt": 1, "time": 1.0, METRIC: None})
    assert len(earlier_trials(keys(earlier))) == 14
    assert all(set(trial.values) == set(earlier.record["config"]["space"]) for trial in trials)
    plan = keys(earlier, earlier_trials=trials).search_plan
    assert [metric for _, metric in plan.earlier_trials] == [trial.metric for trial in trials]
    assert Search(plan).suggest(0) is not None


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"mode": "max"}, "has mode=min, not max"),
        ({"metric": "train/loss"}, "has metric=validation/loss, not train/loss"),
        ({"base": {**BASE, "steps": 7}}, "not 7, so that their metrics cannot be compared"),
        ({"space": {"optim.lr": {"uniform": [5.0, 6.0]}}}, "has no trial inside the space"),
        ({"warm_start": ["missing"]}, "no run 'missing'"),
    ],
)
def test_sweeps_that_cannot_be_compared_are_refused(earlier: RunDir, others: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        earlier_trials(keys(earlier, **others))


def test_only_a_search_that_learns_takes_them(earlier: RunDir) -> None:
    with pytest.raises(ValueError, match="search=random does not learn from other trials; use search=gp"):
        keys(earlier, search="random")


@pytest.mark.parametrize("name", ["gp", "optuna"])
def test_the_first_trials_are_drawn_where_earlier_ones_were_good(name: str) -> None:
    space = {"x": Parameter(uniform=(0.0, 1.0))}
    earlier = [({"x": number / 30}, abs(number / 30 - 0.2)) for number in range(31)]
    near = 0
    for seed in range(20):
        values = Search(SearchPlan(space=space, search=name, seed=seed, earlier_trials=earlier)).suggest(0)
        assert values is not None
        near += abs(values["x"] - 0.2) < 0.15
    assert near >= 12, "of random draws it would be 6"
