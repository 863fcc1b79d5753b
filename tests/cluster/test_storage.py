"""Places: whole writes, patience with a store that is away, and no patience with an answer."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import DataError, StorageError
from ropewalk.cluster.storage import StoragePath, retry


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    return StoragePath(tmp_path / "p") if request.param == "local" else StoragePath(f"memory://{tmp_path.name}")


def test_files_are_written_whole_and_read_in_parts(folder: StoragePath) -> None:
    folder.write("a/b.bin", b"0123456789")
    assert folder.read("a/b.bin") == b"0123456789"
    assert folder.read("a/b.bin", 2, 5) == b"234"
    assert (folder.size("a/b.bin"), folder.exists("a/b.bin"), folder.exists("a/c")) == (10, True, False)
    assert folder.names("a") == ["b.bin"]
    assert folder.names("nowhere") == []
    folder.remove("a")
    folder.remove("a")
    assert not folder.exists("a/b.bin")


def test_a_renamed_file_is_always_visible_to_readers(tmp_path: Path) -> None:
    path, over = StoragePath(tmp_path), threading.Event()

    def look() -> None:
        while not over.is_set():
            path.exists_afresh("manifest.json")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(500):
            (tmp_path / "manifest.new").write_text("{}")
            (tmp_path / "manifest.new").rename(tmp_path / "manifest.json")
            assert path.exists_afresh("manifest.json")
            (tmp_path / "manifest.json").unlink()
    finally:
        over.set()
        looking.join()


def test_a_write_that_fails_leaves_nothing(folder: StoragePath) -> None:
    def interrupted() -> None:
        with folder.create("x") as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert folder.names() == []


def test_many_reads_come_in_the_order_that_was_asked_for(folder: StoragePath) -> None:
    for number in range(40):
        folder.write(f"{number}", bytes([number]))
    order = [number * 7 % 40 for number in range(40)]
    assert folder.each(lambda number: folder.read(str(number)), order) == [bytes([number]) for number in order]
    assert folder.each(folder.read, ["3"]) == [b"\3"]
    assert folder.each(folder.read, []) == []
    with pytest.raises(FileNotFoundError):
        folder.each(folder.read, ["1", "missing", "2"])


def test_a_missing_file_is_an_answer(folder: StoragePath) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read("nowhere")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(DataError, match="nosuch://x"):
        StoragePath("nosuch://x")


def flaky(errors: list[Exception]) -> Any:
    def action() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return action


def test_a_store_that_comes_back_is_waited_for() -> None:
    pauses: list[float] = []
    assert retry(flaky([ConnectionError("away"), TimeoutError("slow")]), "read x", 60, pauses.append) == "done"
    assert len(pauses) == 2
    assert pauses[0] < pauses[1]


def test_a_store_that_stays_away_is_an_error_that_names_it() -> None:
    with pytest.raises(StorageError, match=r"read s3://b/x: no answer for 0 s: ConnectionError: away"):
        retry(flaky([ConnectionError("away")] * 9), "read s3://b/x", 0.1, lambda _: None)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError("no"), ValueError("bad")])
def test_what_waiting_cannot_mend_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        retry(flaky([error]), "write x", 60, lambda _: pytest.fail("waited"))


def test_places_travel_between_processes(tmp_path: Path) -> None:
    import pickle

    path = pickle.loads(pickle.dumps(StoragePath(tmp_path)))
    assert path.local == tmp_path
