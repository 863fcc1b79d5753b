"""`ropewalk dev` on this machine."""

import json
import subprocess
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.cli.known_runs import remember
from tests.jobs.orchestration.command.programs import ended
from tests.jobs.shell import Shell
from tests.slurm.ssh.login_node import need_sshd


def test_a_node_is_held_until_it_is_cancelled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need_sshd()
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    for name, value in {"ROPEWALK_RUNS": "runs", "XDG_STATE_HOME": "state", "HOME": "."}.items():
        monkeypatch.setenv(name, str((tmp_path / value).resolve()))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shell = Shell(capsys, monkeypatch, tmp_path)
    answer = json.loads(shell("dev", "--json"))
    run = RunDir(tmp_path / "runs" / answer["run"])
    assert answer["folder"] == str(tmp_path / "project"), "a run on this machine uses the code itself"
    done = subprocess.run(
        ["ssh", "-F", answer["ssh_config"], answer["host"], "echo $ROPEWALK_RUN"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{run.path}\n"
    assert (tmp_path / "state/ropewalk/dev" / run.id).stat().st_mode & 0o777 == 0o700
    assert "it ends its sessions and exits" in shell("cancel", run.id)
    assert ended(run).state is RunState.CANCELLED
    assert "its key is not on this machine" in shell.mistake("dev", "--run", "another")
    remember("twice-1", "east")
    remember("twice-2", "west")
    assert "ambiguous: on east and west" in shell.mistake("dev", "--run", "twice")
