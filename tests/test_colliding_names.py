"""The installed program in a project whose modules are called like the top folders of this program."""

from pathlib import Path

import pytest

from tests.colliding import call_functions, run_program, sweep, train
from tests.installed import run


def test_programs_and_functions(command: Path, colliding: Path) -> None:
    ended = run_program(command, colliding)
    call_functions(command, colliding)
    assert "SUCCEEDED" in run(command, colliding, "ps", "--all").stdout
    assert run(command, colliding, "why", str(ended["run"])).returncode == 0


def test_data_and_training(command: Path, colliding: Path) -> None:
    train(command, colliding)


@pytest.mark.soak("half a minute; make test runs the jobs that a sweep consists of: one with Ray's workers, and a training")
def test_a_sweep(command: Path, colliding: Path) -> None:
    train(command, colliding)
    sweep(command, colliding)
