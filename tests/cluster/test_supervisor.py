"""Budgets: counted from the outcomes on disk, since the last submission."""

from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, write_json
from ropewalk.cluster.run.names import AGENTS, NODES
from ropewalk.cluster.spec import BY_SUBMISSION, Outcome, RunState
from ropewalk.cluster.supervise.supervisor import close_unfinished_attempt, count_spent_retries, end_if_spent
from ropewalk.cluster.supervise.takeover import surviving_nodes


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
    assert count_spent_retries(run) == (1, 2)
    attempt(run, 85, BY_SUBMISSION)
    assert count_spent_retries(run) == (0, 1)


def test_one_disturbance_too_many_is_final(run: RunDir) -> None:
    for number in (attempt(run, 85, BY_SUBMISSION), attempt(run, 143)):
        assert end_if_spent(run, number).state is RunState.REQUEUED
    last = end_if_spent(run, attempt(run, 85))
    assert (last.state, last.cause) == (
        RunState.FAILED,
        "it ended; that was disturbance 3, and retries.disturbances allows 2",
    )
    assert run.last_outcome() == last


def test_a_bug_is_not_a_disturbance_and_an_end_stays_one(run: RunDir) -> None:
    for _ in range(4):
        number = attempt(run, 1)
    assert end_if_spent(run, number).state is RunState.REQUEUED
    assert end_if_spent(run, attempt(run, 0, state=RunState.SUCCEEDED)).state is RunState.SUCCEEDED


def test_an_attempt_whose_supervisor_was_lost_began_when_its_agents_did(run: RunDir) -> None:
    number = run.begin_attempt(opened_by=BY_SUBMISSION)
    append_line(run.attempt_dir(number) / AGENTS, {"node": 0, "started": 1000.0})
    close_unfinished_attempt(run, "its supervisor was lost")
    outcome = run.outcome(number)
    assert outcome is not None
    assert outcome.started == 1000.0


def test_an_agent_that_has_retried_bugs_itself_has_spent_them(run: RunDir) -> None:
    number = run.begin_attempt(opened_by=BY_SUBMISSION)
    write_json(run.attempt_dir(number) / NODES / "node-0.json", {"exit_code": 1, "bugs_spent": False})
    assert count_spent_retries(run) == (0, 0)
    write_json(run.attempt_dir(number) / NODES / "node-0.json", {"exit_code": 1, "bugs_spent": True})
    assert count_spent_retries(run) == (run.retries.bugs, 0)


@pytest.mark.parametrize(("nodes", "spare_nodes", "survivors"), [("1..4", 0, 3), (3, 2, 3), ("4..5", 0, 0), (4, 0, 0)])
def test_an_attempt_outlives_its_supervisor_if_enough_nodes_are_left(
    tmp_path: Path, nodes: str | int, spare_nodes: int, survivors: int
) -> None:
    record = {"config": {"retries": {"disturbances": 2}}, "engine": "ranks"}
    run = RunDir.create("x", {**record, "resources": {"nodes": nodes, "spare_nodes": spare_nodes}}, tmp_path)
    number = run.begin_attempt()
    for node in range(4):
        append_line(run.attempt_dir(number) / AGENTS, {"node": node, "started": 1000.0})
    assert surviving_nodes(run, number, 3) == survivors
    for _ in range(3):
        run.event("group_formed", attempt=number, group=1, nodes=3)
    assert surviving_nodes(run, number, 3) == 0, "the run would never end"
    run.event("checkpoint", step=1)
    assert surviving_nodes(run, number, 3) == survivors
    run.write_outcome(number, Outcome(state=RunState.REQUEUED, exit_code=85, cause="it ended"))
    assert surviving_nodes(run, number, 3) == 0
