"""The searches, without a run: what they draw, what a model learns, how a search continues from what is recorded."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.experiment import Trial
from ray.tune.search import SearchGenerator

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.checks import sample_config
from ropewalk.jobs.orchestration.sweep.config import SweepConfig, SweepContext
from ropewalk.jobs.orchestration.sweep.records import TrialState, read_record, read_records, write_record
from ropewalk.jobs.orchestration.sweep.search.coordinates import Coordinates
from ropewalk.jobs.orchestration.sweep.search.gaussian_process import Scales, fit, predict
from ropewalk.jobs.orchestration.sweep.search.plan import SearchPlan
from ropewalk.jobs.orchestration.sweep.search.searches import Search
from ropewalk.jobs.orchestration.sweep.search.space import Parameter, encode
from ropewalk.jobs.orchestration.sweep.trials.report import OBJECTIVE
from ropewalk.jobs.orchestration.sweep.trials.schedulers import make_scheduler
from ropewalk.jobs.orchestration.sweep.trials.tune import RecordedSearch
from tests.jobs.orchestration.sweep.test_config import load

BEST = 1e-3
SPACE = {"a": Parameter(loguniform=(1e-3, 1.0)), "b": Parameter(grid=[1, 2, 3]), "c": Parameter(randint=(0, 4))}


def begin(sweep: RunDir, config: SweepConfig) -> RecordedSearch:
    """The search of a new attempt of the sweep's driver."""
    paths = {"scratch": sweep.path, "launcher": sweep.path}
    context = SweepContext(sweep=sweep, attempt=1, config=config, cluster="local", defaults={}, origin={}, **paths)
    return RecordedSearch(context, at_once=2)


def carry_out(search: RecordedSearch, most: int) -> list[float]:
    """So many trials at most, one after another; the learning rate of each."""
    tried = []
    while len(tried) < most and isinstance(values := search.suggest(str(len(tried))), dict):
        tried.append(values["optim.lr"])
        record = read_record(search.context.sweep, values["trial"])
        assert record is not None
        record.end(TrialState.SUCCEEDED)
        write_record(search.context.sweep, record)
        search.on_trial_complete(str(len(tried) - 1), {OBJECTIVE: abs(math.log10(tried[-1] / BEST)), "step": 1})
    return tried


@pytest.mark.parametrize("name", ["gp", "optuna"])
def test_what_is_learnt_is_suggested_also_after_a_kill(name: str, tmp_path: Path) -> None:
    config = load(
        search=name,
        optuna={"startup_trials": 8},
        trials=40,
        space={"optim.lr": {"loguniform": [1e-6, 1.0]}},
    )
    sweep = RunDir.create("sweep", {}, root=tmp_path)
    before = carry_out(begin(sweep, config), 14)
    after = carry_out(begin(sweep, config), 100)
    assert len(after) == 40
    assert after[:14] == before, "recorded trials come again as they were"
    assert [record.sampled["optim.lr"] for record in read_records(sweep)] == after
    assert len(set(after)) == 40
    misses = [abs(math.log10(rate / BEST)) for rate in after[14:]]
    assert median(misses) < 1.0, "of random ones it would be 1.5"


def test_no_more_trials_are_open_than_may_run_at_once(tmp_path: Path) -> None:
    search = begin(RunDir.create("sweep", {}, root=tmp_path), load(trials=3))
    assert all(isinstance(search.suggest(name), dict) for name in "ab")
    assert search.suggest("c") is None
    search.on_trial_complete("a", {OBJECTIVE: 1.0, "step": 1})
    assert isinstance(search.suggest("c"), dict)
    search.on_trial_complete("b")
    assert search.suggest("d") == search.FINISHED


def test_a_population_takes_the_trials_of_its_search(tmp_path: Path) -> None:
    search = begin(RunDir.create("sweep", {}, root=tmp_path), load(scheduler="pbt", trials=2))
    context = replace(search.context, every_steps=10)
    scheduler = make_scheduler(context.config, sample_config(context.config), context)
    trial = Trial("unused", config=search.suggest("a"), stub=True)
    scheduler.on_trial_add(SimpleNamespace(search_alg=SearchGenerator(search)), trial)
    assert scheduler._trial_state[trial].last_perturbation_time == 0


