"""The run's machine and the login node have clients of their own of a file system whose caches are a minute old, as NFS's."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.mirror.mirror import is_complete
from tests.fakes.nfs import Network, need_nfs
from tests.fakes.wandb_server import WandbServer
from tests.jobs.runs.mirror.processes import Started, relay, sidecar, train
from tests.jobs.runs.mirror.test_kills import arrived
from tests.jobs.runs.mirror.test_relay import make_run, steps
from tests.patience import Patience, until

STEPS = 40  # of an attempt


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    need_nfs()
    result = Network(tmp_path / "nfs")
    yield result
    result.close()


@pytest.mark.soak(
    "waits for caches a minute old; make test runs test_every_line_once_though_sidecar_and_relay_are_killed on one machine"
)
def test_sidecar_and_relay_on_different_machines_succeed_each_other(wandb_server: WandbServer, network: Network) -> None:
    node, login = network.client(), network.client()
    run = make_run(node / "runs", "shared")
    login_run = RunDir(login / "runs" / run.id)
    watching = Started(relay, login / "runs")
    for attempt in (1, 2, 3):
        if attempt > 1:
            run.begin_attempt()
        beside = Started(sidecar, run.path, attempt)
        there = arrived(wandb_server, run)
        train(run.path, attempt, attempt * STEPS)
        until(lambda there=there: arrived(wandb_server, run) > there, Patience.CLUSTER)
        beside.kill()  # whoever had the lease, the other one goes on behind it
        if attempt < 3:
            watching.kill()
            watching = Started(relay, login / "runs")
            until(lambda enough=attempt * STEPS: arrived(wandb_server, run) >= enough, Patience.CLUSTER)
    run.write_outcome(3, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=time.time()))
    until(lambda: is_complete(login_run), Patience.CLUSTER)
    watching.kill()
    output = wandb_server.run(run.id)
    assert steps(output) == list(range(1, 3 * STEPS + 1))
    assert output.rewritten == 0
    assert list(wandb_server.runs) == [run.id]
