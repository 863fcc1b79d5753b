"""Messages of a save: whoever failed or fell silent is named, to every rank."""

from datetime import timedelta

import pytest
from torch.distributed import HashStore

from ropewalk.cluster.errors import StaleAttemptError, StorageError
from ropewalk.sharding.checkpoints.manifest import FileRecord
from ropewalk.sharding.checkpoints.save_reports import SaveReports


def reports(ranks: int, seconds: float = 60) -> list[SaveReports]:
    store = HashStore()
    return [SaveReports(store, 7, rank, ranks, timedelta(seconds=seconds)) for rank in range(ranks)]


def record(rank: int) -> FileRecord:
    return FileRecord(path=f"rank-{rank}", size=rank, checksum="x")


def test_files_arrive_in_the_order_of_ranks_and_the_outcome_everywhere() -> None:
    main, *others = reports(4)
    for rank in (3, 1):
        others[rank - 1].send(record(rank), None)
    others[1].send(None, None)  # it has nothing to save
    assert main.collect() == ([record(1), record(3)], [])
    main.announce(None)
    assert [other.outcome() for other in others] == [None] * 3


def test_errors_keep_their_kind() -> None:
    main, other, third = reports(3)
    other.send(None, StaleAttemptError("succeeded by 2"))
    third.send(None, StorageError("no space"))
    files, errors = main.collect()
    assert files == []
    assert [(type(error), str(error)) for error in errors] == [
        (StaleAttemptError, "succeeded by 2"),
        (StorageError, "no space"),
    ]
    main.announce(errors[0])
    outcome = third.outcome()
    assert isinstance(outcome, StaleAttemptError)
    assert str(outcome) == "succeeded by 2"


def test_a_silent_rank_is_named() -> None:
    main, other, _ = reports(3, seconds=0.05)
    other.send(record(1), None)
    with pytest.raises(StorageError, match=r"from rank 2 within .*parallel.timeout_minutes"):
        main.collect()
    assert "rank 0 has not committed" in str(other.outcome())


def test_a_save_of_a_broken_group_waits_for_no_rank_that_is_lost() -> None:
    store = HashStore()
    main, other, lost = (SaveReports(store, 7, rank, 3, timedelta(seconds=600)) for rank in range(3))
    other.send(record(1), None)
    main.give_up(store)
    files, errors = main.collect()
    assert (files, [str(error) for error in errors]) == ([record(1)], ["a rank was lost during the save"])
    lost.send(record(2), None)
    main, other, lost = (SaveReports(store, 8, rank, 3, timedelta(seconds=600)) for rank in range(3))
    for each in (other, lost):
        each.send(record(3), None)
    main.give_up(store)
    assert main.collect() == ([record(3)] * 2, []), "all files are there: it is committed"