def suggestions(search: str, seed: int, numbers: range) -> list[dict[str, Any] | None]:
    suggesting = Search(SearchPlan(space=SPACE, search=search, seed=seed))
    return [suggesting.suggest(number) for number in numbers]


@pytest.mark.parametrize("search", ["random", "sobol"])
def test_a_draw_is_a_pure_function_of_seed_and_number(search: str) -> None:
    first = suggestions(search, 0, range(12))
    assert suggestions(search, 0, range(8, 12)) == first[8:]
    assert suggestions(search, 1, range(12)) != first
    assert [values["b"] for values in first if values] == [1, 2, 3] * 4, "a grid within other draws is tried in order"
    assert all(values and 1e-3 <= values["a"] <= 1.0 and values["c"] in range(4) for values in first)


@pytest.mark.parametrize("name", ["gp", "optuna"])
def test_a_model_based_search_that_continues_draws_what_it_would_have_drawn(name: str) -> None:
    plan = SearchPlan(space={"x": Parameter(uniform=(0.0, 1.0))}, search=name, startup_trials=4)
    whole, continued = Search(plan), Search(plan)
    drawn: list[dict[str, Any]] = []
    for number in range(14):
        values = whole.suggest(number)
        assert values is not None
        drawn.append(values)
        for search in (whole, continued) if number < 10 else (whole,):
            if search is continued:
                search.suggest(number, values)
            search.report(number, 1, abs(values["x"] - 0.2))
            search.finish(number, complete=True)
    assert continued.suggest(10) == drawn[10]
    assert len({values["x"] for values in drawn}) == 14


def test_sobol_fills_each_half_of_a_range_alike() -> None:
    drawn = [values["a"] for values in suggestions("sobol", 0, range(16)) if values]
    assert sum(value < math.sqrt(1e-3) for value in drawn) == 8


def test_a_grid_leaves_out_what_differs_only_in_an_inactive_key() -> None:
    space = {"kind": Parameter(choice=["plain", "other"]), "m": Parameter(grid=[1, 2], when={"kind": "other"})}
    search = Search(SearchPlan(space=space, search="grid"))
    values = [search.suggest(number) for number in range(4)]
    assert [(v["kind"], v["m"]) if v["kind"] == "other" else v["kind"] for v in values if v] == [
        "plain",
        ("other", 1),
        ("other", 2),
    ]


@pytest.mark.parametrize("name", ["gp", "optuna"])
def test_a_stopped_trial_counts_as_if_it_had_changed_like_the_complete_ones(name: str) -> None:
    search = Search(SearchPlan(space={"x": Parameter(uniform=(0.0, 1.0))}, search=name))
    near_the_best = 0
    for number in range(40):
        values = search.suggest(number)
        assert values is not None
        complete = values["x"] <= 0.5
        for step in (1, 2) if complete else (1,):
            # the metric rises: by its last value a stopped trial would be the best
            search.report(number, step, abs(values["x"] - 0.2) + 2.0 * step)
        search.finish(number, complete=complete)
        near_the_best += number >= 20 and abs(values["x"] - 0.2) < 0.15
    assert near_the_best >= 12, "of random draws it would be 6, and fewer if the last value counted"


@pytest.mark.parametrize("name", ["gp", "optuna"])
def test_a_search_goes_on_after_a_failed_trial(name: str) -> None:
    search = Search(SearchPlan(space={"x": Parameter(uniform=(0.0, 1.0))}, search=name))
    search.suggest(0)
    search.finish(0, complete=False, failed=True)
    assert search.suggest(1) is not None


MIXED = {
    "rate": Parameter(loguniform=(1e-3, 1.0)),
    "kind": Parameter(choice=["plain", "other", None]),
    "momentum": Parameter(uniform=(0.0, 1.0), when={"kind": ["other"]}),
    "layers": Parameter(randint=(1, 5)),
    "width": Parameter(choice=[32, 128, 64]),
}


