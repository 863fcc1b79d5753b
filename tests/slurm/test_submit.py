"""A run has one job, whatever happens to the answers, the client and the controller."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ropewalk.cluster.backends.submission import submission_key
from ropewalk.cluster.errors import BackendError, SchedulerAwayError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.job_lookup import OWNER, job_id, jobs_of
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.runtime import coordinator
from ropewalk.slurm.runtime.coordinator import take_ownership
from ropewalk.slurm.status.run_state import run_state
from ropewalk.slurm.submission.submit import submit_once
from tests.patience import until
from tests.slurm.conftest import ROOT, MakeLab
from tests.slurm.edges import Recorder, Unlucky, forget, jobs_with, socket_times_out, times_out
from tests.slurm.toy import SlurmToy

Start = Callable[..., SlurmToy]
HELD = {"sbatch": {"hold": True}}


# --- the answer is lost


@pytest.mark.parametrize("accident", [times_out, socket_times_out])
@pytest.mark.parametrize("count", [1, 3])
def test_a_job_that_was_made_though_sbatch_timed_out(slurm_lab: Lab, tick: Start, accident: Callable, count: int) -> None:
    runs = [tick(profile=HELD, submit=False, steps=1) for _ in range(count)]
    head, runner = runs[0], Unlucky(accident)
    head.backend.slurm = Slurm(runner)
    handles = head.backend.submit_many([run.run for run in runs], head.resources)
    assert runner.count() == {"sbatch": 1, "squeue": 1, **({"scontrol": 1} if count > 1 else {})}
    jobs = jobs_with(submission_key(head.run, 1))
    assert sorted(handles) == sorted(f"slurm:{job}" for job in jobs)
    assert len(jobs) == count
    assert {run.state.state for run in runs} == {RunState.PENDING}


def test_an_sbatch_that_did_nothing_is_repeated(slurm_lab: Lab, tick: Start) -> None:
    run, real = tick(profile=HELD, submit=False), Recorder()
    answers = [socket_times_out, times_out]

    def runner(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        return answers.pop()(command) if command[0] == "sbatch" and answers else real(command, seconds)

    run.backend.slurm = Slurm(runner)
    run.backend.submit(run.run, run.resources)
    assert len(jobs_with(submission_key(run.run, 1))) == 1
    assert real.count() == {"squeue": 2, "sbatch": 1}


def test_nobody_answers() -> None:
    now = [0.0]
    with pytest.raises(SubmissionInDoubtError, match=r"timed out.*no answer for 120 s.*see `ropewalk ps`"):
        submit_once(
            Slurm(lambda arguments, _: socket_times_out(arguments)),
            Path("job.sbatch"),
            Path(),
            key="ropewalk:x:1",
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
            clock=lambda: now[0],
        )


def test_a_refusal_ends_the_run(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile={"partition": "nowhere"}, submit=False)
    with pytest.raises(BackendError, match="invalid partition"):
        run.backend.submit(run.run, run.resources)
    outcome = run.run.last_outcome()
    assert outcome is not None
    assert (outcome.state, run.run.attempts()) == (RunState.FAILED, [1])
    assert "never started: sbatch: " in outcome.cause
    assert "invalid partition" in outcome.cause


def test_a_submission_that_a_power_cut_took_back_says_so(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile=HELD, submit=False)
    run.backend.submit(run.run, run.resources)
    (run.run.attempt_dir(1) / "attempt.json").write_bytes(b"")  # what ext4 leaves of a file that was not on the disk yet
    subprocess.run(["scontrol", "release", f"JobName=ropewalk-{run.run.id}"], check=True)
    outcome = run.finish()
    assert (outcome.state, run.run.attempts()) == (RunState.FAILED, [1])
    assert f"lost in a power failure during the submission; `ropewalk resume {run.run.id}`" in outcome.cause


# --- the client dies


DYING = """
import sys
from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.commands import Slurm
from tests.slurm.edges import Unlucky, dies
backend = SlurmBackend(Profile(name="lab", backend="slurm", options={"sbatch": {"hold": True}}), Slurm(Unlucky(dies)))
backend.submit_many([RunDir(path) for path in sys.argv[1:]], Resources(grace_seconds=20))
"""


@pytest.mark.soak(
    "two clients; make test kills one in test_a_client_killed_before_sbatch, and finds jobs and arrays by their key in"
    " test_a_job_that_was_made_though_sbatch_timed_out"
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_client_killed_before_it_could_write_the_handle(slurm_lab: Lab, tick: Start, count: int) -> None:
    runs = [tick(submit=False, steps=2) for _ in range(count)]
    command = [sys.executable, "-c", DYING, *(str(item.run.path) for item in runs)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    jobs = jobs_with(submission_key(runs[0].run, 1))
    assert len(jobs) == count
    for run in runs:
        assert job_id(run.run) == ""
        assert (run.state.state, run.state.word) == (RunState.PENDING, "PENDING")
        with pytest.raises(BackendError, match=r"already has an active job \(slurm:"):
            run.backend.submit(run.run, run.resources)
        assert run.run.attempts() == [1]
    subprocess.run(["scontrol", "release", jobs[0].partition("_")[0]], check=True)
    for run in runs:
        assert run.finish().state is RunState.SUCCEEDED
        assert run.run.attempt_details(1)["handle"] == f"slurm:{job_id(run.run)}", "the job itself wrote it down"


def test_a_client_killed_before_sbatch(slurm_lab: Lab, tick: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tick(submit=False, profile=HELD)
    run.run.begin_attempt(opened_by="submission", key=submission_key(run.run, 1))
    assert (run.state.state, run.state.word) == (RunState.PENDING, "submitting")
    monkeypatch.setattr("ropewalk.slurm.status.run_state.PATIENCE_SECONDS", 0)
    assert (run.state.state, run.state.word) == (RunState.UNKNOWN, "lost")
    assert f"its submission was interrupted; `ropewalk resume {run.run.id}`" in run.state.reason
    run.backend.submit(run.run, run.resources)
    assert run.state.word == "PENDING"
    assert run.run.attempts() == [1, 2]


# --- two jobs of one submission


@pytest.mark.soak(
    "a long run; test_an_owner_that_is_about_to_write_its_name_is_waited_for and"
    " test_a_job_that_claimed_the_run_and_was_forgotten_is_succeeded have two jobs of a submission"
)
def test_the_second_of_two_jobs_leaves_without_touching_anything(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile=HELD, steps=5000)
    first, script = run.job, run.run.attempt_dir(1) / "job.sbatch"
    double = Slurm().sbatch(script, f"--chdir={run.run.path}")
    subprocess.run(["scontrol", "release", double], check=True)
    run.reach(3)
    assert (run.run.attempt_dir(1) / OWNER).read_text() == double
    subprocess.run(["scontrol", "release", first], check=True)
    until(lambda: f"job {double} owns this submission" in run.said())
    assert run.state.state is RunState.RUNNING, "the one that left does not hide the one at work"
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
    assert run.steps() == list(range(1, len(run.steps()) + 1))
    assert run.run.attempts() == [1]


def test_a_job_that_claimed_the_run_and_was_forgotten_is_succeeded(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile=HELD)
    (run.run.attempt_dir(1) / OWNER).write_text("999999")
    assert take_ownership(run.run, run.job, Slurm())
    assert (run.run.attempt_dir(1) / OWNER).read_text() == run.job
    assert not take_ownership(run.run, "999999", Slurm()), "the job that owns it now is there"


def test_an_owner_that_died_before_it_wrote_its_name_is_succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "EMPTY_SECONDS", 0.1)

    def refuse(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        raise AssertionError(command)

    run = RunDir.create("x", {"config": {}}, tmp_path)
    owner = run.attempt_dir(run.begin_attempt(opened_by="submission")) / OWNER
    owner.touch()
    for _ in range(2):
        assert take_ownership(run, "77", Slurm(refuse)), "also as it is requeued"
        assert owner.read_text() == "77"
    assert not [path for path in owner.parent.iterdir() if path.name.startswith(f".{OWNER}")]


def test_an_owner_that_is_about_to_write_its_name_is_waited_for(tmp_path: Path) -> None:
    """A file system without hard links shows the file before its text."""

    def away(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        raise SchedulerAwayError("slurmctld does not answer")

    run = RunDir.create("x", {"config": {}}, tmp_path)
    owner = run.attempt_dir(run.begin_attempt(opened_by="submission")) / OWNER
    owner.touch()
    other = threading.Timer(1.0, owner.write_text, ["78"])
    other.start()
    assert not take_ownership(run, "77", Slurm(away))
    assert owner.read_text() == "78"
    other.join()


def test_a_late_job_of_an_earlier_submission_counts_while_it_is_there(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile=HELD)
    run.run.begin_attempt(opened_by="submission", key=submission_key(run.run, 2), handle="slurm:999999")
    assert run.state.word == "PENDING"
    subprocess.run(["scancel", jobs_with(submission_key(run.run, 1))[0]], check=True)
    assert run.state.word == "lost", "and says nothing of the newer one once it is over"


def test_of_two_resumes_at_a_time_one_is_refused(slurm_lab: Lab, tick: Start) -> None:
    run, other = tick(profile=HELD, submit=False), []
    backend = run.backend

    class Rival(Recorder):
        def __call__(self, command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
            if not other:  # at its first question the other one is faster
                other.append(True)
                run.run.begin_attempt(opened_by="submission", key=submission_key(run.run, 1))
            return super().__call__(command, seconds)

    backend.slurm = Slurm(Rival())
    ahead = tick(profile=HELD)
    with pytest.raises(BackendError, match="another submission of this run is in progress"):
        backend.submit(run.run, run.resources, [ahead.run.id])
    assert run.run.attempts() == [1]


# --- the controller goes


def save_state(lab: Lab, tick: Start) -> None:
    """Wait until the controller has written down what it knows: it does so some seconds after a change."""
    tick(profile=HELD)
    changed = time.time()
    until(lambda: (lab.folder / "state/job_state").stat().st_mtime > changed)


@pytest.mark.soak("make test runs test_ps_without_a_controller")
def test_a_controller_killed_during_submission_run_and_ps(make_lab: MakeLab, tick: Start) -> None:
    lab = make_lab(nodes=1)
    lab.kill_controller()
    run = tick(submit=False, steps=400)
    thread = threading.Thread(target=lambda: run.backend.submit(run.run, run.resources))
    thread.start()
    until(lambda: run.run.attempts() == [1])
    assert run.state.state is RunState.PENDING
    lab.start_controller()
    thread.join(60)
    run.reach(3)
    save_state(lab, tick)
    lab.kill_controller()
    state = run.state
    assert state.state is RunState.RUNNING
    assert "Unable to contact slurm controller" in state.reason
    assert "taken from the run's files" in state.reason
    step = run.steps()[-1]
    run.reach(step + 3)
    lab.start_controller()
    assert run.finish().state is RunState.SUCCEEDED
    assert run.run.attempts() == [1]
    assert run.steps() == list(range(1, 401))
    assert len(jobs_with(submission_key(run.run, 1))) == 1


@pytest.mark.soak("make test resumes a lost run in test_a_client_killed_before_sbatch")
def test_a_job_that_the_controller_forgot_and_whose_id_it_gave_away(make_lab: MakeLab, tick: Start) -> None:
    lab = make_lab(nodes=1)
    run = tick(steps=5000)
    run.reach(3)
    forget(lab)
    until(lambda: run.state.word == "lost")
    assert run.state.state is RunState.UNKNOWN
    assert f"Slurm no longer knows job {run.job}" in run.state.reason
    assert f"`ropewalk resume {run.run.id}`" in run.state.reason
    other = tick(profile=HELD)
    assert other.job == run.job
    assert run.state.word == "lost", "the job of that id is another's"
    run.backend.submit(run.run, run.resources)
    run.reach(run.steps()[-1] + 3)
    assert run.steps() == list(range(1, len(run.steps()) + 1)), "the one that was forgotten wrote no more"
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
    assert run.run.attempts() == [1, 2]


def test_a_lost_run_can_be_cancelled(slurm_lab: Lab, tick: Start) -> None:
    run = tick(submit=False)
    run.run.begin_attempt(opened_by="submission", key=submission_key(run.run, 1), handle="slurm:999999")
    assert run_state(run.run, None).word == "lost"
    run.backend.cancel(run.run)
    outcome = run.run.last_outcome()
    assert outcome is not None
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled; it had no job")


def test_a_site_that_rewrites_comments(slurm_lab: Lab, tick: Start) -> None:
    run = tick(profile=HELD)
    subprocess.run(["scontrol", "update", f"jobid={run.job}", "comment=charged to nobody"], check=True)
    assert [job.id for job in jobs_of([run.run], Slurm().my_jobs()).values()] == [run.job]
