"""A gate over the real local backend: a state of its own, an exit code, and what `why` says."""

import json
import os
from pathlib import Path

import pytest

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_directory
from tests.forked import run_forked
from tests.jobs.evaluation.evaluate.tasks import choice_task
from tests.jobs.shell import Shell
from tests.jobs.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gated")
    tiny_model(root / "model")
    choice_task(root, 30)
    return root


def ropewalk(folder: Path, *arguments: str, expect: int = 0) -> str:
    environment = {**os.environ, "ROPEWALK_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"}
    done = run_forked(module_command("ropewalk.jobs.cli", *arguments), cwd=folder, env=environment)
    assert done.returncode == expect, done.stderr + done.stdout
    return done.stdout


def test_a_refused_run_says_so_everywhere(folder: Path) -> None:
    arguments = (
        "evaluate",
        "model=model",
        "tasks=[choice.yaml]",
        "require={choice: '>= 0.99 by 2se'}",
        "resources.ranks_per_node=2",
    )
    ended = json.loads(ropewalk(folder, "run", *arguments, "--json", expect=1).splitlines()[-1])
    assert ended["state"] == "REFUSED"
    assert ended["gate"]["failed"][0]["name"] == "choice"
    assert ended["scores"]["choice"]["acc"]["n"] == 30
    assert ended["model_weights"] == hash_of_directory(folder / "model")
    assert "the gate refuses" in ended["cause"]
    assert "95% interval" in ended["cause"]
    assert "did not pass its gate" in ropewalk(folder, "why", "latest")
    assert "acc_norm" in ropewalk(folder, "show", "latest")
    assert json.loads(ropewalk(folder, "ps", "--all", "--json"))[0]["state"] == "REFUSED"


def test_a_users_mistakes_are_told_at_submission(folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = ("run", "evaluate", "model=model")
    assert "nothing to evaluate" in shell.mistake(*run)
    assert "there is no file" in shell.mistake(*run, "tasks=[gone.yaml]")
    assert "task_files.boolq=FILE" in shell.mistake(*run, "tasks=[boolq]")
    assert "is not a condition" in shell.mistake(*run, "tasks=[choice.yaml]", "require={choice: good}")
