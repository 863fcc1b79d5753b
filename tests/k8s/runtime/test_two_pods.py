"""Two pods of a run as processes of this machine, with an API server that is a folder of files: no cluster is needed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import RunState
from ropewalk.k8s.api.in_cluster import JOB_LABEL
from ropewalk.k8s.runtime.pod_status import INDEX_ANNOTATION
from tests.cluster.conftest import ROOT
from tests.patience import Patience, ended, until

ADDRESS = "127.0.0.1"
POD = """
import json, sys
from pathlib import Path
import ropewalk.k8s.api.in_cluster
from ropewalk.k8s.runtime import coordinator, pod_main

SERVER = Path(sys.argv.pop(1))

class Api:
    job_name = "job"

    def pods(self):
        return [json.loads(path.read_text()) for path in sorted(SERVER.glob("pod-*.json"))]

    pods_of_indexes = lambda self, indexes: self.pods()

    def pod(self, name):
        return next((pod for pod in self.pods() if pod["metadata"]["name"] == name), None)

    def job(self):
        return {"metadata": {}, "spec": {"completions": 2}}

    def patch_job(self, patch):
        (SERVER / "job.json").write_text(json.dumps(patch))

pod_main.InClusterApi = coordinator.InClusterApi = Api
pod_main.main()
"""


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> RunDir:
    """A run of two nodes that was submitted."""
    resources = {"nodes": request.param, "grace_seconds": 5}
    record = {"job": "toy", "config": {"steps": 100, "pause": 0.05}, "entry": "tests.fakes.toy:count", "engine": "ranks"}
    run = RunDir.create("toy", {**record, "resources": resources, "sidecars": []}, tmp_path / "runs")
    run.begin_attempt(name="job", handle="k8s:ns/job", opened_by="submission", resources=resources)
    return run


@pytest.fixture
def pods(run: RunDir, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The run's two pods."""
    created = [start(index, run, tmp_path) for index in range(2)]
    yield created
    for pod in created:
        end(family(pod.pid))
        pod.wait()


def start(index: int, run: RunDir, server: Path) -> subprocess.Popen[bytes]:
    about: dict[str, Any] = {"name": f"p{index}", "uid": f"u{index}", "labels": {JOB_LABEL: "job"}}
    about["annotations"] = {INDEX_ANNOTATION: str(index)}
    status = {"phase": "Running", "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}
    described = {"metadata": about, "spec": {"nodeName": "n"}, "status": status}
    (server / f"pod-{index}.json").write_text(json.dumps(described))
    variables = {"POD_NAME": f"p{index}", "POD_UID": f"u{index}", "JOB_COMPLETION_INDEX": str(index), "POD_IP": ADDRESS}
    with (server / f"pod-{index}.log").open("wb") as log:
        command = [sys.executable, "-c", POD, str(server), str(run.path)]
        return subprocess.Popen(command, env={**os.environ, **variables, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)


def coordinators(pods: list[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    children = [child for pod in pods for child in psutil.Process(pod.pid).children()]
    return [child for child in children if "ropewalk.k8s.runtime.coordinator" in " ".join(child.cmdline())]


@pytest.mark.soak("test_a_dead_node_with_a_spare moves leadership too")
@pytest.mark.parametrize("run", [2], indirect=True)
def test_a_killed_coordinator_is_succeeded_and_the_end_is_told(
    run: RunDir, pods: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    until(lambda: len(run.read_metrics()) > 10, Patience.START)
    assert run.attempt_details(1)["carrier"] == "p0", "the pod of index 0 leads first"
    (first,) = coordinators(pods)
    first.kill()
    until(lambda: any(line["attempt"] == 2 for line in run.read_metrics()), Patience.START)
    assert [ended(pod, Patience.RUN) for pod in pods] == [0, 0]
    lost, outcome = run.outcome(1), run.last_outcome()
    assert lost is not None
    assert "its leader died" in lost.cause
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED
    assert outcome.results == {"step": 100, "world": 2}
    assert "SUCCEEDED" in (tmp_path / "job.json").read_text()


@pytest.mark.soak("test_a_dead_node_with_a_spare moves leadership too")
@pytest.mark.parametrize("run", ["1..2"], indirect=True)
def test_the_agents_of_an_elastic_run_go_on_under_another_coordinator(run: RunDir, pods: list[subprocess.Popen[bytes]]) -> None:
    until(lambda: len(run.read_metrics()) > 10, Patience.START)
    (first,) = coordinators(pods)
    first.kill()
    until(lambda: run.attempt_details(1)["carrier"] == "p1", Patience.START)
    assert [ended(pod, Patience.RUN) for pod in pods] == [0, 0]
    outcome = run.last_outcome()
    assert outcome is not None
    assert (outcome.state, outcome.results, run.attempts()) == (RunState.SUCCEEDED, {"step": 100, "world": 2}, [1])
    assert len(read_lines(run.attempt_dir(1) / AGENTS)) == 2, "no agent is started anew"
    assert [line["step"] for line in run.read_metrics()] == list(range(1, 101))
