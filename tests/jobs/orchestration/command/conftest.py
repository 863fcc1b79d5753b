"""Start of programs, for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.process.kill import end, processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.runs.submit.submit import submit
from tests.jobs.orchestration.command.programs import ROOT, Start
from tests.patience import Patience, until


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Submit a command on this machine; nothing of it is left after the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def start(command: list[str], *overrides: str) -> RunDir:
        return submit("command", load_config(CommandConfig, {"command": command, "directory": str(tmp_path)}, overrides))

    yield start
    end(processes_of(tmp_path))
    until(lambda: not processes_of(tmp_path), Patience.START)
