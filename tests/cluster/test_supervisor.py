"""Budgets: counted from the outcomes on disk, since the last submission."""

from pathlib import Path

import pytest

from cluster.run.directory import RunDir
from cluster.spec import BY_SUBMISSION, Outcome, RunState
from cluster.supervise.supervisor import end_if_spent, spent


def attempt(run: RunDir, exit_code: int, opened_by: str = "requeue", state: RunState = RunState.REQUEUED) -> int:
    number = run.begin_attempt(opened_by=opened_by)
    run.write_outcome(number, Outcome(state=state, exit_code=exit_code, cause="it ended"))
    return number


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create("x", {"config": {"retries": {"bugs": 1, "disturbances": 2}}}, tmp_path)


def test_a_resumed_run_starts_with_fresh_budgets(run: RunDir) -> None:
    attempt(run, 85, BY_SUBMISSION)
    attempt(run, 1)
    attempt(run, 143)
    assert spent(run) == (1, 2)
    attempt(run, 85, BY_SUBMISSION)
    assert spent(run) == (0, 1)


def test_one_disturbance_too_many_is_final(run: RunDir) -> None:
    for number in (attempt(run, 85, BY_SUBMISSION), attempt(run, 143)):
        assert end_if_spent(run, number).state is RunState.REQUEUED
    last = end_if_spent(run, attempt(run, 85))
    assert (last.state, last.cause) == (
        RunState.FAILED,
        "it ended; that was disturbance 3, retries.disturbances allows 2",
    )
    assert run.last_outcome() == last


def test_a_bug_is_not_a_disturbance_and_an_end_stays_one(run: RunDir) -> None:
    for _ in range(4):
        number = attempt(run, 1)
    assert end_if_spent(run, number).state is RunState.REQUEUED
    assert end_if_spent(run, attempt(run, 0, state=RunState.SUCCEEDED)).state is RunState.SUCCEEDED
