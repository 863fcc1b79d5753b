"""Places: whole writes, patience with a store that is away, and no patience with an answer."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import DataError, StorageError
from ropewalk.cluster.storage import StoragePath, retry


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    return StoragePath(tmp_path / "p") if request.param == "local" else StoragePath(f"memory://{tmp_path.name}")


def test_files_are_written_whole_and_read_in_parts(place: StoragePath) -> None:
    place.write("a/b.bin", b"0123456789")
    assert place.read("a/b.bin") == b"0123456789"
    assert place.read("a/b.bin", 2, 5) == b"234"
    assert (place.size("a/b.bin"), place.exists("a/b.bin"), place.exists("a/c")) == (10, True, False)
    assert place.names("a") == ["b.bin"]
    assert place.names("nowhere") == []
    place.remove("a")
    place.remove("a")
    assert not place.exists("a/b.bin")


def test_a_file_that_is_renamed_into_place_is_not_lost_to_somebody_who_looks_for_it(tmp_path: Path) -> None:
    place, over = StoragePath(tmp_path), threading.Event()

    def look() -> None:
        while not over.is_set():
            place.exists_afresh("manifest.json")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(500):
            (tmp_path / "manifest.new").write_text("{}")
            (tmp_path / "manifest.new").rename(tmp_path / "manifest.json")
            assert place.exists_afresh("manifest.json")
            (tmp_path / "manifest.json").unlink()
    finally:
        over.set()
        looking.join()


def test_a_write_that_fails_leaves_nothing(place: StoragePath) -> None:
    def interrupted() -> None:
        with place.create("x") as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert place.names() == []


def test_many_reads_come_in_the_order_that_was_asked_for(place: StoragePath) -> None:
    for number in range(40):
        place.write(f"{number}", bytes([number]))
    order = [number * 7 % 40 for number in range(40)]
    assert place.each(lambda number: place.read(str(number)), order) == [bytes([number]) for number in order]
    assert place.each(place.read, ["3"]) == [b"\3"]
    assert place.each(place.read, []) == []
    with pytest.raises(FileNotFoundError):
        place.each(place.read, ["1", "missing", "2"])


def test_a_missing_file_is_an_answer(place: StoragePath) -> None:
    with pytest.raises(FileNotFoundError):
        place.read("nowhere")


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

    place = pickle.loads(pickle.dumps(StoragePath(tmp_path)))
    assert place.local == tmp_path
