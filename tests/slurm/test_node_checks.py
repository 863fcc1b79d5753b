"""Node checks on a real Slurm cluster: of a run's nodes before its first group, and `doctor` on a node."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.slurm.toy import SlurmToy


@pytest.mark.soak("a run on two nodes; make test checks virtual nodes in the same way")
def test_two_nodes_of_a_job_are_checked(slurm_lab: Lab, start: Callable[..., SlurmToy]) -> None:
    toy = start(steps=3, resources={"nodes": 2, "check_nodes": True}, profile={"environment": {"NCCL_SOCKET_IFNAME": "ib7"}})
    assert toy.finish().state is RunState.SUCCEEDED, toy.said()
    checked = {event["node"]: event for event in toy.events("node_checked")}
    assert {event["host"] for event in checked.values()} == {toy.host_of(0), toy.host_of(1)}
    assert all("MiB/s from node" in event["values"]["ring"] for event in checked.values()), checked
    assert sum("visibility" in event["values"] for event in checked.values()) == 1
    findings = {(event["node"], event["check"]) for event in toy.events("node_finding")}
    assert findings == {(0, "interfaces"), (1, "interfaces")}, "and nothing else is wrong"


@pytest.mark.soak("a job on a node; make test has doctor on this machine")
def test_doctor_checks_a_node(slurm_lab: Lab) -> None:
    doctor = [sys.executable, "-m", "ropewalk.jobs.cli", "doctor", "--json"]
    command = ["srun", "--nodes=1", "env", "GLOO_SOCKET_IFNAME=ib7", *doctor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {"clock", "shared memory", "ports", "interfaces", "file system"} <= checks.keys()
    assert not checks["interfaces"]["ok"]
    assert "unset GLOO_SOCKET_IFNAME" in checks["interfaces"]["detail"]
    assert all(checks[name]["ok"] for name in ("clock", "ports", "file system")), checks
