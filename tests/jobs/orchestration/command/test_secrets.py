"""Secrets of a program on this machine: it gets them, and nothing else keeps them."""

import json
import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.secrets.store import FileStore
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.show import page, plain
from tests import planted
from tests.jobs.orchestration.command.programs import Start, ended, script
from tests.patience import Patience, until


@pytest.fixture
def home(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path / "home"


@pytest.mark.soak("11 seconds of CPU time; make test plants the same secrets on Slurm and in pods, in tests of this name")
@pytest.mark.parametrize(("launch", "ranks"), [("ranks", 2), ("once", 1)])
def test_planted_secrets_are_in_the_program_alone(home: Path, start: Start, tmp_path: Path, launch: str, ranks: int) -> None:
    planted.plant("local")
    names = f"secrets=[{','.join(planted.SECRETS)}]"
    size = [f"resources.ranks_per_node={ranks}"] if launch == "ranks" else []
    run = start(script(tmp_path, planted.PROGRAM), f"launch={launch}", "retries.bugs=0", names, *size)
    until(run.wandb.exists, Patience.START)
    planted.look_while_running(run, ranks)
    outcome = ended(run)
    assert outcome.state is RunState.FAILED
    assert f"RuntimeError: ***{planted.NAME}*** is refused" in outcome.cause
    for rank in range(ranks):
        planted.check_log((run.log_dir(1) / f"rank-{rank}.log").read_text())
    console = Console(record=True, file=StringIO())
    console.print(page(run))
    for shown in (console.export_text(), json.dumps(plain(run))):
        assert planted.NAME in shown
        assert not [needle for needle in planted.NEEDLES if needle.decode() in shown]
    folders = [tmp_path, Path(os.environ["TMPDIR"])]
    assert planted.found(folders, FileStore.of_cluster("local").folder) == []
    assert len(planted.found([home])) == len(planted.SECRETS), "the search finds what is there"
    assert list(planted.holders("environ")) == []


def test_a_missing_secret_is_refused_at_submission(home: Path, start: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"HF_TOKEN is not set on cluster 'local'; type `ropewalk secret set HF_TOKEN`"):
        start(["true"], "secrets=[HF_TOKEN]")
    assert list((tmp_path / "runs").glob("*")) == []
    with pytest.raises(ConfigError, match="name of a secret"):
        start(["true"], "secrets=[HF-TOKEN]")


def test_a_secret_that_is_removed_before_the_start_ends_the_run(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.plant("local")
    monkeypatch.setattr(
        "ropewalk.cluster.backends.base.Backend.check_secrets", lambda *_: FileStore.of_cluster("local").remove(planted.NAME)
    )
    run = start(["true"], f"secrets=[{planted.NAME}]")
    outcome = ended(run)
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 42)
    assert f"{planted.NAME} is not set on cluster 'local'" in outcome.cause
