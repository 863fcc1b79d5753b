"""`logs`: whose lines are shown, in which order, and that following neither loses nor repeats any."""

from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.logs import follow_logs, log_files, read_logs, refuse_absent


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir.create("r", {"config": {}}, tmp_path)
    for number in (1, 2):
        assert run.begin_attempt() == number
    return run


def say(run: RunDir, name: str, text: str, attempt: int = 1) -> None:
    path = run.attempt_dir(attempt) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(text)


def test_who_started_the_others_comes_first_attempt_by_attempt(run: RunDir) -> None:
    names = ["logs/rank-10.log", "logs/rank-2.log", "logs/ray-0.log", "logs/node-0.log", "logs/groups.log", "logs/batch.log"]
    names += ["array/1-encode/7_0_0_log.out", "array/0-ingest/6_10_0_log.out", "array/0-ingest/6_9_0_log.out"]
    for name in [*names, "logs/jobs.mirror.log", "logs/node-0.err"]:
        say(run, name, "word\n")
    say(run, "logs/rank-0.log", "later\n", attempt=2)
    first = ["batch", "groups", "node-0", "ray-0", "rank-2", "rank-10"]
    first += ["array-0-ingest-6_9", "array-0-ingest-6_10", "array-1-encode-7_0"]
    assert [prefix for prefix, _ in log_files(run)] == [*(f"1.{name}" for name in first), "2.rank-0"]
    assert list(map(str, read_logs(run, rank=2))) == ["1.rank-2 | word"]
    assert list(map(str, read_logs(run, node=0))) == ["1.node-0 | word"]


def test_lines_of_a_shared_log_are_those_of_their_ranks(run: RunDir) -> None:
    say(run, "logs/rank-0.log", "zero\n")
    say(run, "logs/ranks-0.log", "rank 1 | one\nrank 12 | twelve\nabort: of compiled code\n")
    say(run, "logs/ranks-7.log", "rank 57 |  indented\n")
    lines = ["1.rank-0 | zero", "1.rank-1 | one", "1.rank-12 | twelve", "1.ranks-0 | abort: of compiled code"]
    assert list(map(str, read_logs(run))) == [*lines, "1.rank-57 |  indented"]
    assert list(map(str, follow_logs(run, lambda: True, sleep=lambda _: None))) == [*lines, "1.rank-57 |  indented"]
    assert list(map(str, read_logs(run, rank=12))) == ["1.rank-12 | twelve"]
    assert list(map(str, read_logs(run, rank=0))) == ["1.rank-0 | zero"]
    refuse_absent(run, 12, None)


def test_a_rotated_log_is_read_with_its_predecessor(run: RunDir) -> None:
    turns = 0

    def sleep(_: float) -> None:
        nonlocal turns
        turns += 1
        log = run.log_dir(1) / "rank-0.log"
        if turns == 1:
            say(run, "logs/rank-0.log", "second\nthi")
            log.rename(log.with_name("rank-0.log.1"))
            say(run, "logs/rank-0.log", "")
        elif turns == 2:
            say(run, "logs/rank-0.log", "rd\nfourth\n")

    say(run, "logs/rank-0.log", "first\n")
    whole = [f"1.rank-0 | {word}" for word in ("first", "second", "third", "fourth")]
    assert list(map(str, follow_logs(run, lambda: turns == 2, sleep=sleep))) == whole
    assert list(map(str, follow_logs(run, lambda: True, sleep=lambda _: None))) == whole
    assert list(map(str, read_logs(run))) == [*whole[:2], "1.rank-0 | thi", "1.rank-0 | rd", whole[3]]


def test_following_waits_for_the_end_of_a_line_and_for_new_files(run: RunDir) -> None:
    rounds = iter(
        [
            [("logs/rank-0.log", "e\u2028nd\nsec", 1), ("logs/batch.log", "requeue\n", 1)],
            [("logs/rank-0.log", "ond\n", 1), ("logs/rank-0.log", "again\n", 2)],
            [("logs/batch.log", "last word", 1)],  # after the outcome was written
        ]
    )
    left = 3

    def over() -> bool:
        return left == 1

    def sleep(_: float) -> None:
        nonlocal left
        left -= 1
        for name, text, attempt in next(rounds, []):
            say(run, name, text, attempt)

    say(run, "logs/rank-0.log", "whol")
    assert list(map(str, follow_logs(run, over, sleep=sleep))) == [
        "1.batch | requeue",
        "1.rank-0 | whole\u2028nd",
        "1.batch | last word",
        "1.rank-0 | second",
        "2.rank-0 | again",
    ]
