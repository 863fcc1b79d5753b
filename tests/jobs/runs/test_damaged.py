"""A damaged file of one run: it is named, in one line, and hides no other run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from tests.jobs.models.registry.registered import trained
from tests.jobs.shell import Shell, pretrain

RANDOM = bytes(range(128, 256))
HOW: list[tuple[str, bytes]] = [
    ("run.yaml", b""),
    ("run.yaml", b"[a, b]\n"),
    ("run.yaml", b"job: {\n"),
    ("run.yaml", RANDOM),
    ("attempts/0001/outcome.json", RANDOM),
    ("attempts/0001/outcome.json", b"{"),
    ("attempts/0001/outcome.json", b"[1]"),
    ("attempts/0001/outcome.json", b'{"state": "GONE"}'),
    ("attempts/0001/attempt.json", RANDOM),
]


Damage = Callable[[str, bytes], tuple[RunDir, Path]]


@pytest.fixture
def damaged(shell: Shell) -> Damage:
    def make(file: str, content: bytes) -> tuple[RunDir, Path]:
        whole = RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", "good")).strip())
        run = shell("submit", *pretrain("--on", "good", "name=hurt")).strip()
        path = shell.home / "runs" / run / file
        path.write_bytes(content)
        return whole, path

    return make


@pytest.mark.parametrize(("file", "content"), HOW)
def test_a_damaged_run_is_named_and_hides_no_other(
    shell: Shell, damaged: Damage, caplog: pytest.LogCaptureFixture, file: str, content: bytes
) -> None:
    whole, path = damaged(file, content)
    assert [row["run"] for row in json.loads(shell("ps", "--all", "--json"))] == [whole.id]
    assert str(path) in caplog.text
    for arguments in (["ps"], ["ps", "--all", "--tree"], ["top", "--once"]):
        shell(*arguments)
    run = path.relative_to(shell.home / "runs").parts[0]
    for arguments in (["show", run],) if "attempt.json" in file else (["show", run], ["why", run], ["cancel", run]):
        assert str(path) in shell.mistake(*arguments)
    if file == "run.yaml":
        assert json.loads(shell("show", "latest", "--json"))["run"] == whole.id


def test_latest_model_is_one_that_can_be_read(shell: Shell) -> None:
    model, hurt = trained(shell.home / "runs"), trained(shell.home / "runs")
    hurt.path.joinpath("run.yaml").write_text("")
    hurt.model_record.unlink()
    assert find_checkpoint("latest").ref == model.id
    with pytest.raises(DamagedFileError):
        assert RunDir(hurt.path).record
