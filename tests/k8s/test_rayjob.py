"""Runs of the ray engine as RayJobs: carried by their head, and carried on by the next one."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from cluster.config import Resources
from cluster.engines.ports import free_port
from cluster.errors import BackendError
from cluster.spec import Engine, RunState
from k8s.api.client import ForbiddenError, Kubernetes, NotFoundError, connect
from k8s.manifests.workload import ray_shape, shape_of
from k8s.profile import K8sProfile
from k8s.ray_answers import FAILED, REQUEST_SECONDS, RUNNING, Answers
from tests.k8s.cluster import Cluster, Namespace
from tests.k8s.queueing import drop_queue, make_queue, urgent
from tests.k8s.test_submit import NOWHERE, Unlucky
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

Start = Callable[..., KubeToy]

KINDS = "rayjob,raycluster,job,service,pod,configmap"
AS_RAYJOB = {"ray": "rayjob"}


def left(namespace: Namespace) -> list[str]:
    """What of ropewalk's is in the namespace and stays."""
    found = namespace.cluster.items(KINDS, "--namespace", namespace.name, "-l", "ropewalk/run")
    return [f"{each['kind']}/{each['metadata']['name']}" for each in found if "deletionTimestamp" not in each["metadata"]]


def status(namespace: Namespace) -> dict[str, Any]:
    """Of the namespace's one RayJob."""
    found: dict[str, Any] = namespace.cluster.items("rayjobs", "--namespace", namespace.name)[0].get("status") or {}
    return found


@pytest.fixture
def queue(namespace: Namespace) -> Iterator[dict[str, str]]:
    """Keys of a profile for a queue of two CPUs."""
    yield {"queue": make_queue(namespace, 2), "queue_priority": f"{namespace.name}-low", **AS_RAYJOB}
    drop_queue(namespace)


@pytest.fixture
def collected(namespace: Namespace) -> None:
    """Pods of a RayCluster that is deleted are too: a new cluster sees to that once it has looked for new kinds, every 30 s."""
    namespace.cluster.need("ray.io", "KubeRay")
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "none", "image": "none"}]}}}
    metadata = {"name": "owner", "namespace": namespace.name}
    owner = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata}
    namespace.cluster.apply({**owner, "spec": {"suspend": True, "headGroupSpec": head}})
    uid = namespace.kubectl("get", "raycluster", "owner", "-o", "jsonpath={.metadata.uid}")
    reference = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "owner", "uid": uid}
    owned = {**metadata, "name": "owned", "ownerReferences": [reference]}
    namespace.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": owned})
    namespace.kubectl("delete", "raycluster", "owner")
    until(lambda: "owned" not in namespace.kubectl("get", "configmaps"), Patience.STEP)


# --- on KubeRay


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.usefixtures("alone_with_ray", "collected")
def test_a_preempted_run_is_carried_on_by_the_next_cluster(start: Start, namespace: Namespace, queue: dict[str, str]) -> None:
    run = start(engine="ray", steps=120, profile=queue)
    run.reach(5, Patience.CLUSTER)
    urgent(namespace, "urgent", cpus=2)
    until(lambda: run.run.outcome(1), Patience.STEP)
    until(lambda: run.state.state is RunState.REQUEUED and "queue team" in run.state.reason, Patience.START)
    namespace.kubectl("delete", "job", "urgent", "--wait=false")
    assert run.finish().state is RunState.SUCCEEDED, run.said()
    assert run.outcomes() == [("PREEMPTED", 85), ("SUCCEEDED", 0)]
    assert run.steps() == list(range(1, 121)), "a preemption loses no step and repeats none"
    until(lambda: status(namespace).get("jobStatus") == "SUCCEEDED", Patience.START)
    until(lambda: left(namespace) == [f"RayJob/{run.run.id}-1"], Patience.START)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.usefixtures("alone_with_ray")
