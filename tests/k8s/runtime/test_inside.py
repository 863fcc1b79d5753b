"""Pods without a cluster: leader election, messages, and descriptions of pods."""

import os
import ssl
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ropewalk.cluster.membership.protocol import pack, unpack
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.supervise.allocation import AgentSpec, GroupServerSpec
from ropewalk.k8s.api.client import ApiError
from ropewalk.k8s.api.in_cluster import InClusterApi
from ropewalk.k8s.runtime import leader_election, pod_main
from ropewalk.k8s.runtime.child_processes import share_of_node
from ropewalk.k8s.runtime.leader_election import LeaderElection
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from ropewalk.k8s.runtime.pod_main import PodRuntime
from ropewalk.k8s.runtime.pod_status import (
    DEAD,
    INDEX_ANNOTATION,
    LONG_AGO,
    Pod,
    backdated_termination,
    disruption_reason,
    index_of,
    is_backdated,
    is_declared_dead,
)
from ropewalk.k8s.runtime.protocol import StartAgent, StartGroupServer
from ropewalk.k8s.runtime.timings import LOST_SECONDS, TURN_SECONDS, UNREACHABLE_SECONDS

ENDED = {"terminated": {"finishedAt": "2026-01-01T00:00:00Z", "exitCode": 85}}


class Clock:
    """Clock of leader election, and an API server with two pods; the tests set the state of the first."""

    def __init__(self) -> None:
        self.now, self.first = 100.0, {"node": "", "phase": "Pending"}

    def monotonic(self) -> float:
        return self.now

    def pods(self) -> list[dict[str, Any]]:
        return [listed(0, **self.first), listed(1, "node2", "Running")]

    def pods_of_indexes(self, indexes: Iterable[int]) -> list[dict[str, Any]]:
        wanted = {*indexes}
        return [each for each in self.pods() if index_of(each) in wanted]


def listed(index: int, node: str, phase: str) -> dict[str, Any]:
    metadata = {"name": f"p{index}", "uid": f"u{index}", "annotations": {INDEX_ANNOTATION: str(index)}}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("first", "seconds"),
    [
        ({"node": "", "phase": "Pending"}, 10),
        ({"node": "node1", "phase": "Pending"}, 30),
        ({"node": "node1", "phase": "Failed"}, 10),
    ],
)
def test_the_first_term_is_the_first_pods_as_long_as_it_may_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, str], seconds: int
) -> None:
    """Kubernetes takes it away last when a run shrinks, and the coordinator goes with its pod."""
    clock = Clock()
    clock.first = first
    monkeypatch.setattr(leader_election, "time", clock)
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    second = LeaderElection(LeaderTerms(run), Pod(name="p1", uid="u1", index=1, address="10.0.0.2"), cast(InClusterApi, clock))
    for elapsed in range(seconds):
        clock.now = 100.0 + elapsed
        assert not second.is_my_turn(None), f"after {elapsed} s"
    turns = []
    for elapsed in range(5):  # it lets the others have their turn
        clock.now = 100.0 + seconds + elapsed
        turns.append(second.is_my_turn(None))
    assert any(turns)


class Large(Clock):
    """An API server of a thousand pods after the leader is gone; counts requests."""

    def __init__(self, gone: int) -> None:
        super().__init__()
        self.living = [listed(index, "node", "Running") for index in range(gone, 1000)]
        self.asked: dict[str, int] = dict.fromkeys(("pod", "few", "all"), 0)

    def pod(self, name: str) -> dict[str, Any] | None:
        self.asked["pod"] += 1
        return next((each for each in self.living if each["metadata"]["name"] == name), None)

    def pods(self) -> list[dict[str, Any]]:
        self.asked["all"] += 1
        return self.living

    def pods_of_indexes(self, indexes: Iterable[int]) -> list[dict[str, Any]]:
        self.asked["few"] += 1
        wanted = {*indexes}
        return [each for each in self.living if index_of(each) in wanted]


