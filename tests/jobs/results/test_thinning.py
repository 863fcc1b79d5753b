"""Curves with few points: ends and peaks stay, and a sparkline reads a few places of a long file."""

import json
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.metrics import curves, latest_metrics
from ropewalk.jobs.results.thinning import sparkline, thinned


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create("thin", {"job": "pretrain", "config": {}}, tmp_path)


def write(run: RunDir, *lines: str) -> None:
    with run.metrics.open("a") as stream:
        stream.writelines(f"{line}\n" for line in lines)


def training(step: int, **more: float) -> str:
    return json.dumps({"step": step, "attempt": 1, "time": 1.0, "train/loss": 1000.0 - step, **more})


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 102, 1000, 12345])
def test_ends_and_extremes_stay(count: int) -> None:
    values = [float(number * 7919 % 1009) for number in range(count)]
    steps, few = thinned(range(count), values, 100)
    assert few == [values[step] for step in steps]
    assert steps == sorted(set(steps))
    assert {0, count - 1} <= set(steps)
    assert (min(few), max(few)) == (min(values), max(values))
    assert len(steps) <= 102
    assert count > 100 or len(steps) == count


@pytest.mark.parametrize("count", [0, 1, 2, 23, 25, 200, 5000])
def test_a_sparkline_has_a_few_values_in_order_and_the_last_one(run: RunDir, count: int) -> None:
    assert sparkline(run, "train/loss", 24) == []
    lines = [training(step, **{"validation/loss": 9.0} if step % 10 == 0 else {}) for step in range(1, count + 1)]
    write(run, '{"step": 0, "cut', *lines, '{"step": 1, "validation/loss": 3.0}')
    values = sparkline(run, "train/loss", 24)
    assert values == sorted(set(values), reverse=True)
    assert len(values) == min(count, 25) or (count > 1000 and len(values) == 24)
    assert values[-1:] == ([1000.0 - count] if count else [])


def test_the_newest_values_of_some_metrics_are_those_of_all(run: RunDir) -> None:
    write(run, training(1, **{"validation/loss": 3.0}), *(training(step) for step in range(2, 300)))
    everything = latest_metrics(run)
    assert everything["validation/loss"] == 3.0
    for keys in ({"step", "train/loss"}, {"validation/loss"}, {"nothing"}):
        few = latest_metrics(run, keys)
        assert {key: few.get(key) for key in keys} == {key: everything.get(key) for key in keys}
    assert "validation/loss" not in latest_metrics(run, {"train/loss"}), "only the last lines are read"


def test_some_curves_are_those_of_all(run: RunDir) -> None:
    write(run, training(2, other=1), training(1, other=3), training(2, other=5), '{"step": 3, "train/loss": null, "words": "x"}')
    assert curves(run) == {"train/loss": ([1, 2], [999.0, 998.0]), "other": ([1, 2], [3.0, 5.0])}
    assert curves(run, ["other", "nothing", "words"]) == {"other": ([1, 2], [3.0, 5.0])}


@pytest.mark.parametrize("cut", [False, True])
def test_curves_read_by_columns_are_those_read_by_lines(run: RunDir, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    lines = [training(step, **{"validation/loss": step} if step % 10 == 0 else {}) for step in (*range(1, 30), *range(20, 50))]
    write(run, *lines, '{"step": 50, "train/loss": null}', '{"time": 1.0, "train/loss": 3}', *['{"step": 51, "tra'] * cut)
    everything, keys = curves(run), ["train/loss", "validation/loss", "nothing", "step"]
    if not cut:
        monkeypatch.setattr("ropewalk.jobs.results.metrics.iterate_lines", None)
    assert curves(run, keys) == {key: everything[key] for key in keys[:2]}
    assert everything["validation/loss"] == ([10, 20, 30, 40], [10.0, 20.0, 30.0, 40.0])


def test_numbers_that_json_does_not_have_are_read(run: RunDir) -> None:
    write(run, '{"step": 1, "a": NaN, "b": 123456789012345678901234567890}', "  ", "[1]", '{"step": 2, "a')
    (line,) = run.read_metrics()
    assert (line["a"] != line["a"], line["b"]) == (True, 123456789012345678901234567890)
