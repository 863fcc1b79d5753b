"""Modules of the user's own travel with the runs that need them, and with no others."""

import sys
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from tests.jobs.shell import Shell, pretrain
from tests.readme import Section

FILES = {"greet.py": ("jobs/README.md", "Add a job"), "mine.py": ("jobs/training/README.md", "Add an objective")}


@pytest.fixture
def modules(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The modules of the READMEs in the current directory, which is on Python's path; they are forgotten at the end."""
    for page in FILES.values():
        Section(*page).write_files(shell.home)
    monkeypatch.syspath_prepend(str(shell.home))
    for name in ("greet", "mine"):
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    return shell.home


def submit(shell: Shell, *arguments: str) -> RunDir:
    return RunDir(shell.home / "runs" / shell("submit", *arguments, "--on", "shipping").strip())


@pytest.mark.parametrize(
    ("module", "arguments"), [("greet.py", ("greet:SPEC", "recipient=me")), ("mine.py", pretrain("objective=mine:ZLoss"))]
)
def test_a_copy_is_imported_that_later_edits_do_not_change(
    module: str, arguments: tuple[str, ...], shell: Shell, modules: Path
) -> None:
    run = submit(shell, *arguments)
    assert f"project: {modules} is copied with the run" in shell.err
    text = (modules / module).read_text()
    (modules / module).unlink()
    assert run.project.is_relative_to(modules / "runs/.code")
    assert (run.project / module).read_text() == text
    assert run.id.startswith(str(run.record["job"]))
    assert ":" not in str(run.record["job"])


def test_nothing_is_copied_for_other_runs(shell: Shell, modules: Path) -> None:
    assert "project" not in submit(shell, *pretrain()).record


def test_trials_and_steps_use_the_copy_of_their_sweep_or_pipeline(shell: Shell, modules: Path) -> None:
    steps = {"steps": {"greet": {"job": "greet:SPEC", "config": {"recipient": "me"}}, "data": {"job": "command"}}}
    steps["steps"]["data"] |= {"needs": ["greet"], "config": {"command": ["true"], "code": {"ship": False}}}
    (modules / "pipeline.yaml").write_text(yaml.safe_dump(steps))
    pipeline = submit(shell, "pipeline", "-c", "pipeline.yaml")
    children = {run.record["step"]: run for run in RunDir.all(modules / "runs") if run.record.get("parent") == pipeline.id}
    assert children["greet"].record["project"] == pipeline.record["project"]
    assert "project" not in children["data"].record
    (modules / "sweep.yaml").write_text(
        yaml.safe_dump(
            {
                "job": "pretrain",
                "base": {"data": "data", "steps": 3, "seq_len": 16, "objective": "mine:ZLoss"},
                "space": {"optim.lr": {"choice": [1e-3, 1e-4]}},
                "scheduler": "fifo",
                "metric": "validation/loss",
            }
        )
    )
    assert "project" in submit(shell, "sweep", "-c", "sweep.yaml").record