def test_cancelled(start: Start, namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(engine="ray", steps=10_000, resources={"nodes": 2})
    waiting = start(engine="ray", profile=NOWHERE, resources={"nodes": 2})
    assert [each.run.attempt_details(1)["kind"] for each in (run, waiting)] == ["RayJob"] * 2, "the cluster has KubeRay"
    run.reach(2, Patience.CLUSTER)
    until(lambda: "didn't match Pod's node affinity" in waiting.state.reason, Patience.START)
    asked: list[str] = []
    real = run.backend.kube.list
    monkeypatch.setattr(run.backend.kube, "list", lambda kind, *words, **more: asked.append(kind) or real(kind, *words, **more))
    assert run.state.state is RunState.RUNNING
    assert asked == ["Job", "RayJob"]
    run.backend.cancel_many([run.run, waiting.run])
    assert (waiting.state.state, waiting.state.reason) == (RunState.CANCELLED, "cancelled while it waited")
    outcome = run.finish()
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled after saving")
    until(lambda: left(namespace) == [], Patience.STEP)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.usefixtures("alone_with_ray")
def test_the_node_of_the_head_dies_and_never_returns(start: Start, lab: Cluster, namespace: Namespace) -> None:
    run = start(engine="ray", steps=10_000, pause=0.1, profile=AS_RAYJOB, resources={"nodes": 2})
    run.reach(2, Patience.CLUSTER)
    lab.kill_node(run.node_of(run.carrier()))
    run.reach_attempt(2, Patience.CLUSTER)
    print(f"standstill of {run.standstill(2):.1f} s")
    run.backend.cancel(run.run)
    assert run.finish().state is RunState.CANCELLED, run.said()
    assert run.outcomes() == [("REQUEUED", 143), ("CANCELLED", 85)]
    assert run.steps() == list(range(1, len(run.steps()) + 1))


def test_of_one_pod_it_is_an_indexed_job(start: Start) -> None:
    run = start(engine="ray", profile=NOWHERE)
    assert "kind" not in run.run.attempt_details(1), "though the cluster has KubeRay"
    assert run.backend.start_estimate(run.run, run.resources).startswith("An Indexed Job: a single-pod RayJob is not replaced")


def test_answers_that_are_lost(namespace: Namespace, start: Start) -> None:
    run = start(engine="ray", submit=False, profile={**NOWHERE, **AS_RAYJOB})
    run.backend.kube = Unlucky(run.backend.kube, losses=1, done=True)
    run.backend.submit(run.run, run.resources)
    assert [name for name in left(namespace) if name.startswith("RayJob")] == [f"RayJob/{run.run.id}-1"]
    with pytest.raises(BackendError, match="already has an active Job"):
        run.backend.submit(run.run, run.resources)
    assert run.run.attempts() == [1]


def test_rayjobs_that_ended_long_ago_go_with_the_next_submission(namespace: Namespace, start: Start) -> None:
    old, open_still = (start(engine="ray", profile={**NOWHERE, **AS_RAYJOB}) for _ in range(2))
    others = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "of-others", "namespace": namespace.name}}
    namespace.cluster.apply({**others, "spec": {"clusterSelector": {"ray.io/cluster": "theirs"}}})
    ended = {"status": {"jobDeploymentStatus": "Complete", "endTime": "2020-01-01T00:00:00Z", "jobStatus": "SUCCEEDED"}}
    for name in (f"{old.run.id}-1", "of-others"):
        until(lambda name=name: name in namespace.kubectl("get", "rayjobs"), Patience.START)
        namespace.kubectl("patch", "rayjob", name, "--subresource=status", "--type=merge", "-p", json.dumps(ended))
    new = start(engine="ray", profile={**NOWHERE, **AS_RAYJOB})
    there = {each["metadata"]["name"] for each in namespace.cluster.items("rayjobs", "--namespace", namespace.name)}
    assert there - {f"{old.run.id}-1"} == {f"{open_still.run.id}-1", f"{new.run.id}-1", "of-others"}
    until(lambda: f"{old.run.id}-1" not in namespace.kubectl("get", "rayjobs"), Patience.START)


# --- whether there is KubeRay


