"""A job that another package adds is shown, followed, explained and cancelled by its own view."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.origin import LoginNode, _Current
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.registry import JOBS, view_class
from ropewalk.jobs.runs.show.follow import follow
from ropewalk.jobs.runs.show.view import RunView, view_of
from tests.jobs.shell import Shell


@pytest.fixture
def server(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run of it that goes on, with a canary that goes on too."""
    folder = shell.home / "added/viewed-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "entry_points.txt").write_text("[ropewalk.jobs]\nviewed = tests.fakes.viewed:SPEC\n")
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: viewed\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    run = RunDir(shell.home / "runs" / shell("submit", "viewed", "--on", "slow").split()[-1])
    record = {"job": "pretrain", "cluster": "slow", "config": {}, "resources": {"nodes": 1}, "parent": run.id}
    RunDir.create("canary", record, shell.home / "runs").begin_attempt()
    return run


def end(run: RunDir, state: RunState, cause: str = "done") -> None:
    run.write_outcome(1, Outcome(state=state, exit_code=0, cause=cause, ended=1.0))


def test_show_and_the_end_have_its_words(shell: Shell, server: RunDir) -> None:
    assert json.loads(shell("show", server.id, "--json"))["address"] == "http://node-0:8000"
    assert shell("show", server.id, "--plot").strip() == str(server.path / "latency.png")
    assert "viewed on slow" in shell("show", server.id), "what it leaves alone is as of every job"
    end(server, RunState.SUCCEEDED)
    ending = shell("wait", server.id).split("\n\n")
    assert ending[0].strip() == "served until SUCCEEDED"
    assert ending[1].splitlines()[:2] == ["next", f"  ropewalk logs {server.id}  output of every node and rank"]
    assert view_of(server).wandb_group() == "servers"


def test_what_follows_can_be_typed_on_the_machine_of_the_user(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shell.home / "prepared"
    (data / "report").mkdir(parents=True)
    for name in ("manifest.json", "report/report.html"):
        (data / name).touch()
    run = RunDir.create("data", {"job": "preprocess", "config": {"output": str(data)}, "resources": {}}, shell.home / "runs")
    run.begin_attempt()
    end(run, RunState.SUCCEEDED)
    monkeypatch.setattr(_Current, "login_node", LoginNode("login.big", "big"))
    next_steps = shell("show", run.id).split("next\n")[1].splitlines()
    assert next_steps[:2] == [f"  login.big:{data}", f"  login.big:{data}/report/report.html"]
    assert "ropewalk run pretrain data=prepared model.preset=tiny steps=300 --on big" in next_steps[2]


@pytest.mark.parametrize("terminal", [False, True])
def test_following_says_its_words(server: RunDir, terminal: bool) -> None:
    out = io.StringIO()
    write_json(server.progress, {"stage": "serve", "done": 3, "total": None, "unit": "requests", "rates": {}})
    follow(server, Console(file=out, width=200, force_terminal=terminal), sleep=lambda _: end(server, RunState.SUCCEEDED))
    assert "3 requests  2 replicas at http://node-0:8000" in out.getvalue()
    assert ("replica 0: ready" in out.getvalue()) is terminal


def test_why_has_its_lines_and_says_whose_child_a_run_is(shell: Shell, server: RunDir) -> None:
    output = shell("why", server.id)
    assert "replica 1: CUDA out of memory" in output
    assert "What to do: a GPU ran out of memory: use a smaller" in output
    assert f"It is a canary of {server.id}." in shell("why", view_of(server).children()[0].id)


def test_a_cancel_leaves_word_first_and_takes_its_children_along(shell: Shell, server: RunDir) -> None:
    shell("cancel", server.id)
    assert [event["event"] for event in server.read_events()] == ["drained"]
    children = view_of(server).children()
    assert {line["run"] for line in shell.asked("cancel")} == {server.id, children[0].id}
    assert all(run.cancel_requested for run in [server, *children])


def test_a_job_that_is_not_installed_here_is_shown_as_any_other(tmp_path: Path) -> None:
    run = RunDir.create("x", {"job": "far", "cluster": "local", "config": {}}, tmp_path)
    assert type(view_of(run)) is RunView
    assert (view_of(run).words(), view_of(run).live(), view_of(run).children()) == ("", None, [])


@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_view_of_every_job_exists(job: str) -> None:
    assert issubclass(view_class(job), RunView)
