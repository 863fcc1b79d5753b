"""An elastic run on real Slurm: it starts with what is there, outlives its nodes, and takes new ones in."""

import subprocess
from collections.abc import Callable

import pytest

from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.patience import Patience, Stopwatch, until
from tests.slurm.conftest import MakeLab
from tests.slurm.toy import SlurmToy

Start = Callable[..., SlurmToy]

RECOVERY_SECONDS = 30.0  # the benchmark has the figures


def squeue(*arguments: str) -> str:
    return subprocess.run(["squeue", "-h", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def end(run: SlurmToy) -> None:
    """Cancel it; nothing of it is left in the queue."""
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED
    until(lambda: not squeue(f"--name=ropewalk-more-{run.job}") and not squeue("-j", run.job), Patience.START)


@pytest.mark.soak(
    "a minute, a lab of its own; test_an_elastic_run_shrinks_and_grows_again has virtual nodes,"
    " test_a_dead_node_with_a_spare kills a node of Kubernetes"
)
def test_a_node_dies_and_comes_back(make_lab: MakeLab, start: Start) -> None:
    lab = make_lab(nodes=2, node_timeout_seconds=10)
    run = start(resources={"nodes": "1..2"}, steps=100000)
    until(lambda: run.world() == 2, Patience.RUN)
    victim = run.host_of(1)
    watch = Stopwatch()
    lab.kill_node(victim)
    until(lambda: run.world() == 1, Patience.START)
    assert watch.seconds < RECOVERY_SECONDS
    until(lambda: run.events("node_lost"), Patience.STEP)  # Slurm itself takes longer to notice
    assert run.events("node_lost")[0]["address"] == victim
    lab.start_node(victim)
    until(lambda: run.world() == 2, Patience.STEP)
    assert run.run.attempts() == [1]
    end(run)


@pytest.mark.soak("make test runs it on virtual nodes, and on Kubernetes in test_a_dead_node_with_a_spare")
def test_a_spare_node_takes_the_place_of_a_dead_one(make_lab: MakeLab, start: Start) -> None:
    lab = make_lab(nodes=3, node_timeout_seconds=10)
    run = start(resources={"nodes": 2, "spare_nodes": 1}, steps=100000)
    until(lambda: run.world() == 2, Patience.RUN)
    lab.kill_node(run.host_of(1))
    until(lambda: len(run.events("group_formed")) == 2, Patience.START)
    saved = run.steps()[-1]
    until(lambda: run.steps()[-1] > saved + 5, Patience.START)
    assert [(event["nodes"], event.get("spare", 0)) for event in run.events("group_formed")] == [(2, 1), (2, 0)]
    assert run.run.attempts() == [1]
    end(run)


@pytest.mark.soak("make test kills it on virtual nodes")
def test_the_first_node_dies(make_lab: MakeLab, start: Start) -> None:
    lab = make_lab(nodes=2)
    run = start(resources={"nodes": "1..2"}, steps=100000)
    until(lambda: run.world() == 2, Patience.RUN)
    saved = run.steps()[-1]
    lab.fail_node(run.host_of(0))
    until(lambda: run.run.attempts() == [1, 2] and run.steps()[-1] > saved, Patience.RUN)
    assert "first node was lost" in run.run.outcome(1).cause  # type: ignore[union-attr]
    end(run)


@pytest.mark.soak("make test runs test_an_elastic_run_is_scaled_without_redoing_a_step")
def test_scaled_down_gives_the_nodes_back_and_up_asks_for_more(slurm_lab: Lab, start: Start) -> None:
    run = start(profile={"exclusive": True}, resources={"nodes": "1..3"}, steps=100000)
    until(lambda: run.world() == 3, Patience.RUN)
    run.run.request_nodes(1)
    until(lambda: squeue("-j", run.job, "-o%D") == "1", Patience.STEP)
    until(lambda: run.world() == 1, Patience.START)
    run.run.request_nodes(2)
    until(lambda: run.world() == 2, Patience.STEP)
    assert run.run.attempts() == [1]
    end(run)
    steps = run.steps()
    first = next(m["step"] for m in run.run.read_metrics() if m["world"] == 3)
    assert steps[first - 1 :] == list(range(first, steps[-1] + 1)), f"who joins or leaves costs no step\n{run.said()}"


@pytest.mark.soak("test_an_elastic_run_shrinks_and_grows_again has virtual nodes")
def test_it_starts_with_what_is_there_grows_and_lets_the_new_node_go(make_lab: MakeLab, start: Start) -> None:
    make_lab(nodes=2)
    command = ["sbatch", "--parsable", "--exclusive", "-N1", "-t5", "-o/dev/null", "--wrap=sleep 100"]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    until(lambda: squeue("-j", other, "-o%T") == "RUNNING")
    run = start(profile={"exclusive": True, "partition": "main"}, resources={"nodes": "1..2"}, steps=100000)
    until(lambda: run.world() == 1, Patience.RUN)
    subprocess.run(["scancel", other], check=True)
    until(lambda: run.world() == 2, Patience.STEP)
    # the node that was asked for in addition is preempted: the run goes on without it
    companion = squeue(f"--name=ropewalk-more-{run.job}", "-o%N")
    high = ["sbatch", "-phigh", "--exclusive", f"-w{companion}", "-N1", "-t1", "-o/dev/null", "--wrap=sleep 5"]
    subprocess.run(high, check=True)
    until(lambda: run.world() == 1, Patience.STEP)
    assert run.run.attempts() == [1]
    end(run)
    assert len(run.steps()) == len(set(run.steps())), run.said()