def test_who_may_not_create_one(namespace: Namespace, tmp_path: Path) -> None:
    namespace.kubectl("create", "serviceaccount", "nobody")
    config = yaml.safe_load(namespace.cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": namespace.kubectl("create", "token", "nobody").strip()}
    (tmp_path / "nobody").write_text(yaml.safe_dump(config))
    profile = K8sProfile.model_validate(namespace.options(kubeconfig=str(tmp_path / "nobody")))
    kube = connect(profile)
    shape = ray_shape(profile, lambda: kube)
    kube.http.close()
    assert shape.kind == "Job"
    assert 'cannot create resource "rayjobs"' in shape.why


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NotFoundError("the server could not find the requested resource"), "there is no KubeRay"),
        (ForbiddenError("rayjobs is forbidden"), "rayjobs is forbidden"),
        (BackendError('strict decoding error: unknown field "spec.rayClusterSpec.authOptions"'), "authOptions"),
    ],
)
def test_a_cluster_that_takes_none(error: BackendError, why: str) -> None:
    def nowhere() -> Kubernetes:
        raise error

    assert ray_shape(K8sProfile(), nowhere).kind == "Job"
    assert why in ray_shape(K8sProfile(), nowhere).why
    assert [ray_shape(K8sProfile(ray=word), nowhere).kind for word in ("rayjob", "indexed")] == ["RayJob", "Job"]


@pytest.mark.parametrize(
    ("nodes", "profile", "kind"),
    [
        ("1", {}, "Job"),
        ("2", {}, "RayJob"),
        ("1..2", {}, "RayJob"),
        ("1", {"ray": "rayjob"}, "RayJob"),
        ("2", {"ray": "indexed"}, "Job"),
    ],
)
def test_whoever_has_one_pod_is_no_rayjob(nodes: str, profile: dict[str, str], kind: str) -> None:
    resources = Resources.model_validate({"nodes": nodes})
    takes_all = mock.Mock(namespace="team")
    assert shape_of(Engine.RAY, resources, K8sProfile.model_validate(profile), lambda: takes_all).kind == kind


# --- what the head answers


def ask(port: int, path: str, token: str = "", method: str = "GET") -> tuple[int, Any]:
    headers = {"x-ray-authorization": f"Bearer {token}"}
    data = b'{"entrypoint": "touch /tmp/pwned"}' if method == "POST" else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def head() -> Iterator[tuple[Answers, int]]:
    port = free_port("127.0.0.1")
    answers = Answers("127.0.0.1", port, "secret", "python -m k8s.ray_head /runs/x")
    yield answers, port
    answers.close()


def test_strangers_get_no_answer(head: tuple[Answers, int]) -> None:
    for token in ("", "wrong", "secret2"):
        for method in ("GET", "POST"):
            assert ask(head[1], "/api/jobs/x", token, method)[0] == 401


def said_to(port: int, *lines: str) -> bytes:
    """The first line of the answer to a request without a body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, connection.makefile("rb") as answer:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return answer.readline()


def test_a_body_is_read_of_nobody_who_has_no_token(head: tuple[Answers, int]) -> None:
    """One that never comes would hold a thread up for as long as it likes."""
    began = time.monotonic()
    assert b" 401 " in said_to(head[1], "POST /api/jobs/ HTTP/1.1", "Host: x", "Content-Length: 1000")
    assert time.monotonic() - began < REQUEST_SECONDS


@pytest.mark.parametrize("length", ["-1", "many"])
def test_a_length_that_is_none(head: tuple[Answers, int], length: str) -> None:
    words = ("POST /api/jobs/ HTTP/1.1", "Host: x", "Authorization: Bearer secret", f"Content-Length: {length}")
    assert b" 200 " in said_to(head[1], *words)


def test_without_a_token_nobody_is_answered() -> None:
    port = free_port("127.0.0.1")
    answers = Answers("127.0.0.1", port, "", "python -m k8s.ray_head /runs/x")
    assert ask(port, "/api/jobs/x")[0] == 401
    answers.close()


def test_the_job_is_what_the_run_is(head: tuple[Answers, int]) -> None:
    answers, port = head
    _, job = ask(port, "/api/jobs/any-name", "secret")
    assert (job["submission_id"], job["status"], "end_time" in job) == ("any-name", RUNNING, False)
    assert ask(port, "/api/jobs/any-name/stop", "secret", "POST") == (200, {"stopped": True})
    assert ask(port, "/api/jobs/", "secret", "POST")[0] == 200
    answers.conclude(FAILED, "rank 0: ZeroDivisionError")
    _, job = ask(port, "/api/jobs/any-name", "secret")
    assert (job["status"], job["message"], job["end_time"] >= job["start_time"]) == (FAILED, "rank 0: ZeroDivisionError", True)
    assert ask(port, "/api/serve/applications/", "secret")[0] == 404
