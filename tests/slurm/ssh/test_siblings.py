"""Submissions to two clusters through ssh, between which `sync --follow` on the user's machine decides."""

from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.siblings import REQUESTED
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.runs.move.hops import following
from tests.patience import Patience, until
from tests.slurm.ssh.login_node import Laptop, LoginNode
from tests.slurm.toy import finish, said

RACES = 100


@pytest.mark.timeout(3600)
@pytest.mark.soak(f"{2 * RACES} jobs of Slurm; tests/jobs/runs/move/test_siblings.py has 30 races")
def test_exactly_one_run_of_each_submission_starts(slurm_lab: Lab, node: LoginNode, tmp_path: Path) -> None:
    node.write_config(node.port, shared=True)
    laptop = Laptop(tmp_path / "laptop", node)
    roots = {"big": node.runs, "other": node.folder / "other-runs"}
    clusters = {name: node.profile(runs=str(root)) for name, root in roots.items()}
    (laptop.folder / "clusters.yaml").write_text(yaml.safe_dump(clusters))
    (laptop.project / "train.py").write_text(
        f"import os\nopen('{tmp_path}/started', 'a').write(os.environ['ROPEWALK_RUN'] + '\\n')\n"
    )
    command = ("submit", "command", "launch=once", "retries.disturbances=0", "--on", "big,other")

    def race(seed: int) -> list[RunDir]:
        names = laptop(*command, f"seed={seed}", "--", "python3", "train.py").split()
        return [RunDir(roots[cluster] / name) for cluster, name in zip(roots, names, strict=True)]

    races = [race(0)]
    until(lambda: all(REQUESTED in [event["event"] for event in run.read_events()] for run in races[0]), Patience.CLUSTER)
    assert all(run.last_outcome() is None for run in races[0]), "nothing starts without an answer"
    with following(laptop.start):
        races += map(race, range(1, RACES))
        outcomes = [[finish(run, Patience.CLUSTER) for run in each] for each in races]
    started = (tmp_path / "started").read_text().split()
    for runs, ended in zip(races, outcomes, strict=True):
        assert sorted(outcome.state for outcome in ended) == [RunState.CANCELLED, RunState.SUCCEEDED], "".join(map(said, runs))
        assert sum(started.count(str(run.path)) for run in runs) == 1
    assert len(started) == RACES
