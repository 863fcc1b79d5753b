"""A run that moves from Slurm to a volume that only pods see, and back."""

import random
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.runs.move.hops import Traveller, check_same
from tests.k8s.cluster import Namespace
from tests.slurm.conftest import slurm_lab

__all__ = ["slurm_lab"]  # a fixture

STEPS = 400
KILLS = 10  # of each move


@pytest.mark.soak("two labs; test_move.py moves made-up runs, tests/slurm/ssh/test_moves.py real ones")
@pytest.mark.slow
def test_from_slurm_to_pods_and_back(slurm_lab: Lab, namespace: Namespace, tmp_path: Path) -> None:
    options = namespace.options(runs=None, mounts={"corpus": "/runs/corpus"})
    options["environment"] |= {"WANDB_MODE": "disabled"}
    clusters = {
        "big": {"backend": "slurm", "runs": str(tmp_path / "big"), "mounts": {"corpus": str(tmp_path / "corpus")}},
        "team": {"backend": "k8s", **options},
    }
    traveller = Traveller(tmp_path, clusters, [tmp_path / "corpus", namespace.runs / "corpus"], STEPS)
    stayed, run = traveller.submit("big"), traveller.submit("big")
    drawn = random.Random(0)
    traveller.move(run, "team", KILLS, drawn)
    assert RunDir(namespace.runs / run).record["config"]["data"] == "/runs/corpus/tokens"
    assert "moved to team" in traveller("show", str(tmp_path / "big" / run))
    traveller.move(run, "big", KILLS, drawn)
    traveller.finish(run)
    traveller.finish(stayed)
    check_same(RunDir(tmp_path / "big" / stayed), RunDir(tmp_path / "big" / run), STEPS)
