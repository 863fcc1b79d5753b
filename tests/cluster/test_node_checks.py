"""Checks of nodes: planted faults are found and named with a remedy, and what works gives no finding."""

import errno
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from ropewalk.cluster.agent import node_ring
from ropewalk.cluster.agent.node_checks import (
    GPUS,
    Finding,
    check_clock,
    check_files,
    check_gpus,
    check_interfaces,
    check_port,
    check_shared_memory,
)
from ropewalk.cluster.agent.node_ring import RingNode, judge_ring, ring, run_apart
from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.run.node_ledger import read_failures, record_findings
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.doctor import checks
from tests.cluster.conftest import ToyRun

LOOPBACK = {"lo": [SimpleNamespace(address="127.0.0.1")], "eth0": [SimpleNamespace(address="10.0.0.1")]}


def fails(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, "planted")

    return fail


def usage(free_mib: int) -> Callable[[Path], Any]:
    return lambda _: SimpleNamespace(free=free_mib << 20)


def of_ring(*every: tuple[float, float], right: bool = True) -> Finding:
    """The finding about node 2 of four whose times and rates are given, if there is one."""
    findings = list(judge_ring("gloo", [0, 1, 2, 3], 2, list(every), right=right))
    return next((finding for finding in findings if finding.remedy), findings[0])


