"""A program's mistake that every retry meets again ends a run; errors that may pass do not."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.mistakes import START_SECONDS, repeats_mistake
from ropewalk.cluster.run.names import ERRORS
from ropewalk.cluster.spec import BY_SUBMISSION, RunState
from tests.cluster.conftest import ToyRun

Start = Callable[..., ToyRun]
TYPO: dict[str, Any] = {
    **{
        "exit_code": EXIT_FAILED,
        "type": "KeyError",
        "message": "'lr'",
        "traceback": "line 4",
        "seconds": 1.0,
        "progress": [None] * 2,
    }
}


def record(run: RunDir, attempt: int, group: int, **keys: Any) -> None:
    error = {**TYPO, "who": "rank 0", "rank": 0, "group": group, "time": time.time(), **keys}
    write_json(run.attempt_dir(attempt) / ERRORS / f"group-{group}-rank-0.json", error)


@pytest.mark.parametrize(
    ("before", "now", "repeated"),
    [
        ({}, {}, True),
        ({"message": "'weight'"}, {}, False),
        ({"traceback": "line 5"}, {}, False),
        ({}, {"progress": ["train", 10]}, False),
        ({"progress": ["train", 10]}, {"progress": ["train", 10]}, True),
        ({"seconds": START_SECONDS}, {}, False),
        ({}, {"seconds": START_SECONDS}, False),
        *(
            ({"type": kind, "message": text}, {"type": kind, "message": text}, False)
            for kind, text in [
                ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB"),
                ("RuntimeError", "CUDA error: uncorrectable ECC error encountered"),
                ("MemoryError", ""),
                ("ConnectionRefusedError", "[Errno 111] Connection refused"),
                ("TimeoutError", "timed out"),
                ("OSError", "[Errno 116] Stale file handle"),
                ("OSError", "[Errno 98] Address already in use"),
                ("HTTPError", "503 Server Error: Service Unavailable for url"),
                ("ProgramFailedError", "the program was ended by SIGSEGV: it printed nothing"),
                (
                    "ProgramFailedError",
                    "the program ended with exit code 139, as of a program that was ended by SIGSEGV",
                ),
            ]
        ),
        ({"exit_code": EXIT_LOST_PEER}, {"exit_code": EXIT_LOST_PEER}, False),
    ],
)
def test_only_the_same_error_at_the_start_is_a_mistake(
    before: dict[str, Any], now: dict[str, Any], repeated: bool, tmp_path: Path
) -> None:
    run = RunDir.create("x", {"config": {}}, tmp_path)
    first, second = run.begin_attempt(opened_by=BY_SUBMISSION), run.begin_attempt(opened_by="retry")
    record(run, first, 1, **before)
    record(run, second, 1, **now)
    assert repeats_mistake(run, second) is repeated
    record(run, first, 2, **now)
    assert repeats_mistake(run, first, group=2) is repeated


def test_a_resume_starts_anew(tmp_path: Path) -> None:
    run = RunDir.create("x", {"config": {}}, tmp_path)
    for _ in range(2):
        record(run, run.begin_attempt(opened_by=BY_SUBMISSION), 1)
    assert not repeats_mistake(run, 2)


def test_another_attempt_meets_the_mistake_once(toy: Start) -> None:
    run = toy("misspell", "process", retries={"bugs": 5})
    outcome = run.finish()
    assert (outcome.state, outcome.cause) == (RunState.FAILED, "rank 0: KeyError: 'lr'")
    assert run.run.attempts() == [1, 2]


@pytest.mark.soak("two groups of two nodes; make test runs test_another_attempt_meets_the_mistake_once")
def test_another_group_of_ranks_meets_the_mistake_once(toy: Start) -> None:
    run = toy("misspell", "ranks", retries={"bugs": 5}, resources={"nodes": 2})
    assert run.finish().state is RunState.FAILED
    assert run.run.attempts() == [1]
    assert {error["group"] for error in run.run.read_errors(1)} == {1, 2}


@pytest.mark.soak(
    "three attempts; make test runs test_only_the_same_error_at_the_start_is_a_mistake and"
    " test_another_attempt_meets_the_mistake_once"
)
def test_errors_that_differ_are_retried(toy: Start) -> None:
    run = toy("fail", "process", retries={"bugs": 2})
    assert run.finish().state is RunState.FAILED
    assert run.run.attempts() == [1, 2, 3]
