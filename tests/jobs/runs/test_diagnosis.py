"""`why` for runs that have not started: the runs they wait for, and the consequences."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.backends.base import BackendState, Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.backends.local.processes import record_supervisor
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.status import is_final
from tests.patience import Patience, until

PENDING = BackendState(state=RunState.PENDING, word="Dependency", reason="it waits")


def make_run(root: Path, name: str, **details: object) -> RunDir:
    record = {"job": "toy", "entry": "tests.fakes.toy:count", "engine": "process", "config": {}, "cluster": "local"}
    run = RunDir.create(name, {**record, "resources": {"nodes": 1}, "created": 0.0}, root)
    run.begin_attempt(opened_by="submission", **details)
    return run


def at_work(root: Path, name: str, step: int) -> RunDir:
    """A run that this process carries, as far as anybody can tell."""
    run = make_run(root, name)
    record_supervisor(run, os.getpid())
    append_line(run.attempt_dir(1) / "agents.jsonl", {"node": 0})
    append_line(run.metrics, {"step": step, "attempt": 1, "time": 0.0, "train/loss": 1.0})
    return run


def end(run: RunDir, state: RunState) -> None:
    run.write_outcome(1, Outcome(state=state, exit_code=0, cause="as it went", ended=1.0))


@pytest.mark.parametrize("backend", ["slurm", "k8s"])
def test_why_says_for_which_runs_one_waits_and_what_follows(tmp_path: Path, backend: str) -> None:
    first, second, lost = at_work(tmp_path, "first", 30), at_work(tmp_path, "second", 7), make_run(tmp_path, "lost")
    run = make_run(tmp_path, "later", backend=backend, after=[first.id, second.id])
    result = diagnose(run, PENDING)
    waits = f"It waits for {first.id}, which is RUNNING at step 30 and for {second.id}, which is RUNNING at step 7."
    assert result.cause == f"{waits} It starts once all of them have succeeded, and is cancelled if one fails or is cancelled."
    assert result.remedy == f"`ropewalk why {first.id}` has more details"
    end(first, RunState.SUCCEEDED)
    message = f"It waits for {second.id}, which is RUNNING at step 7. It starts once that has succeeded, and is cancelled if"
    assert diagnose(run, PENDING).cause.startswith(message)
    end(second, RunState.FAILED)
    assert f"{second.id}, which ended as FAILED (as it went)" in diagnose(run, PENDING).cause

    run = make_run(tmp_path, "later", backend=backend, after=[f"any:{first.id}", f"failed:{lost.id}", f"failed:{second.id}"])
    waits = f"It waits for {lost.id}, which is UNKNOWN. It starts once {lost.id} has ended without success, and is cancelled if"
    assert diagnose(run, PENDING).cause.startswith(waits)

    stuck = make_run(tmp_path, "stuck", after=[lost.id])
    result = diagnose(stuck, PENDING)
    assert f"It waits for {lost.id}, which is UNKNOWN." in result.cause
    assert result.remedy.startswith(f"`ropewalk resume {lost.id}`: no process is running it")


def test_why_of_a_run_that_waits_for_no_other_has_the_scheduler_s_words(tmp_path: Path) -> None:
    done = make_run(tmp_path, "done")
    end(done, RunState.SUCCEEDED)
    run = make_run(tmp_path, "later", after=[done.id])
    state = BackendState(state=RunState.PENDING, word="PENDING", reason="Priority; may start at 10:00")
    assert diagnose(run, state).cause == "It is pending (PENDING: Priority; may start at 10:00)."


def test_why_of_a_run_that_ended_without_a_word_has_the_scheduler_s_words(tmp_path: Path) -> None:
    run = make_run(tmp_path, "lost")
    state = BackendState(state=RunState.FAILED, word="ended", reason="Kubernetes says Failed (DeadlineExceeded)")
    assert diagnose(run, state).cause == "It failed: it ran into its time limit — Kubernetes says Failed (DeadlineExceeded)"
    assert run.last_outcome() is None


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[RunDir, RunDir]]:
    """A run on this machine, and one that is submitted to start after it."""
    first = at_work(tmp_path, "first", 3)
    run = RunDir.create("later", {**first.record}, tmp_path)
    LocalBackend(Profile(name="local", backend="local")).submit(run, Resources(), after=[first.id])
    yield first, run
    run.request_cancel()
    until(lambda: is_final(run), Patience.RUN)


def test_why_of_a_local_run_that_waits(waiting: tuple[RunDir, RunDir]) -> None:
    first, run = waiting
    state = LocalBackend(Profile(name="local", backend="local")).states([run])[run.id]
    assert diagnose(run, state).cause.startswith(f"It waits for {first.id}, which is RUNNING at step 3. It starts once that has")
