"""Trials on the sweep's own nodes: placed by Ray, carried by their actors, gone with the allocation and back with it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.run.files import read_json, read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.status import states
from tests.jobs.sweeping import Swept, sweeps
from tests.patience import until

pytestmark = [pytest.mark.slow]

Start = Callable[..., Swept]
NODES = {"nodes": 2, "cpus": 1}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with sweeps(tmp_path) as begin:
        yield begin


@pytest.mark.soak("two Rays after each other; make test runs test_a_killed_driver_finishes_every_trial_once")
def test_trials_of_two_nodes_and_what_a_preemption_and_a_cancel_leave(start: Start) -> None:
    base = {"steps": 150, "pause": 0.05, "resources": {"nodes": 2, "cpus": 1, "grace_seconds": 20}}
    sweep = start(allocation=True, resources=NODES, base=base, trials=2)
    until(lambda: any(sweep.steps().values()), describe=sweep.said)
    first = sweep.runs()[0]
    assert states([first])[first.id].state is RunState.RUNNING
    agents = read_lines(first.attempt_dir(1) / "agents.jsonl")
    assert {agent["address"] for agent in agents} == {"127.0.1.1", "127.0.1.2"}, "a node of the trial on each node of the sweep"
    os.kill(int((read_json(sweep.run.path / "supervisor.json") or {})["pid"]), signal.SIGUSR2)
    until(lambda: sweep.run.outcome(1), describe=sweep.said)
    assert sweep.run.outcome(1).exit_code == 85  # type: ignore[union-attr]
    until(lambda: len(first.attempts()) == 2, describe=sweep.said)
    assert sweep.finish()["trials"] == {"SUCCEEDED": 2}
    assert all(steps == list(range(1, 151)) for steps in sweep.steps().values()), "what was saved is not done again"


@pytest.mark.soak("half a minute; make test runs Ray and trials in chaos/test_sweep.py")
def test_a_cancelled_one_leaves_no_process(start: Start) -> None:
    sweep = start(allocation=True, resources={"cpus": 2}, base={"steps": 3000, "pause": 0.05}, trials=3)
    until(lambda: len(sweep.steps()) == 2 and all(sweep.steps().values()), describe=sweep.said)
    list(cancel_runs([sweep.run.id]))
    sweep.finish(RunState.CANCELLED)
    sweep.nothing_is_left()
    assert {record.state.value for record in sweep.records()} == {"CANCELLED"}
