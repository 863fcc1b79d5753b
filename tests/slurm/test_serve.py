"""A run that serves from two nodes of a Slurm cluster: replicas on both, the way to it, a requeue that cuts no stream."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.process.kill import processes_of
from cluster.run.directory import RUNS_VARIABLE
from cluster.run.files import read_json
from cluster.spec import RunState
from jobs.models.promote import promote
from jobs.runs.submit import configure, submit
from jobs.runs.view import view_of
from slurm.job_lookup import job_id
from slurm.lab.cluster import Lab
from tests.fakes.engine import fake_model
from tests.jobs.serve.serving import ENGINE, MODEL, Load, Serving
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT, end_jobs

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800), pytest.mark.usefixtures("alone_with_ray")]

WORDS = 10


def test_two_nodes_serve_and_a_requeued_run_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_lab: Lab) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    profile = {"backend": "slurm", "partition": "main", "environment": {"WANDB_MODE": "disabled"}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {**profile, "runs": str(tmp_path / "runs")}}))
    folder = fake_model(tmp_path / "one", says="one", words=WORDS, pause=0.05)
    promote(str(folder), name=MODEL, root=tmp_path / "runs", force="a test")
    given = {"model": "production", "engine_command": ENGINE, "replicas": 2, "cpus": 1}
    given |= {"resources.nodes": 2, "resources.cpus": 2, "resources.grace_seconds": 60}
    run = submit("serve", configure("serve", None, [f"{key}={json.dumps(value)}" for key, value in given.items()]), "lab")
    try:
        serving = Serving(run, tmp_path)
        version = f"{MODEL}@1"
        serving.until(lambda: len(serving.replicas(version)) == 2, Patience.CLUSTER)
        hosts = {replica["url"].rpartition(":")[0] for replica in serving.replicas(version)}
        assert len(hosts) == 2, f"a replica on each node, at the node's own address: {hosts}"
        attempt = run.attempts()[-1]
        with Load(serving.address, WORDS, clients=2) as load:
            serving.until(lambda: load.count > 4)
            subprocess.run(["scancel", "--batch", "--signal=USR2", job_id(run)], check=True)
            outcome = serving.until(lambda: run.outcome(attempt), Patience.CLUSTER)
        assert (outcome.state, outcome.exit_code) == (RunState.REQUEUED, 85)
        assert not [failure for failure in load.failures if "cut" in failure]
        assert serving.events("served_to_the_end")[-1]["open"] == 0
        serving.until(lambda: (read_json(serving.files.address) or {}).get("attempt") == attempt + 1, Patience.CLUSTER)
        serving.until(lambda: len(serving.replicas(version)) == 2 and view_of(run).endpoint(), Patience.CLUSTER)
        with Load(serving.address, WORDS, clients=2) as load:
            serving.until(lambda: load.count > 4)
        assert load.failures == []
    finally:
        end_jobs(f"ropewalk-{run.id}")
        until(lambda: not processes_of(run.path))