def mixed_losses(name: str, seed: int, mode: str) -> list[float]:
    search, sign = Search(SearchPlan(space=MIXED, search=name, seed=seed, mode=mode)), 1.0 if mode == "min" else -1.0
    losses = []
    for number in range(40):
        values = search.suggest(number)
        assert values is not None
        extra = (values["momentum"] - 0.3) ** 2 if values["kind"] == "other" else 0.5
        loss = math.log10(values["rate"] / 1e-2) ** 2 + extra + 0.1 * abs(values["layers"] - 2) + 0.01 * values["width"]
        losses.append(loss)
        search.report(number, 1, sign * loss)
        search.finish(number, complete=True, failed=values["rate"] > 0.3)
    return losses


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_gaussian_process_finds_the_optimum_of_mixed_and_conditional_keys(mode: str) -> None:
    learnt, drawn = ([mixed_losses(name, seed, mode) for seed in range(5)] for name in ("gp", "random"))
    assert max(map(min, learnt)) < 0.34, "the optimum is 0.32"
    assert min(map(min, drawn)) > 0.34
    late, late_drawn = ([loss for losses in each for loss in losses[8:]] for each in (learnt, drawn))
    assert median(late) < median(late_drawn) / 2


def test_the_kernel_of_conditional_keys_is_positive_definite() -> None:
    coordinates = Coordinates(MIXED)
    points = coordinates.at(np.random.default_rng(0).random((60, len(MIXED))))
    squares = coordinates.squares(points, points)
    for length in (0.03, 0.3, 1.0, 3.0, 10.0):
        kernel = Scales(logarithms=np.log([10.0, 10.0, length, 10.0, 10.0, 1e-5])).kernel(squares)
        assert np.linalg.eigvalsh(kernel).min() > -1e-12


def test_a_pending_trial_leaves_less_to_learn_near_it() -> None:
    points, new, values = np.array([[0.1], [0.5], [0.9]]), np.array([[0.3]]), np.array([1.0, -1.0, 0.0])
    coordinates, scales = Coordinates({"x": Parameter(uniform=(0.0, 1.0))}), Scales(logarithms=np.log([0.3, 0.01]))
    alone = predict(scales, coordinates.squares(points, points), values, coordinates.squares(points, new))
    points = np.concatenate([points, [[0.31]]])
    beside = predict(scales, coordinates.squares(points, points), values, coordinates.squares(points, new))
    assert beside.means == pytest.approx(alone.means)
    assert beside.deviations[0] < alone.deviations[0] / 2


def test_coordinates_of_values_are_those_of_the_point_that_gives_them() -> None:
    points = np.random.default_rng(0).random((40, len(MIXED)))
    coordinates = Coordinates(MIXED)
    expected = coordinates.at(points)
    values = [
        {key: encode(parameter.at(u)) for (key, parameter), u in zip(MIXED.items(), point, strict=True)} for point in points
    ]
    np.testing.assert_allclose(coordinates.at(np.array([coordinates.unit(each) for each in values])), expected, atol=1e-9)
    inactive = [each["kind"] != "other" for each in values]
    assert np.isnan(expected[:, 2]).tolist() == inactive
    squares = coordinates.squares(expected, expected)
    assert squares.max() <= 1.0
    assert np.diagonal(squares, axis1=1, axis2=2).max() == 0.0
    assert squares[2][np.ix_(inactive, [not each for each in inactive])].min() >= 0.75


def test_a_key_that_matters_gets_the_shorter_length() -> None:
    points = np.random.default_rng(0).random((30, 2))
    squares = Coordinates({key: Parameter(uniform=(0.0, 1.0)) for key in "ab"}).squares(points, points)
    values = np.sin(6 * points[:, 0])
    lengths = np.exp(fit(squares, values - values.mean()).logarithms[:-1])
    assert lengths[0] < 0.7
    assert lengths[1] > 3 * lengths[0]
