"""Whoever reaches the group server's port runs nothing in an agent."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.membership.link import Link
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.group_servers import group_server_address
from ropewalk.cluster.run.key import new_key, write_private
from ropewalk.cluster.run.names import GROUP_KEY
from ropewalk.cluster.supervise.allocation import GroupServerSpec
from tests.cluster.conftest import ROOT
from tests.patience import Patience, until
from tests.processes import words_of

SERVER_ADDRESS = "127.0.1.1"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with an open attempt."""
    run = RunDir.create("toy", {"config": {}, "entry": "tests.fakes.toy:count", "engine": "ranks", "resources": {}}, tmp_path)
    run.make_folders(run.begin_attempt())
    write_private(run.attempt_dir(1) / GROUP_KEY, new_key())
    return run


@pytest.fixture
def server(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a group server that runs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spec = GroupServerSpec(run_path=str(run.path), attempt=1, nodes="1", expected=1, host=SERVER_ADDRESS)
    process = subprocess.Popen(spec.command())
    yield until(lambda: group_server_address(run.attempt_dir(1)), Patience.START)[1]
    process.kill()
    process.wait()


def test_the_group_server_listens_at_the_run_s_address_alone(server: int) -> None:
    (process,) = (each for each in psutil.Process().children() if "ropewalk.cluster.engines.group_server" in words_of(each))
    listening = {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    assert listening == {SERVER_ADDRESS}, "other programs may have the same port at other addresses"


@pytest.mark.parametrize("has_key", [True, False])
def test_who_does_not_know_the_key_joins_no_group(run: RunDir, server: int, has_key: bool) -> None:
    key = (run.attempt_dir(1) / GROUP_KEY).read_text() if has_key else new_key()
    link = Link(SERVER_ADDRESS, server, key, introduction={"name": "node 0"}, patience_seconds=30.0)
    until(lambda: link.lost or (link.listen(0.05) == [] and link.answered), Patience.SIGNAL)
    assert link.answered is has_key
    if has_key:
        link.send({"say": "ready", "group": 0, "node": 0, "address": SERVER_ADDRESS, "port": 1})
        form = until(lambda: link.listen(0.05), Patience.SIGNAL)[0]
        assert (form["say"], form["group"], form["nodes"], form["address"]) == ("form", 1, 1, SERVER_ADDRESS)
    link.close()


def test_the_key_is_the_user_s_alone_and_never_written_over(tmp_path: Path) -> None:
    write_private(tmp_path / "key", new_key())
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "link", new_key())
