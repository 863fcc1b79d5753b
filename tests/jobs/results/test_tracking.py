"""metrics.jsonl: one writer, whole lines, read back as curves; and the picture of it."""

import json
import math
from pathlib import Path

import pytest

from ropewalk.cluster.errors import DataError, StaleAttemptError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.metrics import MetricLog, curves, latest_metrics, read_new_lines
from ropewalk.jobs.runs.show.plots import moving_average, plot_run, resume_steps


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create("tracked", {"job": "pretrain", "config": {}}, tmp_path)
    run.begin_attempt()
    return run


def test_a_line_holds_step_attempt_time_and_values(run: RunDir) -> None:
    MetricLog(JobContext(run=run, attempt=1)).log(3, {"train/loss": 2.5})
    (line,) = run.read_metrics()
    assert line["time"] > 1e9
    assert {k: line[k] for k in ("step", "attempt", "train/loss")} == {"step": 3, "attempt": 1, "train/loss": 2.5}


def test_every_line_is_json_whatever_the_numbers(run: RunDir) -> None:
    MetricLog(JobContext(run=run, attempt=1)).log(1, {"train/loss": float("nan"), "x": float("inf"), "y": 1})

    def forbid(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(run.metrics.read_text(), parse_constant=forbid)
    assert line["train/loss"] is None
    assert line["y"] == 1


def test_an_old_attempt_or_group_writes_nothing(run: RunDir) -> None:
    old = MetricLog(JobContext(run=run, attempt=1))
    old.log(1, {"a": 1})
    newer = JobContext(run=run, attempt=1, group=2)
    newer.fence.claim()
    with pytest.raises(StaleAttemptError):
        old.log(2, {"a": 2})
    grouped = MetricLog(newer)
    run.begin_attempt()
    with pytest.raises(StaleAttemptError):
        grouped.log(2, {"a": 2})
    with pytest.raises(StaleAttemptError):
        MetricLog(newer)
    assert len(run.read_metrics()) == 1


def test_half_a_line_of_a_dead_machine_is_dropped(run: RunDir) -> None:
    log = MetricLog(JobContext(run=run, attempt=1))
    log.log(1, {"a": 1})
    with run.metrics.open("a") as stream:
        stream.write('{"step": 2, "att')
    MetricLog(JobContext(run=run, attempt=1)).log(2, {"a": 2})
    assert [line["step"] for line in run.read_metrics()] == [1, 2]


def test_new_lines_are_read_once_and_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert read_new_lines(path, 0) == ([], 0)
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    lines, offset = read_new_lines(path, 0)
    assert [line["a"] for line in lines] == [1, 2]
    assert read_new_lines(path, offset) == ([], offset)
    with path.open("a") as stream:
        stream.write(": 3}\n")
    assert read_new_lines(path, offset)[0] == [{"a": 3}]


def test_latest_value_of_every_metric(run: RunDir) -> None:
    log = MetricLog(JobContext(run=run, attempt=1))
    log.log(5, {"validation/loss": 9.0})
    for step in range(6, 900):
        log.log(step, {"train/loss": float(step), "train/learning_rate": 0.1})
    result = latest_metrics(run)
    assert result["step"] == 899
    assert result["train/loss"] == 899.0
    assert latest_metrics(RunDir.create("empty", {}, run.path.parent)) == {}


def resumed(run: RunDir) -> RunDir:
    """Steps 1..60, then again from 50 to 100 in a second attempt."""
    log = MetricLog(JobContext(run=run, attempt=1))
    for step in range(1, 61):
        log.log(step, {"train/loss": 6 - step / 20, "train/learning_rate": step / 1e5, "train/tokens_per_second": 1e4})
    run.begin_attempt()
    log = MetricLog(JobContext(run=run, attempt=2))
    for step in range(51, 101):
        log.log(step, {"train/loss": 5 - step / 50, "train/learning_rate": step / 1e5, "train/tokens_per_second": 2e4})
        if step % 25 == 0:
            log.log(step, {"validation/loss": 5.1 - step / 50, "validation/bits_per_byte": 2.0})
    return run


def test_curves_after_a_resume_hold_each_step_once(run: RunDir) -> None:
    steps, values = curves(resumed(run))["train/loss"]
    assert steps == list(range(1, 101))
    assert values[59] == 5 - 60 / 50
    assert resume_steps(run) == [51]


def test_the_picture(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to plot"):
        plot_run(run, tmp_path / "none.png")
    path = plot_run(resumed(run), tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


def test_smoothing_keeps_a_level() -> None:
    assert moving_average([4.0] * 200) == pytest.approx([4.0] * 200)
    assert moving_average([1.0, 2.0]) == [1.0, 2.0]


def test_smoothing_follows_a_steep_beginning_and_evens_out_noise() -> None:
    decay = [4 + 4 * math.exp(-step / 20) for step in range(300)]
    assert moving_average(decay) == pytest.approx(decay, abs=0.1)
    noise = [4 + (-1) ** step for step in range(300)]
    assert moving_average(noise)[-100:] == pytest.approx([4.0] * 100, abs=0.1)
