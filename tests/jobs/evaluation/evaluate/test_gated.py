"""A gate over the real local backend: a state of its own, an exit code, and what `why` says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.evaluation.evaluate.tasks import choice_task
from tests.jobs.tiny import tiny_model
from tests.patience import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gated")
    tiny_model(root / "model")
    choice_task(root, 30)
    return root


def ropewalk(place: Path, *words: str, expect: int = 0) -> str:
    environment = {**os.environ, "ROPEWALK_RUNS": str(place / "runs"), "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ropewalk.jobs.cli", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == expect, done.stderr + done.stdout
    return done.stdout if expect != 2 else done.stderr


def test_a_refused_run_says_so_everywhere(place: Path) -> None:
    words = ("evaluate", "model=model", "tasks=[choice.yaml]", "require={choice: '>= 0.99 by 2se'}", "resources.ranks_per_node=2")
    ended = json.loads(ropewalk(place, "run", *words, "--json", expect=1).splitlines()[-1])
    assert ended["state"] == "REFUSED"
    assert ended["gate"]["failed"][0]["name"] == "choice"
    assert ended["scores"]["choice"]["acc"]["n"] == 30
    assert "the gate refuses" in ended["cause"]
    assert "95% interval" in ended["cause"]
    assert "its gate refused" in ropewalk(place, "why", "latest")
    assert "acc_norm" in ropewalk(place, "show", "latest")
    assert json.loads(ropewalk(place, "ps", "--all", "--json"))[0]["state"] == "REFUSED"


def test_a_users_mistakes_are_told_at_submission(place: Path) -> None:
    run = ("run", "evaluate", "model=model")
    assert "nothing to evaluate" in ropewalk(place, *run, expect=2)
    assert "there is no file" in ropewalk(place, *run, "tasks=[gone.yaml]", expect=2)
    assert "task_files.boolq=FILE" in ropewalk(place, *run, "tasks=[boolq]", expect=2)
    assert "is not a condition" in ropewalk(place, *run, "tasks=[choice.yaml]", "require={choice: good}", expect=2)