EVEN, LATE, SLOW = (1000.0, 900.0), (1007.5, 900.0), (1000.0, 90.0)
FAULTS: dict[str, tuple[Callable[[Path], Finding], str, bool]] = {  # check, words of the value, whether the machine is the cause
    "clock of a file server": (lambda folder: check_clock(folder, lambda: time.time() + 90), "90.0 s ahead of the clock", True),
    "clock of other nodes": (lambda _: of_ring(EVEN, EVEN, LATE, EVEN), "7.5 s ahead of the other nodes", True),
    "little shared memory": (lambda folder: check_shared_memory(folder, usage(64)), "64 MiB free", True),
    "no shared memory": (lambda folder: check_shared_memory(folder / "none"), "No such file or directory", True),
    "address of another machine": (lambda _: check_port("203.0.113.1"), "203.0.113.1: ", False),
    "firewall": (lambda _: check_port("127.0.0.1", fails(errno.ECONNREFUSED)), "planted", False),
    "interface that is not there": (
        lambda _: check_interfaces("10.0.0.1", {"NCCL_SOCKET_IFNAME": "ib0,ib1"}, lambda: LOOPBACK),
        "address: eth0, NCCL_SOCKET_IFNAME: ib0,ib1",
        False,
    ),
    "no interface": (lambda _: check_interfaces("10.9.9.9", {}, lambda: LOOPBACK), "address: none", False),
    "rename": (lambda folder: check_files(folder, replace=fails(errno.EPERM)), "planted", False),
    "locks": (lambda folder: check_files(folder, lock=lambda *_: None), "two processes got the same lock", False),
    "no locks": (lambda folder: check_files(folder, lock=fails(errno.ENOLCK)), "planted", False),
    "slow link": (lambda _: of_ring(EVEN, EVEN, SLOW, EVEN), "90 MiB/s from node 1 over gloo", False),
    "changed data": (lambda _: of_ring(EVEN, EVEN, EVEN, EVEN, right=False), "900 MiB/s from node 1", False),
    "missing GPU": (lambda _: check_gpus(2, count=lambda: 1), "1 of 2 GPUs can be seen", True),
    "wrong GPU": (lambda _: check_gpus(2, lambda: 2, lambda device: device == 0), "GPU 1: computed a wrong product", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_with_its_remedy(tmp_path: Path, fault: str) -> None:
    check, value, machine = FAULTS[fault]
    finding = check(tmp_path)
    assert value in finding.value
    assert (bool(finding.remedy), finding.machine) == (True, machine)
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_what_works_gives_no_finding(tmp_path: Path) -> None:
    findings = [
        check_clock(tmp_path),
        check_shared_memory(tmp_path, usage(512)),
        check_port("127.0.0.1"),
        check_interfaces("10.0.0.1", {"NCCL_SOCKET_IFNAME": "^lo", "GLOO_SOCKET_IFNAME": "eth0"}, lambda: LOOPBACK),
        check_files(tmp_path),
        check_gpus(1, lambda: 1, lambda _: True),
        of_ring(EVEN, EVEN, EVEN, EVEN),
    ]
    assert [finding for finding in findings if finding.remedy] == []
    two = list(judge_ring("gloo", [0, 3], 1, [EVEN, LATE], right=True))
    assert [finding.machine for finding in two] == [False, False], "of two nobody knows which clock is wrong"


def test_a_file_that_is_not_seen_and_a_node_that_does_not_answer_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_ring, "MEET_SECONDS", 0.3)

    def at(node: int) -> list[Finding]:
        return list(ring(RingNode(folder=tmp_path, runs=tmp_path, node=node, least=2, nodes=2, address="127.0.0.1", gpus=0)))

    assert [finding.value for finding in at(1) if finding.remedy] == ["node 0 did not join"]
    assert [finding.check for finding in at(0) if finding.remedy] == ["ring"], "the store of node 1 is gone"
    (tmp_path / "ring.json").write_text("")  # a name that is seen before its content
    assert [finding.check for finding in at(0) if finding.remedy] == ["visibility"]


def test_an_elastic_run_without_its_node_0_gives_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Barrier(2)

    def send_around(_: RingNode, members: list[int], __: object) -> list[Finding]:
        together.wait(10)  # the node that has the store does not leave before the other has read it
        return [Finding("members", str(members))]

    monkeypatch.setattr(node_ring, "MEET_SECONDS", 4.0)
    monkeypatch.setattr(node_ring, "_send_around", send_around)

    def at(node: int) -> list[Finding]:
        return list(ring(RingNode(folder=tmp_path, runs=tmp_path, node=node, least=1, nodes=3, address="127.0.0.1", gpus=0)))

    with ThreadPoolExecutor() as pool:
        findings = list(pool.map(at, [1, 2]))
    assert [finding for of_node in findings for finding in of_node if finding.remedy] == []
    assert [of_node[-1].value for of_node in findings] == ["[1, 2]", "[1, 2]"]
    assert sorted(len(of_node) for of_node in findings) == [1, 2], "one has the store, the other sees its file"


def hang(results: Connection, _: object) -> None:
    results.send("clock")
    results.send(Finding("clock", "0.0 s"))
    results.send(GPUS)
    time.sleep(60)


def test_a_check_that_hangs_is_a_finding() -> None:
    findings = run_apart(hang, None, 3.0)
    assert [(each.check, bool(each.remedy), each.machine) for each in findings] == [("clock", False, False), (GPUS, True, True)]


def test_nodes_are_checked_before_the_first_group_and_findings_reach_why_and_the_ledger(
    toy: Callable[..., ToyRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7")  # on virtual nodes gloo takes lo
    run = toy("count", "ranks", steps=3, resources={"nodes": 2, "check_nodes": True})
    assert run.finish().state is RunState.SUCCEEDED
    events = run.run.read_events()
    checked = {event["node"]: event for event in events if event["event"] == "node_checked"}
    assert sorted(checked) == [0, 1]
    assert all("MiB/s from node" in event["values"]["ring"] and event["seconds"] < 20 for event in checked.values())
    findings = [event for event in events if event["event"] == "node_finding"]
    assert {(event["node"], event["check"]) for event in findings} == {(0, "interfaces"), (1, "interfaces")}
    formed = next(number for number, event in enumerate(events) if event["event"] == "group_formed")
    assert max(number for number, event in enumerate(events) if event["event"] == "node_checked") < formed
    evidence = diagnose(run.run, BackendState(state=RunState.SUCCEEDED)).evidence
    assert any("check of node 1" in line and "unset NCCL_SOCKET_IFNAME" in line for line in evidence)
    assert not read_failures(run.run.path.parent, "local"), "no machine is the cause"
    run.run.event("node_finding", **{**findings[0], "node": 1, "machine": True})
    record_findings(run.run, 1, {0: "first", 1: "second"})
    assert [(each.node, each.cause) for each in read_failures(run.run.path.parent, "None")] == [("second", "check")]


def test_doctor_checks_this_machine_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    by_name = {check.name: check for check in checks("local")}
    assert {"clock", "shared memory", "ports", "interfaces", "file system"} <= by_name.keys()
    assert not by_name["interfaces"].ok
    assert "unset GLOO_SOCKET_IFNAME" in by_name["interfaces"].detail
