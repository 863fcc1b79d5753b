"""Input and output on S3, with the server away for ten seconds in the middle: the same data set as with a steady one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.preprocess.job import main
from tests.conftest import S3Server
from tests.datapipe.test_preprocess import context_of
from tests.fakes.documents import configure, contents, make, some_documents, write_lines
from tests.fakes.near import planted
from tests.fork_server import end_fork_server

KEYS: dict[str, Any] = {"unit_mib": 0.04, "shard_mib": 0.1}
AWAY_SECONDS = 10.0


def upload(tmp_path: Path, bucket: str) -> str:
    for name, seed in (("a.jsonl", 0), ("deep/b.jsonl", 1)):
        path = write_lines(tmp_path / "local" / name, some_documents(200, seed))
        StoragePath(bucket).write(f"raw/{name}", path.read_bytes())
    return f"{bucket}/raw/**/*.jsonl"


def without_inputs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name != "manifest.json"}


@pytest.mark.s3
def test_s3_holds_the_same_data_set_as_a_disk(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    pattern = upload(tmp_path, bucket)
    manifest = make(pattern, f"{bucket}/data/set", **KEYS)
    local = make(str(tmp_path / "local/**/*.jsonl"), tmp_path / "out", **KEYS)
    assert without_inputs(contents(f"{bucket}/data/set")) == without_inputs(contents(tmp_path / "out"))
    assert manifest.shards == local.shards
    assert [i.checksum for i in manifest.inputs] == [i.checksum for i in local.inputs]
    assert make(pattern, f"{bucket}/data/set", **KEYS) == manifest
    assert make(f"{bucket}/raw", f"{bucket}/again", **KEYS).shards == manifest.shards
    first = StoragePath(bucket).read("raw/a.jsonl")
    StoragePath(bucket).write("raw/a.jsonl", first.swapcase())
    with pytest.raises(DataError, match=r"raw/a\.jsonl changed since"):
        make(pattern, f"{bucket}/data/set", **KEYS)


@contextmanager
def trouble(server: S3Server) -> Iterator[None]:
    """Answers are slow, and time and again every connection is reset."""
    ended = threading.Event()

    def disturb() -> None:
        while not ended.wait(1.5):
            server.reset()
            ended.wait(0.2)
            server.restore()
            server.delay(20)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        server.restore()


@pytest.mark.s3
@pytest.mark.soak("every stage, slow answers and broken connections; make test runs test_s3_holds_the_same_data_set_as_a_disk")
def test_all_stages_on_s3_give_the_same_as_on_a_disk(tmp_path: Path, s3_server: S3Server) -> None:
    """Every stage after reading, and an evaluation set in the bucket; the store is slow and breaks connections meanwhile."""
    bucket = s3_server.bucket()
    notice = "All rights reserved, of whoever laid this rope of the lane."
    documents = [{**entry, "text": f"{entry['text']}\n\n{notice}"} for entry in planted(12, 30)]
    documents[3]["text"] += " mail jane.doe@mail.example.org"
    path = write_lines(tmp_path / "local/a.jsonl", documents)
    StoragePath(bucket).write("raw/a.jsonl", path.read_bytes())
    item = {"question": " ".join(documents[5]["text"].split()[:30])}
    items = write_lines(tmp_path / "items.jsonl", [item])
    StoragePath(bucket).write("items.jsonl", items.read_bytes())

    def keys(against: str) -> dict[str, Any]:
        return {
            "near_duplicates": {},
            "paragraphs": {},
            "language": {"min_confidence": 0, "code": False},
            "filters": [{"gopher_quality": {"min_words": 5, "min_stop_words": None}}],
            "decontaminate": {"against": [against]},
            "pii": {},
            "balance": {"by": "language", "temperature": 0.5},
            "unit_mib": 0.03,
        }

    local = make(path, tmp_path / "out", **keys(str(items)))
    with trouble(s3_server):
        manifest = make(f"{bucket}/raw/a.jsonl", f"{bucket}/out", **keys(f"{bucket}/items.jsonl"))
    assert manifest.shards == local.shards
    assert {**manifest.rejected.reasons} == {**local.rejected.reasons}
    assert {"near_duplicate", "decontaminate.items"} <= set(manifest.rejected.reasons)
    assert manifest.counts == local.counts
    assert min(manifest.counts["pii.email"], manifest.counts["paragraphs.repeated"]) > 0
    assert manifest.mixture == local.mixture


@pytest.mark.s3
@pytest.mark.soak(
    "two minutes; make test compares the data set on S3 with that on a disk, and cuts the server off under checkpoints"
)
def test_a_server_that_is_away_for_ten_seconds_changes_nothing(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    pattern = upload(tmp_path, bucket)
    steady = make(pattern, f"{bucket}/steady", **KEYS)
    away: list[float] = []

    def cut_in_the_middle() -> None:
        work = StoragePath(f"{bucket}/out/.work/units")
        while not any(name.endswith(".json") for name in work.names()):
            time.sleep(0.02)
        s3_server.cut()
        began = time.monotonic()
        restored.wait(AWAY_SECONDS)
        s3_server.restore()
        away.append(time.monotonic() - began)

    restored = threading.Event()
    watch = threading.Thread(target=cut_in_the_middle)
    end_fork_server()  # it may be older than the variables of the S3 server
    watch.start()
    try:
        main(context_of(configure(pattern, f"{bucket}/out", actors=1, **KEYS), tmp_path / "runs", engine="process"))
        finished_after_cut = bool(away)
    finally:
        restored.set()
        watch.join()
        s3_server.restore()
    assert finished_after_cut
    assert away[0] >= AWAY_SECONDS
    assert contents(f"{bucket}/out") == contents(f"{bucket}/steady")
    assert steady.totals.documents > 300
