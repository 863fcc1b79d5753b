"""A run that moves from this machine to a login node's cluster through ssh, and back."""

import random
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.runs.move.hops import Traveller, check_same
from tests.slurm.ssh.login_node import LoginNode

STEPS = 400


def there_and_back(node: LoginNode, home: Path, kills: int) -> None:
    node.write_config(node.port)
    corpora = {"here": home / "corpus", "big": node.folder / f"corpus-{kills}"}
    clusters = {
        "here": {"backend": "local", "runs": str(home / "runs"), "mounts": {"corpus": str(corpora["here"])}},
        "big": node.profile(mounts={"corpus": str(corpora["big"])}, environment={"OMP_NUM_THREADS": "1"}),
    }
    traveller, drawn = Traveller(home, clusters, [*corpora.values()], STEPS), random.Random(kills)
    stayed, run = traveller.submit("here"), traveller.submit("here")
    traveller.move(run, "big", kills, drawn)
    there = RunDir(node.runs / run)
    assert there.record["config"]["data"] == str(corpora["big"] / "tokens")
    assert "moved to big" in traveller("show", str(home / "runs" / run))
    traveller.move(run, "here", kills, drawn)
    assert there.last_outcome().cause == "moved to here"  # type: ignore[union-attr]
    traveller.finish(run)
    traveller.finish(stayed)
    check_same(RunDir(home / "runs" / stayed), RunDir(home / "runs" / run), STEPS)


@pytest.mark.soak("real trainings and ssh; test_move.py moves made-up runs, test_cuts.py kills the copy")
def test_from_here_to_a_login_node_and_back(slurm_lab: Lab, node: LoginNode, tmp_path: Path) -> None:
    there_and_back(node, tmp_path, 0)


@pytest.mark.soak("20 kills")
def test_from_here_to_a_login_node_and_back_with_kills(slurm_lab: Lab, node: LoginNode, tmp_path: Path) -> None:
    there_and_back(node, tmp_path, 10)
