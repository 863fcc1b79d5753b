"""Submissions to Slurm and to Kubernetes at once: on one of the two, and on one only, the run starts."""

import json
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.runs.move.hops import Traveller, following
from tests.k8s.cluster import Namespace
from tests.patience import Patience, until
from tests.slurm.conftest import slurm_lab

__all__ = ["slurm_lab"]  # a fixture

RACES = 100
SUBMIT = ("submit", "command", "launch=once", "retries.disturbances=0", "resources.cpus=1", "directory=/tmp", "code.ship=false")


@pytest.mark.timeout(3600)
@pytest.mark.soak("two labs, 100 races in a quarter of an hour; tests/jobs/runs/move/test_siblings.py has 30 races")
def test_exactly_one_run_of_each_submission_starts(slurm_lab: Lab, namespace: Namespace, tmp_path: Path) -> None:
    roots = {"big": tmp_path / "big", "team": namespace.runs}
    options = namespace.options(runs=None)
    options["environment"] |= {"WANDB_MODE": "disabled"}
    clusters = {"big": {"backend": "slurm", "runs": str(roots["big"])}, "team": {"backend": "k8s", **options}}
    user = Traveller(tmp_path, clusters, [], 0)
    races: list[dict[str, RunDir]] = []
    with following(user.start):
        for seed in range(RACES):
            order = [*roots] if seed % 2 else [*reversed(roots)]
            names = user(*SUBMIT, f"seed={seed}", "--on", ",".join(order), "--", "echo", "started").split()
            races.append({cluster: RunDir(roots[cluster] / name) for cluster, name in zip(order, names, strict=True)})
        until(lambda: all(any(map(_has_started, race.values())) for race in races), Patience.CLUSTER)
        states = [{cluster: _end(user, run) for cluster, run in race.items()} for race in races]
    winners = dict.fromkeys(roots, 0)
    for race, ended in zip(races, states, strict=True):
        (winner,) = [cluster for cluster, run in race.items() if _has_started(run)]
        assert {cluster for cluster, state in ended.items() if state == RunState.SUCCEEDED} == {winner}, ended
        assert sorted(ended.values()) == [RunState.CANCELLED, RunState.SUCCEEDED], ended
        winners[winner] += 1
    print(f"{RACES} races, won by {winners}")


def _has_started(run: RunDir) -> bool:
    return any("started\n" in path.read_text() for path in run.path.glob("attempts/*/logs/rank-0.log"))


def _end(user: Traveller, run: RunDir) -> str:
    """Return the state with which a run has ended; of one without a pod Kubernetes knows it."""
    if (outcome := run.last_outcome()) is not None:
        return outcome.state
    with user.start("wait", run.id, "--json") as process:
        out, _ = process.communicate()
    return str(json.loads(out)["state"])
