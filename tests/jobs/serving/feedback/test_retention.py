"""Everything captured is deleted at the age of its exchange, in all stores, and a wrong clock deletes nothing recent."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback import retention
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.records import (
    FOLDER,
    answers_store,
    exchanges_store,
    judgements_store,
    ratings_store,
    samples_store,
)
from ropewalk.jobs.serving.feedback.retention import enforce, enforce_beside, enforce_retention
from ropewalk.jobs.serving.feedback.store import Spool, Writer
from ropewalk.jobs.serving.feedback.writer import CaptureWriter
from tests.jobs.serving.collect.test_collect import collect
from tests.jobs.serving.feedback.exchanges import exchange
from tests.jobs.serving.feedback.runs import frame_of
from tests.jobs.serving.refresh.staged import captured, keep

DAY = 86_400.0
STORES = (exchanges_store, ratings_store, samples_store, judgements_store)


def run_with(root: Path, *days: float, **capture: Any) -> RunDir:
    """A serving run with an exchange of each age, and today's feedback on it in every store."""
    config = {"capture": {"retention_days": 30, **capture}}
    run = RunDir.create("serve", {"job": "serve", "cluster": "local", "config": config}, root)
    now, folder = time.time(), run.path / FOLDER
    for number, age in enumerate(days):
        moment = now - age * DAY
        row = captured(number, "I am Ann Smith", "Dear Ann", time=moment)
        keep(exchanges_store(folder), [row])
        keep(answers_store(folder), [row])
        about = {"time": now, "exchange_time": moment}
        keep(ratings_store(folder), [{"id": f"r{number}", "exchange": row["id"], "comment": "I am Ann", **about}])
        keep(samples_store(folder), [{"id": f"s{number}", "exchange": row["id"], "answer": '"Dear Ann"', **about}])
        judgement = {"reviewer": "eva", "item": row["id"], "first": row["id"], "choice": "both", "correction": "Dear Ann Smith"}
        keep(judgements_store(folder), [{"id": f"j{number}", **judgement, **about}])
    for store in (*STORES, answers_store):
        store(folder).roll()
    return run


def rows(run: RunDir) -> list[int]:
    return [store(run.path / FOLDER).read().num_rows for store in STORES]


def test_feedback_of_every_kind_is_as_old_as_its_exchange(tmp_path: Path) -> None:
    run = run_with(tmp_path, 400, 1)
    exported = run.path / FOLDER / "review" / "pairs.jsonl"
    exported.parent.mkdir()
    exported.write_text("Dear Ann Smith")
    os.utime(exported, (0, 0))
    assert enforce_retention(run) == 4
    assert rows(run) == [1, 1, 1, 1]
    assert not exported.exists()
    assert answers_store(run.path / FOLDER).read().num_rows == 2, "the ledger holds no content"


def test_a_clock_that_is_ahead_or_behind_deletes_nothing_recent(tmp_path: Path) -> None:
    run = run_with(tmp_path, 1, 20)
    config, now = CaptureConfig(retention_days=30), time.time()
    for clock in (now + 30 * DAY, now + 3000 * DAY, now - 400 * DAY):
        assert enforce(run.path / FOLDER, config, clock) == 0
    assert rows(run) == [2, 2, 2, 2]


def test_at_most_one_day_is_deleted_at_a_time(tmp_path: Path) -> None:
    run = run_with(tmp_path, 33.5, 33, 32, 31, 1)
    remaining = []
    for _ in range(4):
        enforce_retention(run)
        remaining.append(rows(run)[0])
    assert remaining == [3, 2, 1, 1]


def test_an_open_review_of_an_old_exchange_stops_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path, 35, 33, 1)
    spool = Spool(judgements_store(run.path / FOLDER).folder)
    spool.append([{"id": "open", "time": time.time(), "exchange_time": time.time() - 100 * DAY, "correction": "Dear Ann"}])
    for _ in range(3):
        enforce_retention(run)
    assert rows(run) == [1, 1, 1, 2]
    spool.close()
    enforce_retention(run)
    assert rows(run) == [1, 1, 1, 1]


def test_a_writer_whose_clock_is_put_forward_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the records made since then are ahead, too."""
    before = time.time()
    writer = CaptureWriter(tmp_path / "run" / FOLDER, CaptureConfig(retention_days=3, mask=()))
    writer.write([frame_of(exchange(number, time=before + days * DAY)) for number, days in enumerate((-2, -1, 30))])
    monkeypatch.setattr(time, "time", lambda: before + 30 * DAY)
    writer.maintain()
    assert exchanges_store(tmp_path / "run" / FOLDER).read().num_rows == 3
    writer.close()
    writer._retained = float("-inf")
    writer.maintain()
    assert exchanges_store(tmp_path / "run" / FOLDER).read().num_rows == 3


def test_the_size_limit_counts_all_stores_and_deletes_the_oldest(tmp_path: Path) -> None:
    run = run_with(tmp_path, 1)
    folder = run.path / FOLDER
    for hour in range(6):
        with Writer(ratings_store(folder), 1 << 30, 1e9) as writer:
            moment = time.time() - (10 - hour) * 3600
            comment = os.urandom(150_000).hex()
            writer.append(
                [{"id": f"big-{hour}", "time": moment, "exchange": "req-0", "exchange_time": moment, "comment": comment}]
            )
    assert enforce(folder, CaptureConfig(max_bytes=2**20)) > 0
    assert exchanges_store(folder).read().num_rows == 0, "it was the oldest"
    assert [number for number in ratings_store(folder).read()["id"].to_pylist() if number.startswith("big")] == [
        *("big-3", "big-4", "big-5")
    ]


def test_retention_goes_on_after_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every collection from it, and by the writers of other runs in the same root."""
    run = run_with(tmp_path, 400, 1)
    collect(run, until=time.time(), unrated=True)
    assert rows(run) == [1, 1, 1, 1]
    other, broken = run_with(tmp_path, 400, 1), run_with(tmp_path, 400)
    keep_going = retention.enforce_retention

    def enforced(run: RunDir) -> int:
        if run.path == broken.path:
            raise PermissionError("not yours")
        return keep_going(run)

    monkeypatch.setattr(retention, "enforce_retention", enforced)
    enforce_beside(run.path / FOLDER)
    assert (rows(other), rows(broken)) == ([1, 1, 1, 1], [1, 1, 1, 1])
