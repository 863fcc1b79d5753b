"""`ropewalk logs -f` on the login node, while a run of two nodes is requeued: every line once, with its origin."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RUNS_VARIABLE
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.logs import read_logs
from ropewalk.slurm.lab.cluster import Lab
from tests.patience import HANG_SECONDS, Patience, until
from tests.slurm.conftest import ROOT
from tests.slurm.toy import SlurmToy


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.soak("make test follows a run on Slurm through ssh, and the files of two attempts in jobs/runs/test_logs.py")
def test_following_across_nodes_ranks_and_attempts(
    slurm_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm"}}))
    run = SlurmToy(tmp_path / "runs", resources={"nodes": 2}, steps=30 * times)
    env = {**os.environ, RUNS_VARIABLE: str(tmp_path / "runs"), "ROPEWALK_CLUSTERS": str(tmp_path / "clusters.yaml")}
    command = [sys.executable, "-c", "from ropewalk.jobs.cli.main import main; main()", "logs", run.run.id, "-f"]
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as follower:
        try:
            for attempt in range(1, times + 1):
                run.reach(max(run.steps(), default=0) + 5)
                subprocess.run(["scontrol", "requeue", run.job], check=True)
                until(lambda number=attempt: run.run.outcome(number), Patience.STEP)  # type: ignore[misc]
            assert run.finish().state is RunState.SUCCEEDED
            output, _ = follower.communicate(timeout=HANG_SECONDS)
        finally:
            follower.kill()
            subprocess.run(["scancel", f"--name=ropewalk-{run.run.id}"], check=False)
    assert Counter(output.splitlines()) == Counter(map(str, read_logs(run.run))), output
    assert follower.returncode == 0
    origins = {re.split(r" \| ", line)[0] for line in output.splitlines()}
    processes = ("node-0", "node-1", "rank-0", "rank-1")
    assert {"1.batch", *(f"{attempt}.{each}" for attempt in range(1, times + 1) for each in processes)} <= origins
