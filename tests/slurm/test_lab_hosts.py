"""The names of a lab's nodes in /etc/hosts, which all of this machine reads meanwhile."""

import multiprocessing
from pathlib import Path

import pytest

from ropewalk.slurm.lab import hosts as lab_hosts

OTHERS = "127.0.0.1 localhost\n10.1.2.3 a-real-host\n"


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "hosts"
    file.write_text(OTHERS)
    monkeypatch.setattr(lab_hosts, "HOSTS", file)
    return file


def come_and_go(hosts: Path, number: int) -> None:
    lab_hosts.HOSTS = hosts
    lab_hosts._resolve = lambda name: ""  # to look for it takes longer than all else
    for _ in range(300):
        lab_hosts.add({f"lab{number}-n{node}.invalid": f"127.0.{number}.{node}" for node in range(1, 5)}, Path(f"/tmp/s{number}"))
        lab_hosts.remove(Path(f"/tmp/s{number}"))


def test_lines_are_added_and_removed(hosts: Path) -> None:
    hosts.write_text(OTHERS.rstrip("\n"))
    lab_hosts.add({"a.invalid": "127.0.1.1", "localhost": "127.0.0.1"}, Path("/tmp/sa"))
    lab_hosts.add({"b.invalid": "127.0.1.2"}, Path("/tmp/sb"))
    lab_hosts.remove(Path("/tmp/sa"))
    assert hosts.read_text() == OTHERS + "127.0.1.2 b.invalid # ropewalk lab /tmp/sb\n"
    lab_hosts.remove(Path("/tmp/sb"))
    assert hosts.read_text() == OTHERS


def test_localhost_is_there_while_labs_come_and_go(hosts: Path) -> None:
    """The name was missing while the emptied file was written: ranks that looked it up ended their attempt."""
    labs = [multiprocessing.get_context("spawn").Process(target=come_and_go, args=(hosts, number)) for number in (1, 2)]
    for lab in labs:
        lab.start()
    looks = 0
    while any(lab.is_alive() for lab in labs):
        assert hosts.read_text().startswith(OTHERS)
        looks += 1
    assert looks > 100
    assert [lab.exitcode for lab in labs] == [0, 0]
    assert hosts.read_text() == OTHERS, "none has written over what the other wrote"
