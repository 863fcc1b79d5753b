"""Tables for people: what is in a run's files stands in them as it is."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.show import page
from ropewalk.jobs.runs.show.status import states, summary
from ropewalk.jobs.runs.show.tables import ONE_LINE, console, runs_table


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


def test_a_pipe_has_one_line_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of_runs()
    rows[0]["line"] = "└─ " * 80
    console(piped_width=ONE_LINE).print(runs_table(rows))
    assert len([line for line in capsys.readouterr().out.splitlines() if "node 1 died" in line]) == 2
