"""A run that serves from nodes of a Slurm cluster: the way to it, a requeue that cuts no stream, a successor at its limit."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.runs.submit.submit import configure, submit
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.engine import fake_model
from tests.jobs.serving.serve.serving import ENGINE, MODEL, Load, Serving, ask
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT, end_jobs

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("alone_with_ray")]

WORDS = 10


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_lab: Lab) -> Iterator[Callable[..., Serving]]:
    """Submit a run that serves the fake model's first version; all runs are ended with the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    profile = {"backend": "slurm", "partition": "main", "environment": {"WANDB_MODE": "disabled"}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {**profile, "runs": str(tmp_path / "runs")}}))
    folder = fake_model(tmp_path / "one", says="one", words=WORDS, pause=0.05)
    promote(str(folder), name=MODEL, root=tmp_path / "runs", force="a test")

    def submitted(**keys: Any) -> Serving:
        settings = {
            "model": "production",
            "engine_command": ENGINE,
            "cpus": 1,
            "resources.cpus": 2,
            "resources.grace_seconds": 60,
        }
        overrides = [f"{key}={json.dumps(value)}" for key, value in {**settings, **keys}.items()]
        return Serving(submit("serve", configure("serve", None, overrides), "lab"), tmp_path)

    yield submitted

    def gone() -> bool:
        runs = RunDir.all(tmp_path / "runs")
        list(cancel_runs([run.id for run in runs if final_outcome(run) is None]))  # told by Slurm alone, each would hand over
        end_jobs(*(f"ropewalk-{run.id}" for run in runs))
        return not processes_of(tmp_path / "runs")

    until(gone)


@pytest.mark.soak("two Rays over two nodes")
def test_two_nodes_serve_and_a_requeued_run_comes_back(start: Callable[..., Serving]) -> None:
    serving = start(replicas=2, **{"resources.nodes": 2})
    run, version = serving.run, f"{MODEL}@1"
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
    assert serving.events("serving_stopped")[-1]["open"] == 0
    serving.until(lambda: (read_json(serving.files.address) or {}).get("attempt") == attempt + 1, Patience.CLUSTER)
    serving.until(lambda: len(serving.replicas(version)) == 2 and view_of(run).endpoint(), Patience.CLUSTER)
    serving.until(lambda: ask(serving.address)[0] == 200)  # the gateway looks at its routes now and then
    with Load(serving.address, WORDS, clients=2) as load:
        serving.until(lambda: load.count > 4)
    assert load.failures == []


@pytest.mark.soak("two Rays, and minutes until the limit")
def test_at_its_time_limit_a_run_hands_over_and_fails_no_stream(start: Callable[..., Serving]) -> None:
    """A client asks wherever the run says, again and again; a refusal (503) while it looks for the way is no failure."""
    limit = {"resources.time_limit_minutes": 9, "handover": True, "handover_minutes": 7}  # it is due after a minute
    serving = start(**limit, **{"update.drain_seconds": 3000})  # it ends because nothing is open, and not because this is over
    run, answered, failures = serving.run, Counter[str](), list[str]()
    serving.until(lambda: serving.state.get("stable") and view_of(run).endpoint(), Patience.CLUSTER)

    def both_answered() -> bool:
        endpoint = view_of(run).endpoint()
        assert endpoint is not None, "there is always one that listens"
        status, text = ask(endpoint.address)
        if status == 200:
            answered[endpoint.address] += 1
        if status not in {200, 503} or (status == 200 and len(text.split()) != WORDS):
            failures.append(f"{status}: {text}")
        return len(answered) == 2 and min(answered.values()) > 4

    serving.until(both_answered, Patience.CLUSTER)
    assert failures == []
    successor = RunDir(run.path.parent / serving.events("handover_started")[0]["successor"])
    outcome = serving.until(run.last_outcome, Patience.CLUSTER)
    assert (outcome.state, run.results()) == (RunState.SUCCEEDED, {"handed_over_to": successor.id})
    assert serving.events("serving_stopped")[-1]["open"] == 0
