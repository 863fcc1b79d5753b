"""Copies of the state in the memory of nodes: what is found there, who may write it, and when a checkpoint is read instead."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.memory.peer import MemoryPeer, MemoryPeerError
from ropewalk.cluster.memory.server import MemoryServer
from ropewalk.cluster.memory.slots import CopyName, files_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.sharding.checkpoints import memory_copies
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.memory_copies import MemoryCopies, MemoryFolder
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.group import Group
from tests.sharding.test_checkpoint import FINGERPRINT, group, run, save, state

__all__ = ["group", "run"]  # fixtures

KEY = "of the run"
RANK_FILE = "rank-0/*"


@dataclass(frozen=True, kw_only=True)
class OfTwoNodes(Group):
    """A group whose other nodes are only addresses."""

    nodes: tuple[str, ...]

    def all_gather_object(self, value: Any, kind: Any = Any) -> list[Any]:
        return [*self.nodes] if value in self.nodes else super().all_gather_object(value, kind)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[MemoryServer]]:
    servers = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        servers.append(MemoryServer(tmp_path / name, "127.0.0.1", KEY))
    yield servers
    for server in servers:
        server.close()


def store(run: RunDir, group: Group, nodes: list[MemoryServer], here: int = 0, number: int = 1) -> Checkpoints:
    """The checkpoints of a group of this attempt, on a node."""
    both = OfTwoNodes(**vars(group), nodes=tuple(node.access.address for node in nodes))
    fence = Fence(run, run.attempts()[-1], number)
    return Checkpoints(run, both, fence, CheckpointConfig(), FINGERPRINT, memory=nodes[here].access)


def copy(copies: Checkpoints, group: Group, *steps: int) -> None:
    for step in steps:
        copies.copy_to_memory(state(group, step), step=step, position=step * 8, progress={"loss": step / 3})
    copies.close()


def found_step(copies: Checkpoints, group: Group) -> tuple[int, bool]:
    """The step that is loaded, and whether from memory; its values are checked."""
    match = copies.find()
    assert match is not None
    loaded = state(group, 0)
    manifest = copies.load(*match, loaded)
    assert torch.equal(loaded["model.half"].full_tensor(), torch.full((5,), manifest.step).bfloat16())  # type: ignore[attr-defined]
    return manifest.step, copies.last_step is None


@pytest.mark.parametrize(
    ("leaving", "outlives"), [((), True), ((1,), True), ((0, 2), True), ((1, 2), False), ((3, 0), False), ((0, 1, 2, 3), False)]
)
def test_a_copy_outlives_nodes_that_leave_unless_two_have_the_same_files(
    run: RunDir, group: Group, nodes: list[MemoryServer], leaving: tuple[int, ...], outlives: bool
) -> None:
    addresses = (nodes[0].access.address, *(f"10.0.0.{number}:1" for number in (1, 2, 3)))
    four = OfTwoNodes(**vars(group), nodes=addresses)
    copies = MemoryCopies(nodes[0].access, run, four, Fence(run, run.attempts()[-1], 1))
    gone = {addresses[number] for number in leaving}
    assert copies.outlives(gone, least_nodes=1) == outlives
    assert not copies.outlives(gone, least_nodes=5 - len(leaving)), "too few are left for a group"


def problems(run: RunDir) -> list[str]:
    return [text for event in run.read_events() if event["event"] == "bad_checkpoint" for text in event["problems"]]


def test_a_copy_is_read_on_its_node_and_on_any_other(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    copy(store(run, group, nodes), group, 1, 2, 3)
    assert [len(files_of(node.folder)) for node in nodes] == [4, 4], "the newest two: a file and a manifest each"
    assert found_step(store(run, group, nodes), group) == (3, True)
    assert found_step(store(run, group, nodes, here=1), group) == (3, True), "the first node is dead"


def test_what_is_on_another_node_comes_over_a_connection(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    copy(store(run, group, nodes), group, 3)
    there, here = nodes
    name = next(path.name for path in there.folder.glob(RANK_FILE))
    copy_name, _, file = name.partition(".")
    for path in here.folder.glob("from-0/*"):
        path.unlink()
    folder = MemoryFolder(copy_name, here.access, {file: there.access.address})
    whole = files_of(there.folder)[name].read_bytes()
    assert (folder.size(file), folder.read(file, 3, 9), folder.read(file)) == (len(whole), whole[3:9], whole)
    folder.close()


def test_the_memory_of_copies_is_used_again(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    copies = store(run, group, nodes)

    def inodes() -> set[int]:
        return {path.stat().st_ino for node in nodes for path in node.folder.glob("*/*.safetensors")}

    copy(copies, group, 1, 2)
    before = inodes()
    copy(copies, group, 3, 4, 5)
    assert inodes() == before
    assert len(before) == 4
    copy(store(run, group, nodes, number=2), group, 6, 7)
    assert inodes() == before, "also by the next group"
    assert {CopyName.of(name).group for node in nodes for name in files_of(node.folder)} == {2}


def test_a_damaged_copy_is_named_and_the_one_before_it_is_read(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    save(store(run, group, nodes), group, 1)
    copy(store(run, group, nodes), group, 2, 3)
    newest, older = sorted(nodes[0].folder.glob(RANK_FILE), reverse=True)
    for path, expected in ((newest, (2, True)), (older, (1, False))):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
        assert found_step(store(run, group, nodes), group) == expected
    assert all("does not match its checksum" in text for text in problems(run))


def test_a_copy_without_one_of_its_files_is_named_and_a_checkpoint_is_read(
    run: RunDir, group: Group, nodes: list[MemoryServer]
) -> None:
    save(store(run, group, nodes), group, 1)
    copy(store(run, group, nodes), group, 2)
    next(nodes[0].folder.glob(RANK_FILE)).unlink()
    assert found_step(store(run, group, nodes), group) == (1, False)
    assert problems(run)[0].endswith("rank-00000.safetensors is in the memory of no node that is left")


def test_the_newer_of_copy_and_checkpoint_is_read(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    copy(store(run, group, nodes), group, 4)
    save(store(run, group, nodes), group, 5)
    assert found_step(store(run, group, nodes), group) == (5, False)
    assert store(run, group, nodes).find(in_memory=False) is not None
    copy(store(run, group, nodes, number=2), group, 5)
    assert found_step(store(run, group, nodes, number=2), group) == (5, True), "nothing is read from storage"


def test_a_copy_that_was_not_committed_is_not_read(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    copies = store(run, group, nodes)
    copy(copies, group, 1)

    def disk_is_full(step: int) -> None:
        raise OSError("the disk is full")

    copies.before_commit = disk_is_full
    copy(copies, group, 2, 3, 4)
    again = store(run, group, nodes, number=2)
    assert found_step(again, group) == (1, True)
    again.before_commit = disk_is_full
    copy(again, group, 2, 3)
    assert found_step(store(run, group, nodes, here=1), group) == (1, True), "no copy takes the memory of the complete one"
    assert "the disk is full" in next(e["problem"] for e in run.read_events() if e["event"] == "memory_copy_failed")


def test_a_group_with_a_successor_writes_no_copies(run: RunDir, group: Group, nodes: list[MemoryServer]) -> None:
    copy(store(run, group, nodes), group, 1)
    nodes[1].fence = (1, 2)
    copy(store(run, group, nodes), group, 2)
    assert any("has a successor" in e["problem"] for e in run.read_events() if e["event"] == "memory_copy_failed")
    assert found_step(store(run, group, nodes, here=1), group) == (1, True)


def test_a_copy_without_memory_is_an_event_and_too_little_of_it_is_refused_at_the_start(
    run: RunDir, group: Group, nodes: list[MemoryServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = store(run, group, nodes)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    copy(copies, group, 1)
    assert "No space left" in next(e["problem"] for e in run.read_events() if e["event"] == "memory_copy_failed")
    copies.require_memory(state(group, 1))
    monkeypatch.setattr(memory_copies, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(ConfigError, match=r"copies of the state need .* which has 100 B left"):
        copies.require_memory(state(group, 1))


def test_nobody_without_the_key_reads_or_writes_and_nobody_leaves_the_folder(nodes: list[MemoryServer]) -> None:
    address, name = nodes[0].access.address, f"{CopyName(1, 1, 1)}.x"
    with pytest.raises(MemoryPeerError):
        MemoryPeer(address, "another key")
    for other in ("../first", "/etc/passwd", f"{CopyName(1, 1, 1)}.../x"):
        with closing(MemoryPeer(address, KEY)) as peer, pytest.raises(OSError, match="closed"):
            peer.get(other, 0, 9)
    with closing(MemoryPeer(address, KEY)) as peer, pytest.raises(OSError, match="closed"):
        peer.put("../out", name, b"content")
    with closing(MemoryPeer(address, KEY)) as peer, pytest.raises(MemoryPeerError, match="is missing"):
        peer.size(name)
