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
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, weights
from tests.patience import Patience, until

STEPS = 240


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    data = make_dataset(tmp_path / "data", num_documents=800)

    def begin(**resources: Any) -> RunDir:
        config = {
            "data": str(data),
            "model": {"config": TINY},
            "seq_len": 32,
            "steps": STEPS,
            "batch": {"global_batch": 8, "micro_batch": 4},
            "checkpoint": {"every_steps": 10},
            "validation": {"every_steps": 1000, "max_sequences": 4},
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
