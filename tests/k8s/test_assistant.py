"""Finetuning, preferences and rewards in pods: evicted, and their node dead, they learn what they would in peace."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from tests.jobs.assistant import Assistant, check_equal, set_up, write_files
from tests.k8s.cluster import Cluster, Namespace

pytestmark = [
    pytest.mark.soak(
        "minutes, six runs; make test kills the same jobs on this machine, and stops and kills pods in test_training.py"
    ),
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("alone_with_ray"),
]

VOLUME = Path("/runs")  # as pods see it


def test_an_assistant_is_made_bit_by_bit_though_pods_are_evicted_and_a_node_dies(
    lab: Cluster, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = {"backend": "k8s", **namespace.options()}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    set_up(tmp_path, {"pods": profile}, monkeypatch)
    write_files(namespace.runs / "files")
    peaceful = Assistant(tmp_path, namespace.runs / "files", "local", {"ranks_per_node": 2}, (tmp_path / "runs").joinpath)
    peaceful.finish()
    pods = {"nodes": 2, "cpus": 1, "grace_seconds": 20}
    disturbed = Assistant(tmp_path, VOLUME / "files", "pods", pods, namespace.runs.joinpath)

    def pod_of(name: str, step: int, node: int) -> dict[str, Any]:
        """Wait for a step; the pod in which a node's agent runs."""
        run = disturbed.reach(name, step)
        addresses = {line["node"]: line["address"] for line in read_lines(run.attempt_dir(run.attempts()[-1]) / AGENTS)}
        return next(pod for pod in namespace.pods() if pod["status"].get("podIP") == addresses[node])

    for name, node in (("finetune", 0), ("dpo", 1)):
        namespace.kubectl("delete", "pod", "--wait=false", pod_of(name, 10, node)["metadata"]["name"])
    lab.kill_node(pod_of("grpo", 5, 1)["spec"]["nodeName"])
    disturbed.finish()
    assert [len(run.attempts()) for run in disturbed.runs.values()] == [2, 2, 2]
    check_equal(peaceful, disturbed)
