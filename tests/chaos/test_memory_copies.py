"""Runs that copy their state to the memory of nodes, and lose ranks and nodes by kill -9, or by a request."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.node_memory import MEMORY_VARIABLE
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.chaos.test_spine import agent_pid, reach, succeed
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, losses, weights
from tests.patience import Patience, until

Start = Callable[..., RunDir]

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    (tmp_path / "memory").mkdir()
    monkeypatch.setenv(MEMORY_VARIABLE, str(tmp_path / "memory"))
    data = make_dataset(tmp_path / "data", num_documents=800)

    def begin(steps: int = 20_000, every_steps: int = 1000, **resources: Any) -> RunDir:
        config = {
            "data": str(data),
            "model": {"config": TINY},
            "seq_len": 32,
            "steps": steps,
            "batch": {"global_batch": 8, "micro_batch": 4},
            "checkpoint": {"every_steps": every_steps, "memory_every_steps": 1},
            "validation": {"every_steps": 1000, "max_sequences": 4},
            "resources": resources,
        }
        return submit("pretrain", PretrainConfig.model_validate(config))

    return begin


def resumed_after(run: RunDir, kill: Callable[[], None], number: int) -> dict[str, Any]:
    """Kill something, and return the event with which the run goes on, the `number`th, with the steps that are redone."""
    kill()
    until(lambda: len(events(run, "resumed")) >= number, Patience.STEP)
    event = events(run, "resumed")[number - 1]
    done = [line["step"] for line in run.read_metrics() if "train/loss" in line and line["time"] < event["time"]]
    reach(run, event["step"] + 5, 1)
    return {**event, "redone": max(done) - event["step"]}


def pid_of(run: RunDir, rank: int) -> int:
    return writers_of(run.log_dir(1) / f"rank-{rank}.log")[0].pid


def kill_rank(run: RunDir, rank: int) -> None:
    os.kill(pid_of(run, rank), signal.SIGKILL)


def kill_node(run: RunDir, node: int) -> None:
    os.killpg(agent_pid(run, node, 1), signal.SIGKILL)


def test_a_killed_rank_or_node_and_a_leaving_one_cost_no_step_and_nothing_is_read_from_storage(
    start: Start, tmp_path: Path
) -> None:
    run = start(nodes="1..3")
    reach(run, 10, attempt=1)
    until(lambda: events(run, "group_formed")[-1]["nodes"] == 3, Patience.STEP)
    pids = [pid_of(run, rank) for rank in (0, 1)]
    scaled = resumed_after(run, lambda: run.request_nodes(2), len(events(run, "resumed")) + 1)
    assert [pid_of(run, rank) for rank in (0, 1)] == pids, "who stays keeps its process"
    after_rank = resumed_after(run, lambda: kill_rank(run, 1), len(events(run, "resumed")) + 1)
    after_node = resumed_after(run, lambda: kill_node(run, 1), len(events(run, "resumed")) + 1)
    resumed = [scaled, after_rank, after_node]
    assert [event["tier"] for event in resumed] == ["memory", "memory", "memory"]
    assert [event["world_size"] for event in resumed] in ([2, 2, 1], [2, 2, 2]), "the node that had left may be back by then"
    assert [event["redone"] for event in resumed] == [0, 0, 0]
    assert not events(run, "checkpoint")
    assert not events(run, "bad_checkpoint")
    assert [*cancel_runs([run.id])]
    until(lambda: run.last_outcome() is not None, Patience.RUN)
    assert sorted(losses(run)) == list(range(1, max(losses(run)) + 1))
    until(lambda: not any((tmp_path / "memory").iterdir()), Patience.START, lambda: [*(tmp_path / "memory").iterdir()])


@pytest.mark.soak("two whole runs; the test above shows what is read")
def test_kills_change_no_parameter(start: Start) -> None:
    disturbed = start(240, nodes=2, spare_nodes=1)
    reach(disturbed, 25, attempt=1)
    tiers = [resumed_after(disturbed, lambda: kill_rank(disturbed, 1), 1)]
    tiers += [resumed_after(disturbed, lambda: kill_node(disturbed, 1), 2)]
    succeed(disturbed)
    assert [(event["tier"], event["world_size"]) for event in tiers] == [("memory", 2), ("memory", 2)]
    peaceful = start(240, nodes=2)
    succeed(peaceful)
    assert losses(peaceful) == losses(disturbed)
    assert equal(weights(peaceful, 240), weights(disturbed, 240))


@pytest.mark.soak("two whole runs; the test above lets a node leave")
def test_nodes_that_leave_and_join_change_no_loss_and_a_stop_amid_them_loses_no_step(start: Start) -> None:
    run = start(nodes="2..3")
    reach(run, 10, attempt=1)
    until(lambda: events(run, "group_formed")[-1]["nodes"] == 3, Patience.STEP)
    for nodes in (2, 3, 2):
        event = resumed_after(run, lambda nodes=nodes: run.request_nodes(nodes), len(events(run, "resumed")) + 1)
        assert (event["tier"], event["world_size"], event["redone"]) == ("memory", nodes, 0)
    run.request_nodes(3)
    until(lambda: len(events(run, "stopped")) > 3, Patience.STEP)
    assert [*cancel_runs([run.id])]  # the state is in memory alone at this moment
    until(lambda: run.last_outcome() is not None, Patience.RUN)
    there = max(losses(run))
    assert events(run, "checkpoint")[-1]["step"] == there
    peaceful = start(nodes=2)
    reach(peaceful, there, 1)
    assert [*cancel_runs([peaceful.id])]
    expected = [losses(peaceful)[step] for step in range(1, there + 1)]
    assert [losses(run)[step] for step in range(1, there + 1)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.soak("a whole run; sharding/test_memory_copies.py has the choice")
def test_a_node_that_dies_with_the_one_that_has_its_copy_costs_the_steps_since_the_checkpoint(start: Start) -> None:
    run = start(every_steps=10, nodes="1..3")
    reach(run, 25, attempt=1)

    def kill_both() -> None:
        for node in (1, 2):
            kill_node(run, node)

    event = resumed_after(run, kill_both, 1)
    assert event["tier"] == "storage"
    assert event["step"] % 10 == 0
    assert any("no node that is left" in text for each in events(run, "bad_checkpoint") for text in each["problems"])
    assert [*cancel_runs([run.id])]
    until(lambda: run.last_outcome() is not None, Patience.RUN)
