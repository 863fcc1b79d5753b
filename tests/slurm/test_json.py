"""A client on a real Slurm cluster that knows `ropewalk` by its JSON alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.assistant import set_up
from tests.jobs.json_client import Client, write_files
from tests.slurm.conftest import MakeLab


@pytest.mark.soak("a minute, three runs; make test has the same client on this machine")
def test_a_client_needs_only_json(make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_lab(nodes=1)
    set_up(tmp_path, {"lab": {"backend": "slurm", "python": sys.executable}}, monkeypatch)
    write_files(tmp_path / "files")

    def kill(run: dict[str, Any]) -> None:
        subprocess.run(["scancel", run["handle"].removeprefix("slurm:")], check=True)

    Client(tmp_path).walk(str(tmp_path / "files"), "lab", kill)
