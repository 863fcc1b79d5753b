"""Secrets of a program on a Slurm cluster: files in the user's home, and nothing of them anywhere else."""

import os
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.secrets.store import FileStore
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests import planted
from tests.slurm.test_command import project, start
from tests.slurm.toy import finish, said

__all__ = ["project"]


def test_planted_secrets_are_in_the_program_alone(
    slurm_lab: Lab, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (project / "train.py").write_text(planted.PROGRAM)
    keys = {"secrets": list(planted.SECRETS), "resources": {"nodes": 2, "grace_seconds": 20}, "retries": {"bugs": 0}}
    with pytest.raises(ConfigError, match=r"PLANTED_KEY, PLANTED_TOKEN are not set.*ropewalk secret set PLANTED_KEY --on lab"):
        start(project, "train.py", **keys)
    planted.plant("lab")
    run = start(project, "train.py", **keys)
    planted.look_while_running(run, ranks=2)
    outcome = finish(run)
    assert outcome.state is RunState.FAILED
    assert f"RuntimeError: ***{planted.NAME}*** is refused" in outcome.cause, said(run)
    for rank in range(2):
        planted.check_log((run.log_dir(1) / f"rank-{rank}.log").read_text())
    folders = [tmp_path, slurm_lab.folder, Path(os.environ["TMPDIR"])]
    assert planted.found(folders, FileStore.of_cluster("lab").folder) == []
    assert len(planted.found([tmp_path / "home"])) == len(planted.SECRETS)
