"""Refusal of worse candidates, and not of those with one of many metrics worse by chance."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.results.compare import judge as judge_differences
from ropewalk.jobs.serving.refresh.judge import judge

ITEMS, METRICS = 200, 20
Values = dict[str, Sequence[float]]


def evaluated(root: Path, values: Values) -> RunDir:
    """A run of evaluate that is over: of each metric the value of every item."""
    run = RunDir.create("evaluate", {"job": "evaluate", "config": {}}, root)
    folder = run.path / "evaluation"
    folder.mkdir(parents=True)
    count = len(next(iter(values.values())))
    lines = [
        {"task": "quiz", "item": n, "hash": f"h{n}", "values": {name: float(each[n]) for name, each in values.items()}}
        for n in range(count)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "report.json", {"metrics": {"quiz": {name: name != "loss" for name in values}}})
    run.write_outcome(run.begin_attempt(), Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
    return run


def right(random: np.random.Generator, share: float = 0.6) -> list[float]:
    return [float(draw) for draw in random.random(ITEMS) < share]


def noise(random: np.random.Generator, *, but: Values | None = None) -> tuple[Values, Values]:
    """Two equal models, but for some metrics."""
    names = [f"m{k}" for k in range(METRICS - len(but or {}))]
    return {**{name: right(random) for name in names}, **(but or {})}, {name: right(random) for name in names}


def worse(count: int, of: int = ITEMS) -> list[float]:
    """Items that the candidate gets wrong and production right, evenly among those that both get right."""
    return [0.0] * count + [1.0] * (of - count)


def test_one_metric_of_many_that_is_worse_by_chance_refuses_nobody(tmp_path: Path) -> None:
    """Seven items of 200 that production alone gets right are shown by themselves, and one of twenty such is no wonder."""
    random = np.random.default_rng(3)
    few = {"acc": worse(7)}, {"acc": [1.0] * ITEMS}
    alone = judge((evaluated(tmp_path, few[0]), evaluated(tmp_path, few[1])), None, {})
    assert not alone["passed"]
    assert alone["comparisons"][0]["p_value"] == pytest.approx(0.5**8, rel=0.3)

    same = {f"m{k}": right(random) for k in range(METRICS - 1)}
    sides = {**same, **few[0]}, {**same, **few[1]}
    result = judge((evaluated(tmp_path, sides[0]), evaluated(tmp_path, sides[1])), None, {})
    assert result["passed"]
    (messages,) = [comparison for comparison in result["comparisons"] if comparison["name"] == "quiz/acc"]
    assert not messages["worse"]
    assert "not significant among 20 comparisons" in messages["message"]
    assert result["reasons"] == []

    many = {**same, "acc": worse(30)}, {**same, "acc": [1.0] * ITEMS}
    result = judge((evaluated(tmp_path, many[0]), evaluated(tmp_path, many[1])), None, {})
    assert [reason.partition(":")[0] for reason in result["reasons"]] == ["quiz/acc"]


def test_a_metric_with_a_margin_is_asked_for_by_itself(tmp_path: Path) -> None:
    same = {f"m{k}": [1.0, 0.0] * (ITEMS // 2) for k in range(METRICS - 1)}
    sides = [evaluated(tmp_path, {**same, "acc": item}) for item in (worse(7), [1.0] * ITEMS)]
    result = judge((sides[0], sides[1]), None, {"quiz/acc": 0.02})
    assert ["the interval must exclude a loss of more than 0.02" in reason for reason in result["reasons"]] == [True]


def test_the_better_side_of_a_loss_is_the_lower_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low = list(random.normal(1.0, 0.1, ITEMS))
    high = [draw + 0.1 * float(random.random()) for draw in low]
    runs = [evaluated(tmp_path, {"loss": each}) for each in (low, high)]
    assert judge((runs[0], runs[1]), None, {})["passed"]
    assert not judge((runs[1], runs[0]), None, {})["passed"]


@pytest.mark.parametrize("seeds", [15, pytest.param(60, marks=pytest.mark.soak("four times as many; make test runs 15"))])
@pytest.mark.parametrize("count", [2, 4, 12, 100])
def test_the_p_value_of_one_side(count: int, seeds: int) -> None:
    """The p-value is Student's t as in scipy, or the permutation's if there are enough pairs and it is larger."""
    random = np.random.default_rng(count)
    for seed in range(seeds):
        values = list(random.normal(size=count))
        result = judge_differences(values, seed=seed)
        first, second = result.p_of("first"), result.p_of("second")
        assert first is not None
        assert second is not None
        assert first + second == pytest.approx(1.0)
        wanted = float(stats.ttest_1samp(values, 0, alternative="greater" if first < second else "less").pvalue)
        assert min(first, second) == pytest.approx(wanted, abs=1e-9 if count < 6 else 0.05)
        assert min(first, second) > wanted - 1e-9
        assert result.better is None or min(first, second) <= 0.025
    assert judge_differences([1.0]).p_of("first") is None
    assert judge_differences([1.0, 1.0, 1.0]).p_of("first") == pytest.approx(1 / 16)
    assert judge_differences([0.0] * count).p_of("first") == 0.5


@pytest.mark.soak("200 verdicts of 20 metrics; make test runs test_one_metric_of_many_that_is_worse_by_chance_refuses_nobody")
def test_equal_models_with_twenty_metrics_are_refused_at_most_once_in_twenty(tmp_path: Path) -> None:
    random, refused = np.random.default_rng(11), 0
    for number in range(200):
        first, two = noise(random)
        result = judge((evaluated(tmp_path / f"{number}", first), evaluated(tmp_path / f"{number}", two)), None, {})
        refused += not result["passed"]
    assert refused <= 15  # 5% of 200, and 1.6 standard errors
