"""Results of hand-made sweeps: trials, the best, steps, the page, causes, the job file."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import append_line, read_json, write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.sweep.curves import MetricFollower
from ropewalk.jobs.orchestration.sweep.report.results import SweepReader, read_sweep
from ropewalk.jobs.runs.show.follow import follow
from ropewalk.jobs.runs.show.show import page
from ropewalk.jobs.runs.show.status import find_run
from tests.fakes.sweep import BASE, METRIC, START, make_sweep, make_trial_run, write_record
from tests.jobs.shell import Shell


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def line(run: RunDir, step: int, attempt: int = 1, **values: Any) -> None:
    append_line(run.metrics, {"step": step, "attempt": attempt, "time": START + step, **values})


def test_the_latest_run_is_the_sweep_and_not_one_of_its_trials(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNS_VARIABLE, str(root))
    sweep = make_sweep(root)
    RunDir.create("trial", {"job": "pretrain", "parent": sweep.id}, root)
    assert find_run("latest").id == sweep.id


def test_trials_best_and_steps(root: Path) -> None:
    results = read_sweep(make_sweep(root))
    assert results.by_state == {"STOPPED": 14, "SUCCEEDED": 1, "FAILED": 1}
    best = results.best
    assert best is not None
    assert best.metric == min(t.metric for t in results.trials if t.metric is not None and t.state != "FAILED")
    assert (best.steps, best.steps_full) == (270, 270)
    assert [t.trial for t in results.trials] == list(range(16))
    assert results.ranked[0] is best
    assert results.ranked[-1].state == "FAILED"  # though its value may be better than those of others
    stopped = [t for t in results.trials if t.state == "STOPPED"]
    failed = next(t for t in results.trials if t.state == "FAILED")
    assert results.full == 16 * 270
    assert results.saved == sum(270 - t.steps for t in stopped)
    assert results.spent + results.saved + (270 - failed.steps) == results.full


def test_most_is_best_where_the_mode_says_so(root: Path) -> None:
    sweep = make_sweep(root, 4, stops=False)
    least = read_sweep(sweep).best
    sweep.record["config"]["mode"] = "max"
    most = read_sweep(sweep)
    assert most.best is not None
    assert least is not None
    assert most.ranked[-1].trial == least.trial


def test_steps_that_were_done_again_are_spent_and_the_last_value_counts(root: Path) -> None:
    run = make_trial_run(root, "resumed", BASE, {})
    for attempt, steps, value in ((1, range(10, 60, 10), 5.0), (2, range(40, 80, 10), 4.0)):
        for step in steps:
            line(run, step, attempt, **{METRIC: value})
    series = MetricFollower(run, METRIC)
    series.refresh()
    assert (series.step, series.steps_spent) == (70, 50 + 40)  # from the checkpoint of step 30
    assert series.points == {10: 5.0, 20: 5.0, 30: 5.0, 40: 4.0, 50: 4.0, 60: 4.0, 70: 4.0}


def test_a_run_that_began_from_anothers_checkpoint_is_not_charged_for_its_steps(root: Path) -> None:
    sweep = make_sweep(root, 1, stops=False)
    first = make_trial_run(root, "first", BASE, {10: 5.0, 20: 4.5, 30: 4.4}, state=RunState.CANCELLED)
    second = make_trial_run(root, "second", BASE, {30: 3.0, 40: 2.5}, state=RunState.SUCCEEDED)
    lineage = [{"from_trial": 1, "from_run": "other", "step": 20, "parameters": {"optim.lr": 0.1}}]
    write_record(sweep, 0, {"optim.lr": 0.1}, [first.id, second.id], "SUCCEEDED", lineage=lineage)
    (trial,) = read_sweep(sweep).trials
    assert trial.points == [(10, 5.0), (20, 4.5), (30, 3.0), (40, 2.5)]
    assert (trial.run, trial.steps, trial.steps_spent, trial.metric) == (second.id, 40, 30 + 20, 2.5)


def test_a_value_that_is_no_number_is_no_value(root: Path) -> None:
    sweep = make_sweep(root, 1, stops=False)
    run = make_trial_run(root, "wild", BASE, {10: 2.0, 20: 1.0})
    line(run, 30, **{METRIC: None})
    write_record(sweep, 1, {"optim.lr": 9.0}, [run.id], "RUNNING", ended=None)
    results = read_sweep(sweep)
    assert results.trials[1].metric is None
    assert results.trials[1].best_metric == 1.0
    assert results.best is not None
    assert results.best.trial == 0


def test_what_the_driver_has_not_seen_yet_is_read_from_the_run(root: Path) -> None:
    sweep = make_sweep(root, 1, stops=False)
    going = make_trial_run(root, "going", BASE, {10: 2.0})
    write_record(sweep, 1, {}, [going.id], "RUNNING", ended=None)
    write_record(sweep, 2, {}, [], "PENDING", ended=None)
    reader = SweepReader(sweep)
    assert [t.state for t in reader.read().trials] == ["SUCCEEDED", "RUNNING", "PENDING"]
    line(going, 20, **{METRIC: 1.5})
    assert reader.read().trials[1].metric == 1.5
    going.write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause="rank 0: ZeroDivisionError"))
    trial = reader.read().trials[1]
    assert (trial.state, trial.cause) == ("FAILED", "rank 0: ZeroDivisionError")


def test_a_metric_that_a_job_reports_in_its_results_alone_is_one(root: Path) -> None:
    sweep = make_sweep(root, 1, stops=False)
    run = make_trial_run(root, "function", BASE, {}, state=RunState.SUCCEEDED)
    write_json(run.attempt_dir(1) / "result.json", {METRIC: 0.5})
    write_record(sweep, 1, {"optim.lr": 9.0}, [run.id], "SUCCEEDED")
    results = read_sweep(sweep)
    assert results.trials[1].points == [(1, 0.5)]
    assert results.best is not None
    assert results.best.trial == 1


def test_show_as_json(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 5)
    answer = json.loads(shell("show", sweep.id, "--json"))
    assert (answer["run"], answer["job"], answer["state"]) == (sweep.id, "sweep", "SUCCEEDED")
    assert len(answer["trials"]) == 5
    for trial in answer["trials"]:
        assert {"run", "state", "parameters", "metric", "steps"} <= trial.keys()
        assert RunDir.find(trial["run"], root).id == trial["run"]
    assert answer["best"] == answer["trials"][0]
    assert answer["spent"] < answer["full"]
    assert answer["saved"] > 0


def test_show_as_a_page(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 5)
    page = shell("show", sweep.id)
    best = read_sweep(sweep).best
    assert best is not None
    assert f"trial {best.trial} at step 270" in page
    assert "5 of 5 started: 1 failed, 3 stopped, 1 succeeded" in page
    rows = [cells[:2] for cells in map(str.split, page.splitlines()) if cells[:1] and cells[0].isdigit() and len(cells) > 6]
    assert rows[0] == [str(best.trial), "SUCCEEDED"]
    assert rows[-1][1] == "FAILED"


def test_a_scheduler_tells_of_a_trial_that_waits(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 2, stops=False)
    going = make_trial_run(root, "going", BASE, {10: 2.0})
    write_record(sweep, 2, {}, [going.id], "RUNNING", ended=None)
    (open_trial,) = [t for t in json.loads(shell("show", sweep.id, "--json"))["trials"] if t["trial"] == 2]
    assert open_trial["run_state"] == "RUNNING"
    assert [line["runs"] for line in shell.asked("states")] == [[going.id]]  # one question, of open trials only


def test_an_empty_sweep(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 1)
    (sweep.path / "trials" / "0000.json").unlink()
    assert "no trial has started yet" in shell("show", sweep.id)
    assert json.loads(shell("show", sweep.id, "--json"))["best"] is None
    assert "no trial has reported" in shell.mistake("best", sweep.id)
    assert "no trial has reported" in shell.mistake("show", sweep.id, "--plot")


def test_why_groups_the_causes_of_failed_trials(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 8, stops=False)
    for number, cause in ((1, "rank 0: OSError: No space left on device"), (2, "rank 0: OSError: No space left on device")):
        path = sweep.path / "trials" / f"{number:04d}.json"
        write_json(path, {**(read_json(path) or {}), "state": "FAILED", "cause": cause})
    output = shell("why", sweep.id)
    assert "8 of 8 trials: 3 failed, 5 succeeded" in output
    assert "2 trials failed (1, 2): rank 0: OSError: No space left on device" in output
    assert "1 trial failed (4): rank 0: RuntimeError: CUDA out of memory" in output
    assert "What to do: a disk is full" in output


def test_why_of_a_trial_names_its_sweep(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 4)
    stopped = next(t for t in read_sweep(sweep).trials if t.state == "STOPPED")
    run = RunDir(root / str(stopped.run))
    path = run.path / "run.yaml"
    path.write_text(path.read_text() + f"parent: {sweep.id}\ntrial: {stopped.trial}\n")
    output = shell("why", run.id)
    assert f"It is trial {stopped.trial} of {sweep.id}, which stopped it after step {stopped.stopped_at}: asha" in output
    assert "What to do" not in output  # its sweep decides


def test_the_best_configuration_is_a_job_file(shell: Shell, root: Path, tmp_path: Path) -> None:
    sweep = make_sweep(root, 6)
    best = read_sweep(sweep).best
    assert best is not None
    assert shell("best", sweep.id, "found/best.yaml").strip() == "found/best.yaml"
    text = (tmp_path / "found/best.yaml").read_text()
    assert sweep.id in text.splitlines()[0]
    values = yaml.safe_load(text)
    assert values.pop("run") == "pretrain"
    assert values["optim"] == {key.removeprefix("optim."): value for key, value in best.parameters.items()}
    assert {key: values[key] for key in ("data", "steps", "seq_len")} == {k: BASE[k] for k in ("data", "steps", "seq_len")}
    assert set(values) == set(BASE)  # the base and the parameters, and nothing that they do not say
    assert shell("best", sweep.id) == text
    shell("submit", "-c", "found/best.yaml", "--on", "good", "--dry-run")
    output = json.loads(shell("best", sweep.id, "found/best.yaml", "--json"))  # a file of ours is written anew
    assert (output["trial"], output["config"], output["file"]) == (best.trial, values, "found/best.yaml")


def test_a_file_that_best_did_not_write_stays(shell: Shell, root: Path, tmp_path: Path) -> None:
    sweep = make_sweep(root, 2)
    (tmp_path / "mine.yaml").write_text("steps: 1\n")
    assert "mine.yaml exists and was not written by `ropewalk best`" in shell.mistake("best", sweep.id, "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "steps: 1\n"


def test_only_a_sweep_has_a_best(shell: Shell, root: Path) -> None:
    run = make_trial_run(root, "single", BASE, {10: 2.0})
    assert f"{run.id} is not a sweep: it is a run of pretrain" in shell.mistake("best", run.id)


def test_the_latest_sweep_is_not_one_of_its_trials(shell: Shell, root: Path) -> None:
    make_sweep(root, 2, name="older")
    sweep = make_sweep(root, 2, name="newer")
    make_trial_run(root, "newest", BASE, {10: 2.0})
    assert json.loads(shell("best", "latest", "--json"))["run"].startswith("newer-trial-")
    assert sweep.id in shell("best", "latest").splitlines()[0]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_sweep_that_is_followed_shows_its_trials(root: Path, terminal: bool) -> None:
    sweep = make_sweep(root, 5)
    outcome = sweep.attempt_dir(1) / "outcome.json"
    ended = outcome.read_text()
    outcome.unlink()
    write_json(sweep.progress, {"stage": "sweep", "done": 4, "total": 5, "unit": "trials"})
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=terminal)

    def end(_: float) -> None:
        outcome.write_text(ended)

    follow(sweep, console, sleep=end)
    best = read_sweep(sweep).best
    assert best is not None
    assert f"4/5 trials  best {METRIC} {best.metric:.5g} (trial {best.trial})" in out.getvalue()
    assert ("twist-trial-0" in out.getvalue()) is terminal  # the table below the bar


def test_a_followed_sweep_ends_with_what_one_does_next(shell: Shell, root: Path) -> None:
    sweep = make_sweep(root, 5)
    output = shell("wait", sweep.id)
    assert f"ropewalk best {sweep.id} best.yaml" in output
    assert "5 of 5 started" in output
    assert json.loads(shell("wait", sweep.id, "--json"))["state"] == "SUCCEEDED"


def test_reading_again_reads_only_what_is_new(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ropewalk.jobs.orchestration.sweep import curves as series

    reader, read = SweepReader(make_sweep(root, 8)), 0
    plain = series.read_new_lines

    def counted(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
        nonlocal read
        lines, end = plain(path, offset)
        read += len(lines)
        return lines, end

    monkeypatch.setattr(series, "read_new_lines", counted)
    first = reader.read()
    assert read > 0
    read = 0
    assert reader.read().plain() == first.plain()
    assert read == 0


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_of_a_sweep_fits_the_terminal(root: Path, columns: int) -> None:
    sweep = make_sweep(root, 6)
    out = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    with out.capture() as capture:
        out.print(page(sweep), crop=False)
    lines = capture.get().splitlines()
    table = [line for line in lines if re.match(r" {1,6}\d+ {3}(SUCCEEDED|STOPPED|FAILED|RUNNING)", line)]
    assert len(table) == 6
    trials = [trial.run for trial in read_sweep(sweep).trials]
    assert columns == 80 or all(any(str(run) in line for line in table) for run in trials)
    assert max(map(len, lines[: lines.index("next")])) <= columns
