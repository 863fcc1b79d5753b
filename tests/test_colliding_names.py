"""The installed program in a project whose modules are called like the top folders of this program."""

from pathlib import Path

import pytest

from tests.colliding import call_functions, run_program, sweep, train
from tests.installed import run


@pytest.mark.soak("eight seconds of CPU time; make test checks in test_package.py that nothing is importable under a bare name")
def test_programs_and_functions(command: Path, colliding: Path) -> None:
    ended = run_program(command, colliding)
    call_functions(command, colliding)
    assert "SUCCEEDED" in run(command, colliding, "ps", "--all").stdout
    assert run(command, colliding, "why", str(ended["run"])).returncode == 0


@pytest.mark.soak("a minute; make test checks in test_package.py that nothing is importable under a bare name")
def test_data_training_and_a_sweep(command: Path, colliding: Path) -> None:
    train(command, colliding)
    sweep(command, colliding)
