"""Every way in which Slurm takes a job's nodes away ends at a step that is saved, and goes on from it."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.cluster.supervise.allocation import AgentSpec
from ropewalk.cluster.supervise.attempt import Attempt
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.allocation import SlurmAllocation
from tests.patience import Patience, Stopwatch, ended, until
from tests.slurm.conftest import MakeLab
from tests.slurm.toy import SlurmToy

Start = Callable[..., SlurmToy]


def outcomes(run: SlurmToy) -> list[tuple[str, int]]:
    results = [run.run.outcome(number) for number in run.run.attempts()]
    return [(o.state.value, o.exit_code) for o in results if o is not None]


def finished_without_a_gap(run: SlurmToy, steps: int) -> None:
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert run.steps() == list(range(1, steps + 1)), f"an announced stop loses no step and repeats none\n{run.said()}"
    assert not run.events("rank_lost")


def how_it_ended(run: SlurmToy) -> tuple[str, str]:
    """(the job's state, how often it was requeued), once it has left the queue."""

    def ended() -> dict[str, str]:
        details = Slurm().job_details(run.job)
        return details if details["JobState"] not in {"RUNNING", "COMPLETING", "PENDING"} else {}

    details = until(ended)
    return details["JobState"], details["Restarts"]


@pytest.mark.soak("make test requeues a run by a preemption in test_preempted")
def test_requeued_by_a_person(slurm_lab: Lab, start: Start) -> None:
    run = start(resources={"nodes": 2}, steps=120)
    run.reach(5)
    subprocess.run(["scontrol", "requeue", run.job], check=True)
    finished_without_a_gap(run, 120)
    assert outcomes(run) == [("REQUEUED", 85), ("SUCCEEDED", 0)]


@pytest.mark.parametrize(
    "late",
    [0.0, *(pytest.param(late, marks=pytest.mark.soak("make test stops at the first of these moments")) for late in (0.3, 1.0))],
)
def test_a_stop_is_heard_however_soon_it_comes(slurm_lab: Lab, tick: Start, late: float) -> None:
    """srun forgets a signal that comes before its step runs, and Python, as it starts, would die of it."""
    run = tick(resources={"nodes": 2}, steps=100000)
    until((run.run.attempt_dir(1) / "agents.jsonl").exists)
    time.sleep(late)
    run.run.request_cancel()
    watch = Stopwatch()
    assert run.finish().state is RunState.CANCELLED
    assert watch.seconds < 30, "Slurm would keep a step for a minute"
    assert not run.events("node_lost"), run.said()


def test_a_refused_gate_has_a_state_of_its_own(slurm_lab: Lab, start: Start) -> None:
    run = start("gate", "process")
    outcome = run.finish()
    assert (outcome.state, outcome.exit_code, outcome.results) == (RunState.REFUSED, 42, {"scores": {"right": 0.2}})
    assert "right is 0.2" in outcome.cause
    assert run.state.state is RunState.REFUSED, "as ps has it"
    assert run.run.attempts() == [1]


@pytest.fixture
def lane(slurm_lab: Lab, tmp_path: Path) -> Iterator[SlurmAllocation]:
    """The allocation of a job that sleeps, and of a run that has not begun."""
    sbatch = ["sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 300"]
    job = subprocess.run(sbatch, check=True, capture_output=True, text=True).stdout.strip()
    try:
        host = until(lambda: Slurm().job_details(job).get("BatchHost"))
        run = RunDir.create("x", {"config": {}, "engine": "process", "resources": {}}, tmp_path)
        lane = SlurmAllocation(run, Resources(), SlurmProfile(), Slurm(), job=job, hosts=[host])
        yield lane
        lane.close()
    finally:
        cancelled(job)


def cancelled(job: str) -> None:
    subprocess.run(["scancel", job], check=True)
    until(lambda: Slurm().job_details(job)["JobState"] == "CANCELLED")


def test_srun_hears_a_stop_that_comes_as_it_starts(lane: SlurmAllocation, tmp_path: Path) -> None:
    """srun would die of the signal, and its node would seem lost."""
    nothing = AgentSpec(python="true", run_path="", attempt=1, node=0, nodes="1", address=lane.address(0))
    for milliseconds in range(8):
        step = lane.start(0, nothing, tmp_path / "step.log")
        time.sleep(milliseconds / 1000)
        step.send_signal(signal.SIGUSR2)
        assert ended(step) != -signal.SIGUSR2


def test_an_agent_that_finds_its_job_cancelled_is_no_bug(lane: SlurmAllocation) -> None:
    """scancel's signal may come after srun has failed; the run would be requeued, and run on."""
    cancelled(lane.job)
    outcome = Attempt(lane.run, lane.run.begin_attempt(), lane, retry_bugs=True).execute()
    assert outcome.state is RunState.CANCELLED, outcome.cause


@pytest.mark.parametrize(
    "user_signal",
    [True, pytest.param(False, marks=pytest.mark.soak("a second lab; make test runs it with a signal to the script"))],
)
def test_preempted(make_lab: MakeLab, tick: Start, user_signal: bool) -> None:
    """With send_user_signal the job script is told first, without it the agents are and the script is not."""
    make_lab(nodes=2, user_signal=user_signal)
    run = tick(profile={"partition": "main", "exclusive": True}, resources={"nodes": 2}, steps=60)
    run.reach(3)
    subprocess.run(["sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"], check=True)
    finished_without_a_gap(run, 60)
    assert outcomes(run) == [("PREEMPTED", 85), ("SUCCEEDED", 0)]
    assert how_it_ended(run) == ("COMPLETED", "1"), "and not once more into the queue, as preempted at its end"


@pytest.mark.soak("needs the accounting database; make test preempts by partition")
def test_preempted_by_qos(make_lab: MakeLab, start: Start) -> None:
    lab = make_lab(nodes=1, accounting=True, extra={"PreemptType": "preempt/qos"})
    for message in (
        "add qos low GraceTime=30 PreemptMode=requeue",
        "add qos urgent Priority=100 Preempt=low",
        f"modify user {lab.location.user} set qos+=low,urgent",
    ):
        lab.command("sacctmgr", "-i", *message.split())
    until(lambda: lab.daemons.answers("sbatch", "--test-only", "--qos=urgent", "--wrap=true"))  # the controller has heard of it
    run = start(profile={"qos": "low", "exclusive": True}, steps=120)
    run.reach(5)
    subprocess.run(["sbatch", "--qos=urgent", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"], check=True)
    finished_without_a_gap(run, 120)
    assert outcomes(run) == [("PREEMPTED", 85), ("SUCCEEDED", 0)]
    assert how_it_ended(run) == ("COMPLETED", "1")


@pytest.mark.soak("four attempts; make test runs one preemption")
def test_preempted_more_often_than_slurm_requeues_a_job(make_lab: MakeLab, start: Start) -> None:
    """Slurm's own requeues are counted, and at the limit it holds the job; those that a job asks for are not."""
    make_lab(nodes=1, extra={"MaxBatchRequeue": "3"})
    run = start(profile={"partition": "main", "exclusive": True}, steps=150)
    for step in (5, 50, 100):
        run.reach(step)
        subprocess.run(["sbatch", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "true"], check=True)
        until(lambda: len(run.run.attempts()) > len(outcomes(run)), Patience.STEP)
    finished_without_a_gap(run, 150)
    assert outcomes(run) == [("PREEMPTED", 85)] * 3 + [("SUCCEEDED", 0)]
    assert how_it_ended(run)[0] == "COMPLETED"


def test_scancel_saves_and_ends_for_good(slurm_lab: Lab, tick: Start) -> None:
    run = tick(steps=5000)
    run.reach(3)
    subprocess.run(["scancel", run.job], check=True)
    outcome = run.finish()
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled after saving")
    saved = run.steps()[-1]
    run.backend.submit(run.run, run.resources)  # resumed by the user, once Slurm has let go of it
    run.reach(saved + 1)
    assert run.steps() == list(range(1, len(run.steps()) + 1))
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.4])
def test_scancel_in_the_first_moments_ends_for_good(slurm_lab: Lab, tick: Start, moment: float) -> None:
    """Before the coordinator listens, before it has read the run, and before its first attempt."""
    run = tick(steps=5000)
    until(lambda: Slurm().job_details(run.job)["JobState"] == "RUNNING", Patience.START)
    time.sleep(moment)
    subprocess.run(["scancel", run.job], check=True)
    assert how_it_ended(run) == ("CANCELLED", "0")


@pytest.mark.soak("make test retries a bug within an attempt on this machine")
def test_a_bug_is_retried_in_place_and_a_mistake_never(slurm_lab: Lab, start: Start) -> None:
    bug, mistake = start("fail", "process", retries={"bugs": 1}), start("refuse", resources={"ranks_per_node": 2})
    assert bug.finish().state is RunState.FAILED
    assert "ZeroDivisionError" in bug.run.last_outcome().cause  # type: ignore[union-attr]
    assert bug.run.attempts() == [1, 2]
    assert bug.run.attempt_details(2)["handle"] == bug.run.attempt_details(1)["handle"], "the nodes were kept"
    assert mistake.finish().exit_code == 42
    assert mistake.run.attempts() == [1]
