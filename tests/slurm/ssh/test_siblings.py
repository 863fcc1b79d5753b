"""Submissions to two clusters through ssh, between which `sync --follow` on the user's machine decides."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.patience import Patience
from tests.slurm.ssh.login_node import Laptop, LoginNode
from tests.slurm.toy import finish, said

RACES = 10


@contextlib.contextmanager
def following(laptop: Laptop) -> Iterator[None]:
    """Run `ropewalk sync --follow` during the block."""
    process = laptop.start("sync", "--follow")
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert process.returncode == 0, out + errors


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
    races: list[list[RunDir]] = []
    for number in range(RACES):
        names = laptop(*command, f"seed={number}", "--", "python3", "train.py").split()
        races.append([RunDir(roots[cluster] / name) for cluster, name in zip(roots, names, strict=True)])
        assert all(run.last_outcome() is None for run in races[-1]), "nothing starts without an answer"
    with following(laptop):
        outcomes = [[finish(run, Patience.CLUSTER) for run in race] for race in races]
    started = (tmp_path / "started").read_text().split()
    for race, ended in zip(races, outcomes, strict=True):
        assert sorted(outcome.state for outcome in ended) == [RunState.CANCELLED, RunState.SUCCEEDED], "".join(map(said, race))
        assert sum(started.count(str(run.path)) for run in race) == 1
    assert len(started) == RACES
