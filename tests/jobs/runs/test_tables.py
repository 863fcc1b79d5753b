"""Tables for people: what is in a run's files stands in them as it is."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, write_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.cli.main import PANELS
from ropewalk.jobs.registry import JOBS
from ropewalk.jobs.runs.show.diagnose import diagnose, diagnosis_page
from ropewalk.jobs.runs.show.fitted_tables import NextSteps
from ropewalk.jobs.runs.show.show import next_steps, page
from ropewalk.jobs.runs.show.status import states, summary
from ropewalk.jobs.runs.show.tables import ONE_LINE, console, number, progress_words, runs_table, table
from ropewalk.jobs.runs.show.view import short_path, view_of
from ropewalk.jobs.serving.serve.files import ServingFiles


@pytest.mark.parametrize(
    "cause", ["[/pytorch/gloo/pair.cc:553] closed by peer [127.0.0.1]:3928", "shape [batch, seq] is not [b]", "no :key: in [/x]"]
)
def test_texts_of_programs_are_no_markup(tmp_path: Path, cause: str) -> None:
    record = {"job": "pretrain", "config": {}, "cluster": "local", "engine": "ranks", "created": 1.0, "resources": {"nodes": 1}}
    run = RunDir.create("x", record, tmp_path)
    outcome = Outcome(state=RunState.FAILED, exit_code=1, cause=cause, started=1.0, ended=2.0)
    run.write_outcome(run.begin_attempt(resources={"nodes": 1}, handle="local:1"), outcome)
    for printed in (page(run), runs_table([summary(run, states([run])[run.id])])):
        out = console()
        with out.capture() as capture:
            out.print(printed)
        assert cause in capture.get()


def rows_of_runs() -> list[dict[str, Any]]:
    ids = ("quickstart-evaluate-20261126-203120-109a", "pretrain-20261126-202806-bafc")
    both = {"job": "pretrain", "state": "SUCCEEDED", "loss": 4.239, "nodes": "1..4", "attempts": 12, "created": 1.0, "step": 300}
    reason = "node 1 died (SIGKILL); another of its nodes stayed away for longer than it may, and that was the end of it"
    return [{**both, "run": run, "steps": 300, "cluster": "big", "reason": reason} for run in ids]


@pytest.mark.parametrize("width", [30, 60, 80, 100, 130, 200])
def test_an_id_and_a_state_are_one_line_at_any_width(width: int) -> None:
    rows = rows_of_runs()
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with out.capture() as capture:
        out.print(runs_table(rows), crop=False)
    printed = capture.get()
    for row in rows:
        (line,) = [line for line in printed.splitlines() if row["run"] in line]
        assert "SUCCEEDED" in line
        assert width < 80 or "step 300/300" in line
    assert width < 60 or max(map(len, printed.splitlines())) <= width


def test_the_long_progress_of_a_run_is_folded_and_hides_no_other() -> None:
    rows = rows_of_runs()
    served = "serving main@1 at http://127.0.0.1:35373, 1 replica, 0.0 requests/s"
    lines = printed(runs_table([*rows, {**rows[0], "run": "serve-20261126-202806-bafc", "result": served}]))
    assert all(any(row["run"] in line and "step 300/300" in line for line in lines) for row in rows)
    assert max(map(len, lines)) <= 80


def test_a_pipe_has_one_line_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of_runs()
    rows[0]["line"] = "└─ " * 80
    console(piped_width=ONE_LINE).print(runs_table(rows))
    assert len([line for line in capsys.readouterr().out.splitlines() if "node 1 died" in line]) == 2


def printed(renderable: Any, width: int = 80) -> list[str]:
    out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with out.capture() as capture:
        out.print(renderable, crop=False)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_break_texts_between_words_and_nothing_else(width: int) -> None:
    rows = table("STEP", "NEEDS", "RUN", "STATE", "REASON", title="steps")
    ids = [f"assistant-pipeline-{step}-20261126-203120-109a" for step in ("tokens", "model")]
    reason = "rank 0: ConfigError: the vocabulary of the tokenizer has more tokens than the model"
    for run in ids:
        rows.add_row("tokens", "", run, "SUCCEEDED", reason)
    lines = printed(rows, width)
    for run in ids:
        (line,) = [line for line in lines if run in line]
        assert "SUCCEEDED" in line
    assert max(map(len, lines)) <= max(width, 72)
    pieces = {word for line in lines for word in line.split()}
    assert pieces <= {*reason.split(), *ids, "steps", "tokens", "SUCCEEDED", "STEP", "NEEDS", "RUN", "STATE", "REASON"} | {
        word for word in pieces if set(word) == {"─"}
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"duplicate": 16, "too_short": 3}, "duplicate 16, too_short 3"),
        ({}, "none"),
        ([], "none"),
        (["a", 2], "a, 2"),
        ({"ece": 0.0578, "bins": [{"n": 1}, {"n": 2}]}, "ece 0.0578, bins 2 values"),
        (True, "yes"),
        (None, ""),
        (1234567, "1,234,567"),
    ],
)
def test_values_are_no_python(value: Any, text: str) -> None:
    assert number(value) == text


def make_run(job: str, root: Path, config: dict[str, Any], results: dict[str, Any]) -> RunDir:
    record = {"job": job, "config": config, "cluster": "local", "engine": "ranks", "created": 1.0, "resources": {"nodes": 1}}
    run = RunDir.create(job, record, root)
    attempt = run.begin_attempt(resources={"nodes": 1}, handle="local:1")
    write_json(run.attempt_dir(attempt) / "result.json", results)
    run.write_outcome(attempt, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", started=1.0, ended=2.0))
    return run


def test_ps_has_the_results_of_an_evaluation(tmp_path: Path) -> None:
    run = make_run("evaluate", tmp_path, {"model": "m"}, {"loss": 2.3456, "scores": {"boolq": {"acc": {"value": 0.625}}}})
    row = summary(run, states([run])[run.id])
    assert row["result"] == "loss 2.346, boolq 0.625"
    (line,) = [line for line in printed(runs_table([row])) if run.id in line]
    assert "loss 2.346, boolq 0.625" in line


CONFIGS: dict[str, dict[str, Any]] = {
    "preprocess": {"output": "data/tokens"},
    "pretrain": {"data": "data/tokens"},
    "answers": {"output": "answers.jsonl"},
    "evaluate": {"model": "m"},
    "audit": {"model": "m"},
    "refresh": {"model": "production"},
    "pipeline": {"steps": {"tokens": {"job": "command", "config": {"command": ["true"]}}}},
}


@pytest.mark.parametrize("job", JOBS)
def test_every_job_ends_with_its_files_and_the_commands_that_follow(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(job, tmp_path / "runs", CONFIGS.get(job, {}), {"report": f"{job}/report.html"})
    for path in view_of(run).outputs():
        Path(path).mkdir(parents=True, exist_ok=True)
    for rendered in (next_steps(view_of(run), RunState.SUCCEEDED), page(run)):
        lines = printed(rendered)
        block = lines[lines.index("next") + 1 :]
        outputs = [short_path(path) for path in view_of(run).outputs()]
        assert block[: len(outputs)] == [f"  {path}" for path in outputs]
        commands = [line.split()[1] for line in block[len(outputs) :] if line.startswith("  ropewalk ")]
        assert commands
        assert set(commands) <= {command.__name__ for panel in PANELS.values() for command in panel}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        (RunState.FAILED, ["why", "logs", "resume"]),
        (RunState.REFUSED, ["why", "show"]),
        (RunState.CANCELLED, ["resume", "logs"]),
    ],
)
def test_every_other_end_has_the_page_and_the_commands_that_follow_too(
    state: RunState, commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run("evaluate", tmp_path / "runs", CONFIGS["evaluate"], {})
    run.write_outcome(1, Outcome(state=state, exit_code=1, cause="loss is 3.2, required: < 3"))
    report = Path(view_of(run).outputs()[0])
    report.parent.mkdir()
    report.touch()
    for rendered in (next_steps(view_of(run), state), page(run)):
        block = printed(rendered)
        block = block[block.index("next") + 1 :]
        assert block[0] == f"  {short_path(str(report))}"
        lines = [line.split() for line in block[1:] if "ropewalk" in line]
        assert [line[1:3] for line in lines] == [[command, run.id] for command in commands]
    assert ("starts a new attempt" in " ".join(block)) is (state is not RunState.REFUSED)
    run.event("checkpoint", step=40)
    text = " ".join(printed(next_steps(view_of(run), state)))
    assert ("continues from the checkpoint of step 40" in text) is (state is not RunState.REFUSED)


def test_show_and_why_name_an_error_once(tmp_path: Path) -> None:
    run = make_run("command", tmp_path, {"command": ["false"]}, {})
    cause = "rank 0: KeyError: 'lr'"
    for attempt, state in [(1, RunState.REQUEUED), (run.begin_attempt(), RunState.FAILED)]:
        error = {"who": "rank 0", "type": "KeyError", "message": "'lr'", "traceback": "", "exit_code": 1, "time": 1.0}
        write_json(run.attempt_dir(attempt) / "errors" / "group-1-rank-0.json", error)
        run.write_outcome(attempt, Outcome(state=state, exit_code=1, cause=cause))
        run.event("attempt_ended", attempt=attempt, state=state, cause=cause)
    explained = diagnosis_page(run, diagnose(run, states([run])[run.id]))
    for lines in (printed(page(run)), printed(explained)):
        assert sum(cause in line for line in lines) == 1


def test_figures_are_explained_where_there_is_room_and_shown_once(tmp_path: Path) -> None:
    results = {
        "loss": 2.5,
        "n": 64,
        "model_weights": "0123456789abcdef" * 4,
        "generations": [{"prompt": "Once", "text": "upon\na"}],
    }
    lines = printed(page(make_run("evaluate", tmp_path, CONFIGS["evaluate"], results)), width=120)
    for texts in (("n", "64", "sequences that were scored"), ("model_weights", "0123456789ab…"), ("Once", "upon a")):
        assert any(all(text in line for text in texts) for line in lines)
    run = make_run("pretrain", tmp_path, CONFIGS["pretrain"], {"train/loss": 1.5, "validation/loss": 2.0})
    append_line(run.metrics, {"step": 3, "attempt": 1, "time": 1.0, "train/loss": 1.5, "validation/loss": 2.5})
    text = "\n".join(printed(page(run)))
    assert (text.count("train/loss"), text.count("validation/loss")) == (1, 2)


def test_offline_files_of_wandb_are_named_until_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run("pretrain", tmp_path / "runs", CONFIGS["pretrain"], {})
    run.wandb.mkdir()
    line = f"  ropewalk sync {run.id}"
    assert line not in printed(page(run))
    write_json(run.wandb / "offline.json", 3)
    lines = printed(page(run))
    assert f"until then in {short_path(str(run.wandb))}" in lines[lines.index(line) + 1]
    write_json(run.wandb / "address.json", {"address": "https://wandb.example/me/x"})
    assert line not in printed(page(run))


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.CANCELLED])
def test_an_ended_endpoint_is_not_described_as_one_that_serves(state: RunState, tmp_path: Path) -> None:
    run = RunDir.create("serve", {"job": "serve", "config": {}, "cluster": "local", "created": 1.0}, tmp_path)
    run.make_folders(run.begin_attempt())
    serving = ServingFiles(run)
    serving.folder.mkdir(exist_ok=True)
    write_json(serving.state, {"versions": {"m": {"phase": "ready", "since": 1.0}}, "stable": "m"})
    if state.final:
        run.write_outcome(1, Outcome(state=state, exit_code=0, cause="cancelled"))
    progress = {"stage": "serving", "words": "m at http://127.0.0.1:43463"}
    assert bool(progress_words({"state": state, "progress": progress})) is (state is RunState.RUNNING)
    assert bool(view_of(run).explain()) is (state is RunState.RUNNING)


def test_lines_to_copy_are_not_broken() -> None:
    command = "ropewalk run evaluate model=quickstart-train-20261126-203120-109a data=quickstart/data"
    assert printed(NextSteps(["a" * 90], [(command, "score it")])) == [
        "",
        "next",
        f"  {'a' * 90}",
        f"  {command}",
        "      score it",
    ]
