"""Many runs as one array, and runs that wait for others."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.token_files import write_dataset
from tests.patience import until
from tests.slurm.conftest import ROOT
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
    runs = [tick(submit=False, steps=8) for _ in range(3)]
    recorder = Recorder()
    runs[0].backend.slurm = Slurm(recorder)
    handles = runs[0].backend.submit_many([item.run for item in runs], runs[0].resources, (), 1)
    assert recorder.count() == {"sbatch": 1}
    assert handles == [f"slurm:{job_id(item.run)}" for item in runs]
    until(lambda: runs[1].state.reason.startswith("JobArrayTaskLimit"))
    for index, run in enumerate(runs):
        assert run.finish().state is RunState.SUCCEEDED
        assert run.steps() == list(range(1, 9))
        assert run.run.attempts() == [1]
        assert run.run.attempt_details(1)["handle"] == handles[index]
        log = run.run.log_dir(1) / "batch.log"  # the supervisor says it once the outcome is written
        until(lambda log=log: "attempt 1 ended: SUCCEEDED" in log.read_text())
    spans = [(o.started, o.ended) for item in runs if (o := item.run.outcome(1)) is not None]
    assert all(first[1] <= second[0] for first, second in pairwise(spans)), "one at a time"


def test_elements_are_cancelled_and_requeued_by_themselves(slurm_lab: Lab, tick: Start) -> None:
    runs = array_of(tick, 4, at_once=2, steps=5000)
    runs[0].reach(2)
    runs[1].reach(2)
    runs[3].backend.cancel(runs[3].run)
    assert runs[3].state.state is RunState.CANCELLED
    assert runs[3].finish().cause == "cancelled while waiting"
    assert runs[2].state.word == "PENDING"
    subprocess.run(["scontrol", "requeue", job_id(runs[1].run)], check=True)
    saved = until(lambda: runs[1].run.outcome(1) and runs[1].steps()[-1])
    runs[0].backend.cancel(runs[0].run)
    assert runs[0].finish().cause == "cancelled after saving"
    runs[1].reach(saved + 2)
    assert runs[1].steps() == list(range(1, len(runs[1].steps()) + 1))
    assert runs[1].run.attempt_details(2)["handle"] == f"slurm:{job_id(runs[1].run)}"
    runs[2].reach(2)
    runs[2].backend.cancel_many([runs[1].run, runs[2].run])
    assert {runs[1].finish().state, runs[2].finish().state} == {RunState.CANCELLED}


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


@pytest.mark.parametrize("way", ["fails", "is cancelled", "is cancelled in the queue"])
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


def test_after_a_run_that_has_succeeded_it_starts_at_once(slurm_lab: Lab, tick: Start) -> None:
    first = tick(steps=2)
    assert first.finish().state is RunState.SUCCEEDED
    array = array_of(tick, 2, steps=2, profile=HELD)
    chained = tick(after=(first.run.id, array[1].run.id), steps=2)
    assert chained.state.reason == "Dependency"
    subprocess.run(["scontrol", "release", job_id(array[0].run).partition("_")[0]], check=True)
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
    assert ropewalk("ps").startswith("no run is live")
    name = f"ropewalk-{ids[0]}"
    assert {job.state for job in Slurm().jobs_named(name)} == {"CANCELLED"}
