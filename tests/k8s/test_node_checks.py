"""Node checks on a real Kubernetes cluster: of a run's pods before its first group, and `doctor` in a pod; failed nodes."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

MACHINE_CHECKS = {"clock", "shared memory", "ports", "interfaces", "file system"}


def doctor(namespace: Namespace, variables: str) -> dict[str, Any]:
    """Run `doctor` in the first pod; return its checks of the machine by name."""
    command = f"{variables} {namespace.cluster.python} -m ropewalk.jobs.cli doctor --json || true"
    output = namespace.kubectl("exec", namespace.pod(0)["metadata"]["name"], "--", "sh", "-c", command)
    return {check["name"]: check for check in json.loads(output)["checks"] if check["name"] in MACHINE_CHECKS}


def close_ports(pod: dict[str, Any]) -> None:
    """Let connections to a pod's own address fail."""
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    process = next(process for process in psutil.process_iter() if _pod_of(process) == name)
    for rule in ("add pref 100 lookup local", f"add pref 50 to {address} prohibit", "del pref 0"):
        subprocess.run(["nsenter", f"--net=/proc/{process.pid}/ns/net", "ip", "rule", *rule.split()], check=True)


def _pod_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("POD_NAME", "")
    except (psutil.Error, OSError):  # it has ended, or is not to be looked into
        return ""


@pytest.mark.soak("a run on two nodes; make test checks virtual nodes in the same way")
def test_two_pods_are_checked_and_planted_faults_of_one_are_found(
    lab: Cluster, namespace: Namespace, start: Callable[..., KubeToy]
) -> None:
    profile = {"environment": {**namespace.options()["environment"], "NCCL_SOCKET_IFNAME": "ib7"}}
    toy = start("count", "ranks", steps=10_000, resources={"nodes": 2, "check_nodes": True}, profile=profile)
    toy.reach(1)
    checked = {event["node"]: event for event in toy.events("node_checked")}
    machines = {pod["spec"]["nodeName"] for pod in namespace.pods()}
    assert {event["host"] for event in checked.values()} == machines, "the machines' names, not the pods'"
    assert all("MiB/s from node" in event["values"]["ring"] for event in checked.values()), checked
    assert all("address: eth0" in event["values"]["interfaces"] for event in checked.values()), checked
    findings = {(event["node"], event["check"]) for event in toy.events("node_finding")}
    assert findings == {(0, "interfaces"), (1, "interfaces")}, toy.events("node_finding")
    results = doctor(namespace, "NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=ib7")
    assert results.keys() == MACHINE_CHECKS
    assert [name for name, check in results.items() if not check["ok"]] == ["interfaces"], results
    assert "unset GLOO_SOCKET_IFNAME" in results["interfaces"]["detail"]
    close_ports(namespace.pod(0))
    results = doctor(namespace, "NCCL_SOCKET_IFNAME=eth0")
    assert [name for name, check in results.items() if not check["ok"]] == ["ports"], results


@pytest.mark.soak("a node dies, which Kubernetes notices after 20 s")
def test_a_node_that_died_is_noted_by_name(lab: Cluster, start: Callable[..., KubeToy]) -> None:
    toy = start("count", "ranks", steps=10_000, resources={"nodes": "1..2"})
    until(lambda: toy.world() == 2, Patience.RUN)
    lost = next(pod["spec"]["nodeName"] for pod in toy.namespace.pods() if pod["metadata"]["name"] != toy.leader())
    lab.kill_node(lost)
    until(lambda: toy.backend.failures(toy.run.path.parent), Patience.RUN)
    assert [(each.node, each.cause) for each in toy.backend.failures(toy.run.path.parent)] == [(lost, "down")]