@pytest.mark.parametrize(
    ("gone", "most_seconds"),
    [
        (1, 1.0),
        (5, 2.5),
        (12, 5.0),
        pytest.param(200, 45.0, marks=pytest.mark.soak("six seconds; make test runs 12 that are gone")),
    ],
)
def test_of_a_thousand_pods_few_list_the_others_and_the_lowest_living_leads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int, most_seconds: float
) -> None:
    api = Large(gone)
    monkeypatch.setattr(leader_election, "time", api)
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    last = LeaderTerm(number=1, pod="p0", uid="u0", index=0, address="10.0.0.1", port=1)
    standing = {
        index: LeaderElection(
            LeaderTerms(run), Pod(name=f"p{index}", uid=f"u{index}", index=index, address="10.0.0.2"), cast(InClusterApi, api)
        )
        for index in range(gone, 1000)
    }
    turn, ticks = None, 0
    while turn is None:
        turn = next((index for index, each in standing.items() if each.is_my_turn(last)), None)
        ticks += 1
        api.now += 0.1
        assert ticks < 10 * most_seconds, api.asked
    assert turn == gone
    assert api.asked["all"] <= (0 if gone < 10 else 60 if gone < 100 else 3000)
    assert api.asked["pod"] <= 1000 * (ticks // 10 + 1) + 10 * ticks + (0 if gone < 100 else 4000)


def test_few_of_a_thousand_pods_without_a_leader_read_the_volume_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pod_main, "time", clock)
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    pods = [Pod(name=f"p{index}", uid=f"u{index}", index=index, address="10.0.0.2") for index in (0, 9, 10, 999)]
    runtimes = [PodRuntime(run, each, cast(InClusterApi, clock)) for each in pods]
    reads = [0] * len(runtimes)
    for _ in range(100):
        clock.now += 0.11
        reads = [count + runtime._may_seek() for count, runtime in zip(reads, runtimes, strict=True)]
    assert reads == [100, 100, 10, 10]


def test_a_pod_that_leads_is_not_succeeded_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Large(0)
    monkeypatch.setattr(leader_election, "time", api)
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    second = LeaderElection(LeaderTerms(run), Pod(name="p1", uid="u1", index=1, address="10.0.0.2"), cast(InClusterApi, api))
    claim = LeaderTerm(number=1, pod="p0", uid="u0", index=0, address="10.0.0.1", port=1)
    for _ in range(20):
        api.now += 1
        assert not second.is_my_turn(claim)
    other = replace(claim, uid="of an earlier pod of this name")
    turns = []
    for _ in range(5):
        api.now += 1
        turns.append(second.is_my_turn(other))
    assert any(turns)


@pytest.mark.parametrize(("gone", "seconds"), [(True, UNREACHABLE_SECONDS), (False, LOST_SECONDS)])
def test_a_leader_that_closes_its_connections_is_succeeded_sooner_than_one_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool, seconds: float
) -> None:
    """The API server does not know yet that its pod is gone."""
    api = Large(0)
    monkeypatch.setattr(leader_election, "time", api)
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    second = LeaderElection(LeaderTerms(run), Pod(name="p1", uid="u1", index=1, address="10.0.0.2"), cast(InClusterApi, api))
    claim, began = LeaderTerm(number=1, pod="p0", uid="u0", index=0, address="10.0.0.1", port=1), api.now
    second.unreachable(claim, gone=gone)
    while not second.is_my_turn(claim):
        api.now += 0.1
    assert seconds < api.now - began < seconds + 2 * TURN_SECONDS


def test_the_authorities_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[str] = []

    def create(cafile: str) -> ssl.SSLContext:
        created.append(cafile)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr("ropewalk.k8s.api.in_cluster.ssl.create_default_context", create)
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    variables = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": "1",
        "POD_NAMESPACE": "n",
        "ROPEWALK_JOB": "j",
    }
    api = InClusterApi(variables, tmp_path)
    for _ in range(3):
        with pytest.raises(ApiError, match="does not answer"):
            api.pods()
    assert created == [str(tmp_path / "ca.crt")]
    os.utime(tmp_path / "ca.crt", (1, 1))  # it was replaced
    with pytest.raises(ApiError, match="does not answer"):
        api.pods()
    assert len(created) == 2


