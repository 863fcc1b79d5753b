"""A real training run on virtual nodes, disturbed in every way at once, ends with the parameters of one left in peace."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.process.kill import processes_of, writers_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, losses, weights
from tests.patience import Patience, until

STEPS = 240


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    data = make_dataset(tmp_path / "data", num_documents=800)

    def begin(steps: int = STEPS, parallel: dict[str, Any] | None = None, **resources: Any) -> RunDir:
        config = {
            "data": str(data),
            "model": {"config": TINY},
            "seq_len": 32,
            "steps": steps,
            "batch": {"global_batch": 8, "micro_batch": 4},
            "checkpoint": {"every_steps": 10},
            "validation": {"every_steps": 1000, "max_sequences": 4},
            "parallel": parallel or {},
            "resources": resources,
        }
        return submit("pretrain", PretrainConfig.model_validate(config))

    return begin


def succeed(run: RunDir) -> None:
    wait(run)
    outcome = run.last_outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome.cause


def reach(run: RunDir, step: int, attempt: int) -> None:
    """Wait until this attempt has completed a step."""
    until(lambda: any(m["step"] >= step and m["attempt"] == attempt for m in run.read_metrics()), Patience.STEP)


def agent_pid(run: RunDir, node: int, attempt: int) -> int:
    return [a["pid"] for a in read_lines(run.attempt_dir(attempt) / "agents.jsonl") if a["node"] == node][-1]


@pytest.mark.soak("three disturbances in a row; each has its own test in test_disturbances.py, bits in test_pretrain.py")
def test_three_disturbances_change_no_parameter(start: Callable[..., RunDir]) -> None:
    disturbed = start(nodes=2)
    reach(disturbed, 25, attempt=1)
    writers_of(disturbed.log_dir(1) / "rank-1.log")[0].kill()
    formed = len(events(disturbed, "first_step"))
    until(lambda: len(events(disturbed, "first_step")) > formed, Patience.STEP)
    os.kill(agent_pid(disturbed, 0, 1), signal.SIGUSR2)  # what a scheduler sends before it takes the nodes away
    reach(disturbed, 60, attempt=2)
    os.killpg(agent_pid(disturbed, 1, 2), signal.SIGKILL)
    succeed(disturbed)
    outcomes = [disturbed.outcome(n) for n in disturbed.attempts()]
    assert [o.exit_code for o in outcomes if o] == [85, 143, 0]

    peaceful = start(nodes=2)
    succeed(peaceful)
    assert equal(weights(peaceful, STEPS), weights(disturbed, STEPS))


@pytest.mark.soak("a whole run; make test runs test_an_elastic_run_shrinks_and_grows_again")
def test_an_elastic_run_that_loses_a_node_learns_every_sample_once(start: Callable[..., RunDir]) -> None:
    run = start(nodes="1..2")
    reach(run, 25, attempt=1)
    os.killpg(agent_pid(run, 1, 1), signal.SIGKILL)
    succeed(run)
    assert run.attempts() == [1]
    assert any(e["event"] == "resumed" and e["world_size"] == 1 for e in run.read_events())
    last = {m["step"]: m["train/position"] for m in run.read_metrics() if "train/loss" in m}
    assert last == {step: step * 8 for step in range(1, STEPS + 1)}
    # its supervisor leaves last, after the outcome
    until(lambda: not processes_of(run.path), Patience.START, lambda: processes_of(run.path))


def stop_at(run: RunDir, step: int) -> dict[int, float]:
    """Cancel the run when it has reached a step, and return its losses."""
    reach(run, step, attempt=1)
    assert [*cancel_runs([run.id])]
    until(lambda: run.last_outcome() is not None, Patience.RUN)
    assert run.attempts() == [1]
    return losses(run)


@pytest.mark.soak("two runs; make test runs test_a_group_goes_on_without_its_spare_rank_and_takes_it_in_for_a_lost_one")
@pytest.mark.parametrize("shard_nodes", [1, 2])
def test_copies_of_a_model_lose_two_nodes_and_get_both_back(start: Callable[..., RunDir], shard_nodes: int) -> None:
    parallel = {"replicate": "auto", "shard_nodes": shard_nodes}
    disturbed = start(20_000, parallel, nodes="1..4")

    def group_goes_on(nodes: int) -> None:
        until(lambda: events(disturbed, "group_formed")[-1]["nodes"] == nodes, Patience.STEP)
        there = max(losses(disturbed))
        until(lambda: max(losses(disturbed)) > there + 15, Patience.STEP)

    reach(disturbed, 25, attempt=1)
    for lost, node in enumerate((1, 2), 1):
        os.killpg(agent_pid(disturbed, node, 1), signal.SIGKILL)
        until(lambda number=lost: len(events(disturbed, "node_lost")) == number, Patience.SIGNAL)
        disturbed.request_nodes(4 - lost)  # the other node is lost before this one is back
        group_goes_on(4 - lost)
    disturbed.request_nodes(4)
    group_goes_on(4)
    there = max(losses(disturbed))
    loss = stop_at(disturbed, there)
    computing = [event["world_size"] for event in events(disturbed, "resumed")]
    assert (computing[0], computing[-1]) == (3 if shard_nodes == 1 else 2, 4)
    assert 2 in computing
    assert bool(events(disturbed, "ranks_spare")) == (shard_nodes == 2)

    peaceful = stop_at(start(20_000, parallel, nodes=4), there)
    common = sorted(loss.keys() & peaceful.keys())
    assert common[-1] >= there
    assert [loss[step] for step in common] == pytest.approx([peaceful[step] for step in common], rel=1e-5)


@pytest.mark.soak("a whole run; make test runs test_a_stopped_rank_is_replaced_at_once")
def test_a_run_of_which_a_rank_is_stopped_for_ever_learns_every_sample_once(start: Callable[..., RunDir]) -> None:
    disturbed = start(nodes=2)
    reach(disturbed, 25, attempt=1)
    writers_of(disturbed.log_dir(1) / "rank-1.log")[0].suspend()
    succeed(disturbed)
    assert disturbed.attempts() == [1]
    assert [event["group"] for event in disturbed.read_events() if event["event"] == "ranks_hung"] == [1]
    last = {m["step"]: m["train/position"] for m in disturbed.read_metrics() if "train/loss" in m}
    assert last == {step: step * 8 for step in range(1, STEPS + 1)}
