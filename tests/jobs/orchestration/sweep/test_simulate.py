"""A sweep on recorded curves: the same search and scheduler as of runs, under a virtual clock."""

import itertools
import math

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.report.tables import summary_rows
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import Curve, CurveTable
from ropewalk.jobs.orchestration.sweep.simulate.simulator import SimulatedSweep, simulate
from tests.jobs.sweeping import sweep_config

RATES = [10.0**k for k in range(-3, 2)]
STEPS = tuple(range(2, 21, 2))


def curve(rate: float, momentum: float) -> Curve:
    """The toy's loss; a rate of 10 diverges."""
    values = [math.log10(rate / 0.1) ** 2 + (momentum - 0.5) ** 2 + 1 / step for step in STEPS]
    return Curve(steps=STEPS, values=tuple(math.nan if rate == 10.0 else value for value in values), flops=100.0)


def table() -> CurveTable:
    points = itertools.product(RATES, (0.0, 0.5))
    curves = {point: {0: curve(*point)} for point in points}
    return CurveTable(data="toy", job="searched", metric="loss", keys=("optim.lr", "optim.momentum"), curves=curves)


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fakes.searched import SPEC

    monkeypatch.setattr("ropewalk.jobs.orchestration.sweep.checks.find_job", lambda _name: SPEC)


def config(**keys: object) -> SweepConfig:
    space = {"optim.lr": {"loguniform": [1e-3, 10.0]}, "optim.momentum": {"choice": [0.0, 0.5]}}
    return sweep_config(**{"space": space, "trials": 12, "max_concurrent": 3, **keys})


def run(seed: int = 0, **keys: object) -> SimulatedSweep:
    return simulate(config(**keys), table(), seed=seed)


def test_trials_are_recorded_curves_and_a_diverged_one_fails_at_once() -> None:
    sweep = run()
    assert len(sweep.trials) == 12
    for trial, point in zip(sweep.trials, sweep.points, strict=True):
        nearest = min(RATES, key=lambda rate: abs(math.log(rate / trial.parameters["optim.lr"])))
        assert point == (nearest, trial.parameters["optim.momentum"])
        if nearest == 10.0:
            assert (trial.state, trial.metric) == ("FAILED", None)
        else:
            assert (trial.state, trial.steps) == ("SUCCEEDED", 20)
            assert trial.metric == table().curves[point][0].values[-1]
    assert any(trial.state == "FAILED" for trial in sweep.trials)


def test_the_reports_of_a_real_sweep_take_a_simulated_one() -> None:
    results = run(scheduler="asha", asha={"grace_steps": 4}).results
    assert results.best is not None
    assert results.best.parameters["optim.momentum"] in {0.0, 0.5}
    summary = dict(summary_rows(results))
    assert summary["saved"].endswith("trials early")
    assert results.summary()["steps_saved"] > 0


def test_the_scheduler_stops_trials_and_the_cost_counts_only_what_ran() -> None:
    sweep = run(scheduler="asha", asha={"grace_steps": 4})
    stopped = [trial for trial in sweep.trials if trial.state == "STOPPED"]
    assert stopped
    assert {trial.stopped_at for trial in stopped} <= {4, 12}
    assert sweep.events[-1].spent == pytest.approx(sum(trial.steps for trial in sweep.trials) * 100.0 / 20)
    assert run(scheduler="median", median={"grace_steps": 4}).trials != sweep.trials


def test_the_same_seed_gives_the_same_sweep() -> None:
    assert run(seed=3, scheduler="asha").events == run(seed=3, scheduler="asha").events
    assert run(seed=3).points != run(seed=4).points


def test_as_many_trials_run_at_once_as_the_sweep_allows() -> None:
    sweep = run(space={"optim.lr": {"choice": [0.1]}}, base={"steps": 20, "optim": {"momentum": 0.5}}, scheduler="median")
    assert [event.trial for event in sweep.events[:6]] == [0, 1, 2, 0, 1, 2]


def test_regret_falls_to_zero_with_the_budget() -> None:
    sweep = run(space={"optim.lr": {"grid": RATES[:4]}, "optim.momentum": {"grid": [0.0, 0.5]}}, search="grid", max_concurrent=1)
    regrets = [sweep.regret(100.0 * trials) for trials in range(1, 9)]
    assert regrets[0] > 1.0
    assert regrets[-1] == 0.0
    assert sweep.cost_to_reach(table().true_value((0.1, 0.5))) == 700.0, "the seventh point is the best"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"space": {"optim.kind": {"choice": ["plain"]}}}, "space.optim.kind: the table varies only"),
        ({"space": {"optim.lr": {"choice": [0.1]}}, "base": {"steps": 20, "optim": {"momentum": 0.7}}}, "base.optim.momentum"),
    ],
)
def test_what_was_not_recorded_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**keys)


@pytest.mark.parametrize("data", ["code", "prose"])
def test_the_shipped_curves_are_a_whole_grid(data: str) -> None:
    shipped = CurveTable.read(data)
    assert (shipped.job, shipped.metric) == ("pretrain", "validation/loss")
    assert len(shipped.curves) == math.prod(map(len, shipped.values.values())) == 576
    for seeds in shipped.curves.values():
        assert {len(curve.values) for curve in seeds.values()} == {16}
        assert {curve.steps[-1] for curve in seeds.values()} == {shipped.num_steps}
    with pytest.raises(ConfigError, match="no data set 'novels'; it has code, prose"):
        CurveTable.read("novels")
