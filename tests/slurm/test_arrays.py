"""Many runs as one array, and runs that wait for others."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.slurm.commands import Slurm, run_command
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.token_files import write_dataset
from tests.patience import until
from tests.slurm.conftest import ROOT, MakeLab
from tests.slurm.edges import Recorder
from tests.slurm.toy import SlurmToy

Start = Callable[..., SlurmToy]
HELD = {"sbatch": {"hold": True}}


def array_of(
    tick: Start, count: int, at_once: int | None = None, after: tuple[str, ...] = (), **settings: object
) -> list[SlurmToy]:
    """Runs that were submitted together."""
    runs = [tick(submit=False, **settings) for _ in range(count)]
    runs[0].backend.submit_many([run.run for run in runs], runs[0].resources, after, at_once)
    return runs


# --- arrays


def test_an_array_carries_each_run_a_few_at_a_time(slurm_lab: Lab, tick: Start) -> None:
    runs = [tick(submit=False, steps=4) for _ in range(2)]
    recorder = Recorder()
    runs[0].backend.slurm = Slurm(recorder)
    handles = runs[0].backend.submit_many([item.run for item in runs], runs[0].resources, (), 1)
    assert recorder.count() == {"scontrol": 1, "sbatch": 1}
    assert handles == [f"slurm:{job_id(item.run)}" for item in runs]
    until(lambda: runs[1].state.reason.startswith("JobArrayTaskLimit"))
    for index, run in enumerate(runs):
        assert run.finish().state is RunState.SUCCEEDED
        assert run.steps() == [1, 2, 3, 4]
        assert run.run.attempts() == [1]
        assert run.run.attempt_details(1)["handle"] == handles[index]
        log = run.run.log_dir(1) / "batch.log"  # the supervisor says it once the outcome is written
        until(lambda log=log: "attempt 1 ended: SUCCEEDED" in log.read_text())
    first, second = (item.run.outcome(1) for item in runs)
    assert first is not None
    assert second is not None
    assert first.ended <= second.started, "one at a time"


@pytest.mark.soak(
    "three long runs; test_an_array_carries_each_run_a_few_at_a_time has elements, test_preempted a requeue,"
    " test_scancel_saves_and_ends_for_good a cancellation"
)
def test_elements_are_cancelled_and_requeued_by_themselves(slurm_lab: Lab, tick: Start) -> None:
    runs = array_of(tick, 3, at_once=2, steps=5000)
    runs[0].reach(2)
    runs[1].reach(2)
    assert runs[2].state.word == "PENDING"
    runs[2].backend.cancel(runs[2].run)
    assert runs[2].state.state is RunState.CANCELLED
    assert runs[2].finish().cause == "cancelled while waiting"
    subprocess.run(["scontrol", "requeue", job_id(runs[1].run)], check=True)
    saved = until(lambda: runs[1].run.outcome(1) and runs[1].steps()[-1])
    runs[0].backend.cancel(runs[0].run)
    assert runs[0].finish().cause == "cancelled after saving"
    runs[1].reach(saved + 2)
    assert runs[1].steps() == list(range(1, len(runs[1].steps()) + 1))
    assert runs[1].run.attempt_details(2)["handle"] == f"slurm:{job_id(runs[1].run)}"
    runs[1].backend.cancel(runs[1].run)
    assert runs[1].finish().state is RunState.CANCELLED


def elements() -> list[str]:
    """The array elements that have not ended, as Slurm lists them."""
    listing = subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=True)
    return sorted(listing.stdout.split())


def test_more_runs_than_an_array_has_elements_are_split(make_lab: MakeLab, tick: Start) -> None:
    make_lab(nodes=2, extra={"MaxArraySize": "2"})
    runs = [tick(submit=False, profile=HELD, steps=2) for _ in range(3)]
    recorder = Recorder()
    runs[0].backend.slurm = Slurm(recorder)
    handles = runs[0].backend.submit_many([item.run for item in runs], runs[0].resources)
    assert recorder.count() == {"scontrol": 1, "sbatch": 2}
    assert elements() == sorted(handle.removeprefix("slurm:") for handle in handles)
    assert handles == [f"slurm:{job_id(item.run)}" for item in runs]
    assert [handle.partition("_")[2] for handle in handles] == ["0", "1", ""], "the last one is a job of its own"
    last = runs[-1]
    subprocess.run(["scontrol", "release", job_id(last.run)], check=True)
    assert last.finish().state is RunState.SUCCEEDED
    assert (last.steps(), last.run.attempts()) == ([1, 2], [1])


@pytest.mark.soak("make test splits a submission into arrays, and lets runs and arrays wait for others")
def test_arrays_of_a_submission_follow_each_other_if_few_run_at_once(make_lab: MakeLab, tick: Start) -> None:
    make_lab(nodes=4, extra={"SchedulerParameters": "max_array_tasks=2,bf_interval=1,sched_interval=1,batch_sched_delay=0"})
    runs = array_of(tick, 3, at_once=2, steps=5000)
    for item in runs[:2]:
        item.reach(2)
    assert runs[2].state.reason.partition(";")[0] == "Dependency"
    runs[0].backend.cancel(runs[0].run)
    assert runs[0].finish().state is RunState.CANCELLED
    assert runs[2].state.reason.partition(";")[0] == "Dependency", "the first array has not ended"
    runs[0].backend.cancel(runs[1].run)
    runs[2].reach(2)  # also after an array without success
    runs[2].backend.cancel(runs[2].run)
    assert {item.finish().state for item in runs} == {RunState.CANCELLED}


def test_if_a_later_array_is_refused_those_before_it_are_cancelled(make_lab: MakeLab, tick: Start) -> None:
    make_lab(nodes=1, extra={"MaxArraySize": "2"})
    runs = [tick(submit=False, profile=HELD) for _ in range(4)]

    def runner(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        refused = command[0] == "sbatch" and runs[0].run.attempts() and runs[2].run.attempts()
        return run_command(["sbatch", "--partition=nowhere", *command[1:]] if refused else command, seconds)

    runs[0].backend.slurm = Slurm(runner)
    with pytest.raises(BackendError, match="invalid partition"):
        runs[0].backend.submit_many([item.run for item in runs], runs[0].resources)
    assert elements() == []
    outcomes = [outcome for item in runs if (outcome := item.run.last_outcome()) is not None]
    assert [outcome.state for outcome in outcomes] == [*[RunState.CANCELLED] * 2, *[RunState.FAILED] * 2]
    assert not any(outcome.started for outcome in outcomes)


# --- limits on the queue


def test_what_the_controller_cannot_hold_is_refused_before_sbatch(make_lab: MakeLab, tick: Start) -> None:
    make_lab(nodes=1, extra={"MaxJobCount": "20", "MaxArraySize": "10"})
    array_of(tick, 5, profile=HELD)
    backend = tick(profile=HELD).backend
    backend.check_capacity(14)
    message = (
        r"^15 runs .*the cluster allows 20 jobs \(MaxJobCount\) and has 6, so 14 more fit; submit 14 at most, and the others"
    )
    with pytest.raises(ConfigError, match=message):
        backend.check_capacity(15)


@pytest.mark.soak("a database; make test has refusals of Slurm in test_start_estimate.py")
def test_limits_of_accounts_and_qos_are_checked_as_slurm_does(make_lab: MakeLab, tick: Start) -> None:
    """Every number that passes is accepted by sbatch, and one more is not."""
    lab = make_lab(accounting=True, nodes=1)
    user = lab.location.user

    def change(*what: str) -> None:
        lab.command("sacctmgr", "-i", "modify", *what)

    def check(name: str, room: int, **profile: object) -> None:
        head = tick(submit=False, profile={**HELD, **profile})
        head.backend.check_capacity(room)
        with pytest.raises(ConfigError, match=rf"^{room + 1} runs .*\({name}\).* so {room} more fit"):
            head.backend.check_capacity(room + 1)
        command = ["sbatch", "--hold", "--parsable", *(f"--{key}={value}" for key, value in profile.items()), "--wrap=true"]
        array = ["--output=/dev/null", f"--chdir={head.run.path}"]
        refused = subprocess.run([*command, *array, f"--array=0-{room}"], capture_output=True, text=True, check=False)
        assert "limit" in refused.stderr.lower()
        accepted = subprocess.run([*command, *array, f"--array=1-{room}"], capture_output=True, text=True, check=True)
        subprocess.run(["scancel", accepted.stdout.strip()], check=True)

    array_of(tick, 3, profile=HELD)
    change("account", "root", "set", "GrpSubmitJobs=9")
    check("GrpSubmitJobs", 6)
    change("user", user, "where", "account=lab", "set", "MaxSubmitJobs=5")
    check("MaxSubmitJobs", 2)
    change("qos", "normal", "set", "MaxSubmitJobsPerUser=7")
    check("MaxSubmitJobsPU", 4)  # instead of the account's
    check("MaxSubmitJobs", 2, qos="single")
    change("qos", "normal", "set", "MaxSubmitJobsPerAccount=6")
    check("MaxSubmitJobsPA", 3)
    lab.kill_accounting()
    tick(submit=False, profile=HELD).backend.check_capacity(5000)  # sbatch decides


# --- chains


@pytest.mark.soak(
    "make test runs test_after_a_run_that_has_succeeded_it_starts_at_once, and runs that are cancelled with those before them"
)
def test_a_run_waits_for_another_that_is_requeued_once(slurm_lab: Lab, tick: Start) -> None:
    first = tick(steps=60)
    second = tick(steps=2, after=(first.run.id,))
    assert second.run.attempt_details(1)["after"] == [first.run.id]
    first.reach(2)
    assert second.state.reason == "Dependency"
    subprocess.run(["scontrol", "requeue", first.job], check=True)
    assert first.finish().state is RunState.SUCCEEDED
    assert first.run.attempts() == [1, 2]
    assert second.finish().state is RunState.SUCCEEDED
    ends, starts = first.run.outcome(2), second.run.outcome(1)
    assert ends is not None
    assert starts is not None
    assert starts.started >= ends.ended


@pytest.mark.parametrize(
    "way",
    [
        "fails",
        pytest.param("is cancelled", marks=pytest.mark.soak("make test cancels it in the queue")),
        "is cancelled in the queue",
    ],
)
def test_dependants_of_a_run_without_success_are_cancelled_and_say_so(
    slurm_lab: Lab, tick: Start, start: Start, way: str
) -> None:
    waits = {"profile": HELD} if way.endswith("queue") else {}
    first = start("fail", "process", profile=HELD, retries={"bugs": 0}) if way == "fails" else tick(steps=5000, **waits)
    others = [tick(after=(first.run.id,)), *array_of(tick, 2, after=(first.run.id,))]
    last = tick(after=(others[0].run.id,))
    if way == "fails":
        subprocess.run(["scontrol", "release", first.job], check=True)
    else:
        if not waits:
            first.reach(2)
        first.backend.cancel(first.run)
    assert first.finish().state is (RunState.FAILED if way == "fails" else RunState.CANCELLED)
    ended = f"never started: it waited for {first.run.id}, which ended as {first.finish().state}"
    for run in others:
        message = until(lambda left=run: (state := left.state).state.final and state)
        assert message.state is RunState.CANCELLED
        assert message.reason.startswith(ended)
    message = until(lambda: (state := last.state).state.final and state)
    assert message.reason.startswith(f"never started: it waited for {others[0].run.id}, which ended as CANCELLED")
    with pytest.raises(ConfigError, match=rf"--after {first.run.id}: that run ended as .*`ropewalk resume {first.run.id}` first"):
        tick(after=(first.run.id,))


@pytest.mark.soak("make test has --after success, failure and cancellation; these conditions in cluster/test_engines.py")
def test_runs_start_after_a_failure_or_after_any_end(slurm_lab: Lab, tick: Start, start: Start) -> None:
    fails, cancelled = start("fail", "process", profile=HELD, retries={"bugs": 0}), tick(profile=HELD, steps=5000)
    succeeds = tick(steps=40)
    starting = {
        end.run.id: (end, tick(after=(f"{condition}:{end.run.id}",), steps=1))
        for end, condition in ((fails, "failed"), (cancelled, "failed"), (succeeds, "any"))
    }
    never = tick(after=(f"failed:{succeeds.run.id}",))
    assert {run.state.reason for run in (never, *(run for _, run in starting.values()))} == {"Dependency"}
    subprocess.run(["scontrol", "release", fails.job], check=True)
    cancelled.backend.cancel(cancelled.run)
    succeeds.reach(2)
    subprocess.run(["scontrol", "requeue", succeeds.job], check=True)
    for end, run in starting.values():
        ended, later = end.finish(), run.finish()
        assert later.state is RunState.SUCCEEDED
        assert later.started >= ended.ended
    message = until(lambda: (state := never.state).state.final and state)
    assert message.state is RunState.CANCELLED
    assert message.reason == f"never started: it waited for {succeeds.run.id} to fail, which ended as SUCCEEDED"
    assert succeeds.run.attempts() == [1, 2], "a requeue is no end"
    with pytest.raises(ConfigError, match=rf"--after failed:{succeeds.run.id}: that run has succeeded"):
        tick(after=(f"failed:{succeeds.run.id}",))
    again = tick(profile=HELD, after=(f"failed:{fails.run.id}", f"any:{succeeds.run.id}"))
    assert Slurm().job_details(again.job)["Dependency"] == "(null)", "both have ended"


def test_after_a_run_that_has_succeeded_it_starts_at_once(slurm_lab: Lab, tick: Start) -> None:
    first = tick(profile=HELD)
    first.run.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))
    array = array_of(tick, 2, steps=2, profile=HELD)
    chained = tick(after=(first.run.id, array[1].run.id), steps=2)
    assert chained.state.reason == "Dependency"
    subprocess.run(["scancel", job_id(array[0].run)], check=True)
    subprocess.run(["scontrol", "release", job_id(array[1].run).partition("_")[0]], check=True)
    assert chained.finish().state is RunState.SUCCEEDED
    with pytest.raises(ConfigError, match="it has no job on this cluster"):
        tick(after=(tick(submit=False).run.id,))


# --- a thousand, by the command


@pytest.mark.soak("a thousand runs; make test runs test_an_array_carries_each_run_a_few_at_a_time")
def test_a_thousand_runs_through_the_command(slurm_lab: Lab, tmp_path: Path) -> None:
    """The time is measured by tests/benchmarks/bench_slurm.py."""
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", "sbatch": {"hold": True}}}))
    env = {**os.environ, "ROPEWALK_RUNS": str(tmp_path / "runs"), "ROPEWALK_CLUSTERS": str(tmp_path / "clusters.yaml")}
    env["PYTHONPATH"] = str(ROOT)

    def ropewalk(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ropewalk.jobs.cli", *arguments],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    write_dataset(tmp_path / "data", [5000], [600])
    job = ("pretrain", "data=data", "steps=3", "seq_len=16", "--on", "lab")
    ids = ropewalk("submit", *job, "--each", "seed=1..1000").split()
    assert len(ids) == 1000
    assert ropewalk("ps", "--json").count('"state": "PENDING"') == 1000
    assert ropewalk("cancel", *ids).count("is cancelled") == 1000
    assert ropewalk("ps").startswith("no live runs")
    name = f"ropewalk-{ids[0]}"
    assert {job.state for job in Slurm().jobs_named(name)} == {"CANCELLED"}
