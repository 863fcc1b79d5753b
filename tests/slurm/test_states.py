"""`ps` for runs on Slurm: its output, its cost, and its behaviour if Slurm or accounting does not answer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.submission import broken_dependencies, dependencies, submission_key
from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.commands import Job, Slurm, run_command
from ropewalk.slurm.job_lookup import STATES
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.processes import lab_processes
from ropewalk.slurm.status.run_state import SETTLE_SECONDS, run_state
from tests.patience import Stopwatch, until
from tests.processes import words_of
from tests.slurm.conftest import ROOT, MakeLab
from tests.slurm.edges import Recorder, forget
from tests.slurm.toy import SlurmToy

Start = Callable[..., SlurmToy]
HELD = {"sbatch": {"hold": True}}
LIVE = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING", "some new word")


# --- each of Slurm's words


def submitted(root: Path, **details: object) -> RunDir:
    run = RunDir.create("toy", {"job": "toy", "config": {}, "resources": {}}, root)
    run.begin_attempt(opened_by="submission", key=submission_key(run, 1), handle="slurm:7", **details)
    return run


def job_of(run: RunDir, state: str, reason: str = "None", end: str = "N/A") -> Job:
    name, comment = f"ropewalk-{run.id}", submission_key(run, 1)
    return Job(id="7", state=state, reason=reason, nodes="", start="N/A", end=end, name=name, comment=comment)


@pytest.mark.parametrize("word", [*STATES, *LIVE])
def test_a_word_of_slurms(tmp_path: Path, word: str) -> None:
    run = submitted(tmp_path)
    state = run_state(run, job_of(run, word))
    assert (state.state, state.word) == (STATES.get(word, RunState.RUNNING), word)
    outcome = run.last_outcome()
    assert (outcome is not None) == state.state.final
    if outcome is not None:
        assert (
            outcome.cause
            == state.reason
            == ("cancelled in Slurm while waiting" if word == "CANCELLED" else f"Slurm reports {word}")
        )
        assert run_state(run, job_of(run, word)).state is state.state


def test_words_of_reasons(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    assert run_state(run, job_of(run, "PENDING", "Priority")).reason == "Priority"
    soon = replace(job_of(run, "PENDING", "Resources"), start="2026-01-01T10:00:00")
    assert run_state(run, soon).reason == "Resources; may start at 2026-01-01 10:00:00"
    held = run_state(run, job_of(run, "PENDING", "launch failed requeued held")).reason
    assert held == f"launch failed requeued held; release it with `ropewalk release {run.id}`"


def test_a_job_that_ended_a_moment_ago_may_still_say_how(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    (run.attempt_dir(1) / "job").write_text("7")
    now, then = (time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - ago)) for ago in (0, SETTLE_SECONDS + 2))
    assert run_state(run, job_of(run, "FAILED", end=now)).reason == "ended; waiting for its outcome"
    assert run.last_outcome() is None
    run.log_dir(1).joinpath("batch.log").write_text("one\nno space left\n\n")
    assert run_state(run, job_of(run, "FAILED", "NonZeroExitCode", end=then)).reason == (
        "Slurm reports FAILED (NonZeroExitCode); last line of the job script's log: no space left"
    )


def test_a_job_that_saved_and_was_not_requeued_keeps_what_it_said(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    (run.attempt_dir(1) / "job").write_text("7")
    run.write_outcome(1, Outcome(state=RunState.REQUEUED, exit_code=85, cause="stopped: time limit"))
    assert run_state(run, job_of(run, "PENDING")).state is RunState.REQUEUED
    state = run_state(run, job_of(run, "TIMEOUT", "TimeLimit"))
    assert state.state is RunState.FAILED
    assert state.reason == "stopped: time limit; then: Slurm reports TIMEOUT (TimeLimit)"


def test_a_run_whose_dependency_failed_never_started(tmp_path: Path) -> None:
    others = [submitted(tmp_path) for _ in range(3)]
    run = submitted(tmp_path, after=[other.id for other in others])
    others[0].write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
    assert broken_dependencies(dependencies(run)) == []
    outcome = Outcome(state=RunState.FAILED, exit_code=1, cause="rank 0: Bug")
    others[1].write_outcome(1, outcome)
    assert [(other.run.id, item) for other, item in broken_dependencies(dependencies(run))] == [(others[1].id, outcome)]
    cause = f"never started: it waited for {others[1].id}, which ended as FAILED (rank 0: Bug)"
    assert run_state(run, job_of(run, "CANCELLED", "Dependency")).reason == cause


def test_after_a_retry_on_the_same_nodes_the_job_is_still_the_runs(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    run.begin_attempt(handle="slurm:7", opened_by="retry")
    backend = SlurmBackend(Profile(name="lab", backend="slurm"), Slurm(lambda arguments, _: answer(job_of(run, "RUNNING"))))
    assert backend.states([run])[run.id].word == "RUNNING"


def answer(job: Job) -> subprocess.CompletedProcess[str]:
    line = "|".join([job.id, job.state, job.reason, job.nodes, job.start, job.end, job.name, job.comment])
    return subprocess.CompletedProcess([], 0, f"{line}\n", "")


# --- what it costs


def test_one_squeue_for_all(slurm_lab: Lab, tick: Start) -> None:
    """One squeue covers single runs, an array, a run never submitted and a lost one; accounting is absent."""
    runs = [tick(profile=HELD) for _ in range(3)]
    array = [tick(profile=HELD, submit=False) for _ in range(20)]
    array[0].backend.submit_many([run.run for run in array], array[0].resources)
    lost = tick(submit=False)
    lost.run.begin_attempt(opened_by="submission", key=submission_key(lost.run, 1), handle="slurm:999999")
    recorder = Recorder()
    backend = SlurmBackend(Profile(name="lab", backend="slurm"), Slurm(recorder))
    states = backend.states([run.run for run in [*runs, *array]])
    assert recorder.count() == {"squeue": 1}
    assert {state.word for state in states.values()} == {"PENDING"}
    assert len(states) == 23
    states = backend.states([run.run for run in [*runs, lost]])
    assert recorder.count() == {"squeue": 1, "sacct": 1}
    assert states[lost.run.id].word == "lost"
    backend.cancel_many([run.run for run in [*runs, *array]])
    assert recorder.count() == {"squeue": 2, "scancel": 1}
    assert {run.state.reason for run in [*runs, *array]} == {"cancelled while waiting"}


@pytest.mark.soak("a lab with a database; test_a_job_that_ended_a_moment_ago_may_still_say_how has answers of sacct")
def test_accounting_knows_what_the_controller_forgot(make_lab: MakeLab, tick: Start) -> None:
    lab = make_lab(nodes=1, accounting=True)
    run, array = tick(profile=HELD), [tick(profile=HELD, submit=False) for _ in range(2)]
    array[0].backend.submit_many([entry.run for entry in array], array[0].resources)
    for item in (run, array[0]):
        subprocess.run(["scancel", f"--name=ropewalk-{item.run.id}"], check=True)
    ids = ",".join(job.id for job in Slurm().my_jobs())
    until(lambda: lab.command("sacct", "--noheader", "-X", "--array", "--jobs", ids).count("CANCELLED") == 3)
    forget(lab)
    recorder = Recorder()
    backend = SlurmBackend(Profile(name="lab", backend="slurm"), Slurm(recorder))
    states = backend.states([run.run, *(entry.run for entry in array)])
    assert recorder.count() == {"squeue": 1, "sacct": 1}
    assert {(state.state, state.reason) for state in states.values()} == {
        (RunState.CANCELLED, "cancelled in Slurm while waiting")
    }


# --- ends of which we were not told


def test_a_person_cancels_a_job_that_waits(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile=HELD)
    subprocess.run(["scancel", run.job], check=True)
    state = run.state
    assert (state.state, state.word, state.reason) == (RunState.CANCELLED, "CANCELLED", "cancelled in Slurm while waiting")
    run.backend.submit(run.run, run.resources)
    assert run.state.word == "PENDING"


def test_python_is_missing(slurm_lab: Lab, tick: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tick(submit=False)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    run.backend.submit(run.run, run.resources)
    message = until(lambda: (state := run.state).state.final and state)
    assert message.state is RunState.FAILED
    assert message.reason.startswith("Slurm reports FAILED (NonZeroExitCode); last line of the job script's log: ")
    assert "/nowhere/python: No such file or directory" in message.reason


@pytest.mark.soak(
    "two attempts; test_agents_leave_when_their_supervisor_is_killed and test_a_killed_supervisor_and_agent_leave_nothing"
    " have a run without one, test_preempted a requeue"
)
def test_the_coordinator_is_killed(slurm_lab: Lab, tick: Start) -> None:
    run = tick(steps=20)
    run.reach(3)
    for process in processes_of(run.run.path):
        if "ropewalk.slurm.runtime.coordinator" in " ".join(words_of(process)):
            process.kill()
    assert run.finish().state is RunState.SUCCEEDED
    first = run.run.outcome(1)
    assert first is not None
    assert first.cause.startswith("its coordinator died")
    assert run.run.attempts() == [1, 2]
    assert sorted(set(run.steps())) == list(range(1, 21))


# --- the controller is away


def test_ps_without_a_controller(make_lab: MakeLab, tick: Start, tmp_path: Path) -> None:
    lab = make_lab(nodes=1)
    runs = [tick(profile=HELD) for _ in range(2)]
    clusters = tmp_path / "clusters.yaml"
    clusters.write_text(yaml.safe_dump({"lab": {"backend": "slurm"}}))
    lab.kill_controller()
    env = {**os.environ, "ROPEWALK_RUNS": str(tmp_path / "runs"), "ROPEWALK_CLUSTERS": str(clusters), "COLUMNS": "200"}
    watch = Stopwatch()
    done = subprocess.run(
        [sys.executable, "-m", "ropewalk.jobs.cli", "ps", "--json"], env=env, cwd=ROOT, capture_output=True, check=True
    )
    assert watch.seconds < 12
    for row in json.loads(done.stdout):
        assert row["state"] == "PENDING"
        assert "Unable to contact slurm controller" in row["reason"]
        assert "the state is taken from the run's files" in row["reason"]
    assert len(runs) == 2
    lab.start_controller()


@pytest.mark.soak("a second lab; make test runs test_ps_without_a_controller")
def test_a_controller_that_hangs_is_not_waited_for(make_lab: MakeLab, tick: Start) -> None:
    lab = make_lab(nodes=1)
    run = tick(profile=HELD)
    controllers = lab_processes(lab.folder, "slurmctld")
    for process in controllers:
        process.send_signal(signal.SIGSTOP)
    try:
        watch = Stopwatch()
        state = run.state
        assert watch.seconds < 12
    finally:
        for process in controllers:
            process.send_signal(signal.SIGCONT)
    assert state.state is RunState.PENDING
    assert "taken from the run's files" in state.reason


def test_another_users_runs_are_asked_for_too(slurm_lab: Lab, tick: Start, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, who may give files away")
    run = tick(profile=HELD)
    os.chown(run.run.path, 65534, 65534)
    requests: list[str] = []

    def runner(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        requests.extend(command)
        return run_command(command, seconds)

    run.backend.slurm = Slurm(runner)
    assert run.state.word == "PENDING"
    assert "--user=0,65534" in requests