SPEC = AgentSpec(run_path="runs/r", attempt=3, node=12, nodes="1..4", address="fd00::1")


def test_an_agent_is_the_same_on_the_other_side() -> None:
    message = unpack(pack(StartAgent.of(7, SPEC)))
    assert StartAgent.model_validate(message).agent == 7
    assert StartAgent.model_validate(message).spec("runs/r") == SPEC
    server = GroupServerSpec(run_path="runs/r", attempt=3, nodes="1..4", expected=3, host="10.0.0.1", term=2)
    assert StartGroupServer.model_validate(unpack(pack(StartGroupServer.of(8, server)))).spec("runs/r") == server


@pytest.mark.parametrize(
    ("name", "value"),
    [("nodes", "2; rm -rf /"), ("node", "../../x"), ("address", "--help"), ("attempt", "")],
)
def test_no_message_holds_a_word_of_a_command_line(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        StartAgent.model_validate({**StartAgent.of(7, SPEC), name: value})


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "creationTimestamp": "2026-01-01T10:00:00Z"}, "status": {"phase": "Running", **status}}


@pytest.mark.parametrize(
    ("conditions", "job", "why"),
    [
        ([], None, "cancelled"),
        ([], {"metadata": {"deletionTimestamp": "now"}, "spec": {}}, "cancelled"),
        ([], {"metadata": {}, "spec": {"suspend": True}}, "preempted"),
        (["PreemptionByScheduler"], {"metadata": {}, "spec": {}}, "preempted"),
        (["EvictionByEvictionAPI"], {"metadata": {}, "spec": {}}, "evicted, as by a drain of its node (EvictionByEvictionAPI)"),
        ([], {"metadata": {}, "spec": {}}, "its pod was deleted"),
        ([], {"metadata": {}, "spec": {}, "status": {"startTime": "2026-01-01T09:00:00Z"}}, "its pod was deleted"),
        ([], {"metadata": {}, "spec": {}, "status": {"startTime": "2026-01-01T10:00:01Z"}}, "preempted"),
        ([], {"metadata": {}, "spec": {}, "status": {"conditions": [{"type": "Suspended", "status": "True"}]}}, "preempted"),
    ],
)
def test_why_a_pod_has_to_go(conditions: list[str], job: dict[str, Any] | None, why: str) -> None:
    messages = [{"type": "DisruptionTarget", "status": "True", "reason": reason} for reason in conditions]
    assert disruption_reason(pod(conditions=messages), job) == why


def test_a_dead_pod_ended_long_ago() -> None:
    dead = pod(containerStatuses=[{"name": "main", "state": {"running": {}}}], conditions=[{"type": "Ready", "status": "True"}])
    assert not is_backdated(dead)
    dead["status"] |= backdated_termination(dead, DEAD)
    dead["metadata"]["deletionTimestamp"] = "now"
    assert is_backdated(dead)
    assert is_declared_dead(dead)
    left = pod(phase="Failed", containerStatuses=[{"name": "main", "state": ENDED}])
    end = backdated_termination(left, DEAD)["containerStatuses"][0]["state"]["terminated"]
    assert end == {"finishedAt": LONG_AGO, "startedAt": LONG_AGO, "exitCode": 85}, "what its node has told stays"


@pytest.mark.parametrize(("gpus", "ranks", "share"), [(0, None, ("1", "0")), (4, None, ("4", "4")), (4, 2, ("2", "4"))])
def test_a_pods_processes_are_told_their_share_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, ranks: int | None, share: tuple[str, str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    record = {"job": "toy", "engine": "ranks", "config": {}, "resources": {"gpus": gpus, "ranks_per_node": ranks}}
    values = share_of_node(RunDir.create("toy", record, tmp_path))
    assert (values["ROPEWALK_NODE_CPUS"], values["ROPEWALK_NODE_GPUS"]) == share
    assert values["OMP_NUM_THREADS"] == "1"
