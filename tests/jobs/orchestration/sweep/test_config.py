"""Mistakes in a sweep's configuration are reported before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk import jobs
from ropewalk.cluster.config_reader import load_config, read_job_file
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.orchestration.sweep.checks import concurrent_trials, decision_steps, sample_config
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.search.searches import parameters_of
from ropewalk.jobs.orchestration.sweep.search.space import Parameter, active_parameters, encode, merge_parameters, samples
from ropewalk.jobs.orchestration.sweep.trials.report import ReportInterval
from tests.jobs.shell import Shell

GOOD: dict[str, Any] = {
    "job": "pretrain",
    "base": {"data": "data", "steps": 100, "validation": {"every_steps": 10}},
    "space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
    "metric": "validation/loss",
}


def load(**changes: Any) -> SweepConfig:
    config = load_config(SweepConfig, {**GOOD, **changes})
    assert isinstance(config, SweepConfig)
    return config.resolved()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": "pretrian"}, "did you mean 'pretrain'"),
        ({"job": "sweep"}, "a sweep cannot search a sweep"),
        ({"base": {"data": "data", "stepz": 3}}, "unknown key 'stepz'; did you mean 'steps'"),
        ({"base": {"data": "data"}}, "steps: required"),
        ({"space": {"optim.lrr": {"uniform": [0, 1]}}}, "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ({"space": {"optim.lr": {"uniform": [-1, 1]}}}, "with optim.lr=-1.0"),
        ({"space": {"optim.lr": {"uniform": [2, 1]}}}, "the range must be ascending"),
        ({"space": {"optim.lr": {"loguniform": [0, 1]}}}, "must start above 0"),
        ({"space": {"optim.lr": {"uniform": [1, 2], "choice": [1]}}}, "exactly one of"),
        ({"space": {"optim.lr": {}}}, "exactly one of"),
        ({"space": {"resources.nodes": {"choice": [1, 2]}}}, "all trials share this key"),
        ({"space": {"optim.schedule": {"choice": ["cosine", "square"]}}}, "with optim.schedule=square"),
        ({"space": {"optim.lr": {"uniform": [1, 2], "when": {"seed": 1}}}}, "seed is not a key of the space"),
        ({"space": {}}, "space"),
        ({"search": "grid"}, "space.optim.lr is a range"),
        ({"scheduler": "pbt", "search": "optuna"}, "works with search=random only"),
        ({"search": "bohb"}, "search: bohb is not supported, as its packages are unmaintained; use search=gp"),
        ({"allocation": True, "cluster": "local"}, "remove cluster or allocation"),
        ({"resources": {"nodes": 2}}, "resources are those of the driver"),
        ({"scheduler": "best"}, "scheduler"),
        ({"metrik": "x"}, "did you mean 'metric'"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(**changes)
    assert message in str(error.value)


def test_a_space_on_the_command_line_replaces_that_of_the_file() -> None:
    config = load_config(SweepConfig, GOOD, ["space.optim.lr.choice=[0.1, 0.2]", "space.optim.eps={uniform: [1e-9, 1e-8]}"])
    assert isinstance(config, SweepConfig)
    assert {key: parameter.kind for key, parameter in config.space.items()} == {"optim.lr": "choice", "optim.eps": "uniform"}
    with pytest.raises(ConfigError, match=r"unknown key 'space.optim.lr.choise'; did you mean 'space.optim.lr.choice'"):
        load_config(SweepConfig, GOOD, ["space.optim.lr.choise=[0.1, 0.2]"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "validation/los"}, "did you mean 'validation/loss'"),
        ({"scheduler": "asha", "asha": {"grace_steps": 100}}, "first decision is after 100 steps"),
        ({"scheduler": "asha", "base": {"data": "data", "steps": 50}}, "set base.validation.every_steps=5"),
        (
            {
                "job": "evaluate",
                "base": {"model": "x", "data": "data"},
                "space": {"seq_len": {"choice": [8]}},
                "scheduler": "asha",
            },
            "asha.max_steps: required",
        ),
        (
            {"scheduler": "pbt", "base": {**GOOD["base"], "checkpoint": {"every_steps": 7}}},
            "multiple of base.checkpoint.every_steps=7",
        ),
        ({"cluster": "nowhere"}, "unknown cluster 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_named_at_submission(shell: Shell, changes: dict[str, Any], message: str) -> None:
    (shell.home / "sweep.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    assert message in shell.mistake("submit", "sweep", "-c", "sweep.yaml", "--on", "good")


def test_the_record_holds_what_the_driver_needs(shell: Shell) -> None:
    (shell.home / "base.yaml").write_text(yaml.safe_dump({"data": "data", "steps": 100}))
    (shell.home / "sweep.yaml").write_text(yaml.safe_dump({**GOOD, "base": "base.yaml", "cluster": "good"}))
    from ropewalk.cluster.run.directory import RunDir

    run = RunDir(shell.home / "runs" / shell("submit", "sweep", "-c", "sweep.yaml", "trials=4", "--on", "slow").split()[-1])
    record = run.record
    assert record["trials_on"] == {"cluster": "good", "backend": "fake"}
    assert record["clusters"]["good"]["outcome"] == "SUCCEEDED"
    assert record["config"]["base"] == {"data": str(shell.home / "data"), "steps": 100}, "paths are meant where the user stands"
    assert record["config"]["trials"] == 4


def test_resume_of_another_job_is_a_mistake(shell: Shell) -> None:
    word = shell("submit", "pretrain", "data=data", "steps=3", "seq_len=16", "--on", "slow").split()[-1]
    assert "is a pretrain run, not a sweep" in shell.mistake("run", "sweep", "--resume", word)
    assert "leave out -c x.yaml" in shell.mistake("run", "pretrain", "--resume", word, "-c", "x.yaml")


def test_conditions_leave_keys_out_and_hold_in_chains() -> None:
    space = {
        "c": Parameter(uniform=(0, 1), when={"b": ["x", "y"]}),
        "b": Parameter(choice=["x", "y", "z"], when={"a": 1}),
        "a": Parameter(choice=[1, 2]),
    }
    assert active_parameters(space, {"a": 1, "b": "y", "c": 0.5}) == {"c": 0.5, "b": "y", "a": 1}
    assert active_parameters(space, {"a": 2, "b": "y", "c": 0.5}) == {"a": 2}
    assert active_parameters(space, {"a": 1, "b": "z", "c": 0.5}) == {"b": "z", "a": 1}
    for key, parameter in space.items():
        for value in parameter.extremes:
            assert any(sample.get(key) == value for sample in samples(space)), f"{key}={value} is checked"


def test_lists_travel_as_text_and_come_back() -> None:
    space = {"optim.betas": Parameter(choice=[[0.9, 0.95], [0.8, 0.99]])}
    names = [encode(value) for value in space["optim.betas"].values or []]
    assert all(isinstance(name, str) for name in names)
    assert parameters_of(space, {"optim.betas": names[1]}) == {"optim.betas": [0.8, 0.99]}


def test_parameters_are_set_where_they_belong() -> None:
    values = merge_parameters({"optim": {"lr": 1, "eps": 2}}, {"optim.lr": 3, "a.b": 4})
    assert values == {"optim": {"lr": 3, "eps": 2}, "a": {"b": 4}}


def test_a_scheduler_hears_of_the_first_reading_behind_each_of_its_steps() -> None:
    interval = ReportInterval(10)
    assert [step for step in (5, 12, 15, 19, 20, 25, 47, 49) if interval.due(step)] == [12, 20, 47]
    assert not ReportInterval(None).due(100)


def test_as_many_trials_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    two = load(base={**GOOD["base"], "resources": {"nodes": 2, "ranks_per_node": 2}}, trials=20)
    resources = sample_config(two).resources
    assert concurrent_trials(two, resources, "local") == 2
    assert concurrent_trials(two, resources, "slurm") == 8
    assert concurrent_trials(load(trials=3), resources, "slurm") == 3
    assert concurrent_trials(load(max_concurrent=5), resources, "local") == 5
    assert concurrent_trials(load(scheduler="pbt", trials=6), resources, "local") == 6, "a population runs together"


def test_the_example_is_a_sweep_and_its_first_rung_lies_on_a_validation() -> None:
    values = read_job_file(Path(jobs.__file__).parent / "configs/sweep.yaml", "sweep")
    config = load_config(SweepConfig, values)
    assert isinstance(config, SweepConfig)
    assert decision_steps(config, sample_config(config)) == 25


def test_only_submission_loads_the_base_with_every_extreme_value(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load()

    def fail(*_: object) -> None:
        raise AssertionError("the driver and the actors read a sweep as submission has resolved it")

    monkeypatch.setattr("ropewalk.jobs.orchestration.sweep.checks.load_config", fail)
    again = SweepConfig.model_validate(config.model_dump(mode="json"))
    assert (again.base, again.trials) == (config.base, 10)
    assert again.base["data"] == str(Path("data").absolute())


@pytest.mark.parametrize(
    ("changes", "search"),
    [
        ({}, "gp"),
        ({"scheduler": "pbt"}, "random"),
        ({"space": {"optim.lr": {"grid": [1e-3, 1e-2]}}}, "sobol"),
        ({"search": "optuna"}, "optuna"),
    ],
)
def test_an_unset_search_is_the_best_that_scheduler_and_space_allow(changes: dict[str, Any], search: str) -> None:
    config = load(**changes)
    assert config.search_name == config.search_plan.search == search
