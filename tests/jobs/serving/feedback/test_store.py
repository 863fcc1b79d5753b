"""Rows outlive kills at any moment, and each is once in the shards, whoever wrote it twice."""

import fcntl
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ropewalk.jobs.serving.feedback.store import Spool, Store, Writer
from tests.fork_server import SERVER

SCHEMA = pa.schema([("id", pa.string()), ("time", pa.float64()), ("text", pa.string())])


def row(number: int, text: str = "x") -> dict[str, Any]:
    return {"id": f"id-{number}", "time": float(number), "text": text}


def ids(store: Store) -> list[str]:
    match: list[str] = store.read()["id"].to_pylist()
    return match


def shard_ids(store: Store) -> list[str]:
    return sorted(i for path in store.shards() for i in pa.ipc.open_file(path.read_bytes()).read_all()["id"].to_pylist())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "rows", SCHEMA)


def test_spooled_and_rolled_rows_are_read_alike_each_once(store: Store) -> None:
    assert store.read().num_rows == 0
    with Writer(store, 1 << 30, 1e9) as writer:
        writer.append([row(2), row(1), row(1, "again")])
        assert ids(store) == ["id-1", "id-2"]
        assert store.roll() == 0  # its writer lives
        assert [store.find(("text", "id"), f"id-{n}") for n in (1, 2, 3)] == [row(1), row(2), None]
    other = Writer(store, 1 << 30, 1e9)
    other.append([row(2, "again"), row(3)])
    assert ids(store) == ["id-1", "id-2", "id-3"]
    other.roll()
    assert shard_ids(store) == ["id-1", "id-2", "id-3"] == ids(store)
    assert store.read(since=2.0)["text"].to_pylist() == ["x", "x"]
    assert store.find(("id",), "id-3") == row(3)
    assert store.find(("id",), "id-4") is None


def test_shards_that_end_before_a_time_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in range(0, 40, 4):
        with Writer(store, 1 << 30, 1e9) as writer:
            writer.append([row(n) for n in range(first, first + 4)])
    opened: list[Path] = []
    open_shard = store._open

    def opening(path: Path) -> pa.Table:
        opened.append(path)
        return open_shard(path)

    monkeypatch.setattr(store, "_open", opening)
    assert [record["id"] for record in store.rows(35.0, ("id",))] == [f"id-{n}" for n in range(35, 40)]
    assert len(opened) == 2
    newest = store.rows(newest_first=True)
    assert [next(newest)["id"] for _ in range(5)] == ["id-36", "id-37", "id-38", "id-39", "id-32"]
    assert len(opened) == 4, "no more than was asked for"


def test_a_spool_that_was_rolled_before_it_was_locked_is_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although something has made a file of its name meanwhile."""
    lock, raced = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not raced:
            raced.extend(store.spools())
            raced[0].unlink()
            raced[0].touch()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    spool = Spool(store.folder)
    spool.append([row(1)])
    spool.close()
    assert ids(store) == ["id-1"]
    assert spool.path != raced[0]


def _die_in_a_line(folder: Path) -> None:
    spool = Spool(folder)
    spool.append([row(1), row(2)])
    os.write(spool._file, b'{"id": "id-3", "time": 3.0, "te')
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_killed_in_the_middle_of_a_line_loses_that_line_alone(store: Store) -> None:
    process = SERVER.Process(target=_die_in_a_line, args=(store.folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ids(store) == ["id-1", "id-2"]
    with Writer(store, 1 << 30, 1e9) as writer:  # rolls what the dead one has left
        assert shard_ids(store) == ["id-1", "id-2"]
        writer.append([row(3)])
    assert ids(store) == shard_ids(store) == ["id-1", "id-2", "id-3"]


def test_a_roll_that_was_cut_short_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(store, 1 << 30, 1e9)
    writer.append([row(1), row(2)])
    removed = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("spool-"):
            raise KeyboardInterrupt
        removed(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.roll()
    assert len(list(store.folder.glob("spool-*"))) == 1
    assert ids(store) == shard_ids(store) == ["id-1", "id-2"]
    assert store.roll() == 0
    assert not list(store.folder.glob("spool-*"))
    assert shard_ids(store) == ["id-1", "id-2"]


def test_a_full_disk_costs_no_row_that_is_written_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(store.folder)
    written = os.write

    def full(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", refuse)
        return written(descriptor, data[:10])

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    spool.append([row(1)])
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        spool.append([row(2)])
    monkeypatch.undo()
    spool.append([row(2), row(3)])
    spool.close()
    assert ids(store) == ["id-1", "id-2", "id-3"]


def test_matching_records_are_deleted_from_all_shards_or_one(store: Store) -> None:
    for numbers in ((1, 2), (3, 4), (5, 6)):
        with Writer(store, 1 << 30, 1e9) as writer:
            writer.append([row(n, "y" * 3000) for n in numbers])
    assert store.delete(lambda table: pc.less(table["time"], 4.0)) == 3
    assert ids(store) == shard_ids(store) == ["id-4", "id-5", "id-6"]
    assert store.delete(lambda table: pc.is_valid(table["time"]), store.shards()[0]) == 1
    assert ids(store) == ["id-5", "id-6"]


def test_a_large_spool_is_rolled_by_itself(store: Store) -> None:
    writer = Writer(store, 1000, 1e9)
    for number in range(30):
        writer.append([row(number)])
        writer.sync()
    assert 0 < len(shard_ids(store)) < 30
    assert len(ids(store)) == 30


def test_shards_of_an_older_version_and_damaged_ones_stop_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    older = Store(store.folder, pa.schema([("id", pa.string()), ("time", pa.float64())]))
    with Writer(older, 1 << 30, 1e9) as writer:
        writer.append([row(1)])
    (store.folder / "part-000-damaged.arrow").write_bytes(b"ARROW1 and nothing else")
    assert store.read().to_pylist() == [{"id": "id-1", "time": 1.0, "text": None}]
    assert "part-000-damaged.arrow cannot be read" in caplog.text


def _append_until_killed(folder: Path, first: int, pipe: Any) -> None:
    with Writer(Store(folder, SCHEMA), 4000, 1e9) as writer:
        for number in range(first, 1_000_000):
            writer.append([row(number), row(max(0, number - 3), "again")])
            pipe.send(number)
            writer.sync()


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak("twenty kills; make test runs two"))])
def test_nothing_that_was_confirmed_is_lost_however_often_its_writer_is_killed(store: Store, kills: int) -> None:
    """Killed while it writes and while it rolls, which happens every few dozen rows."""
    confirmed = -1
    for kill in range(kills):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = SERVER.Process(target=_append_until_killed, args=(store.folder, confirmed + 1, theirs))
        process.start()
        theirs.close()
        for _ in range(40 + 37 * kill % 150):
            confirmed = ours.recv()
        process.kill()
        process.join()
        while ours.poll():
            try:
                confirmed = ours.recv()
            except EOFError:
                break
    Writer(store, 1, 1)
    expected = sorted(f"id-{n}" for n in range(confirmed + 1))
    assert set(expected) <= set(ids(store))
    assert len(ids(store)) <= confirmed + 2
    assert shard_ids(store) == sorted(ids(store))
