"""Runs that cannot start: one clear line each, in Kubernetes' own words and with the remedy, within ten seconds."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.spec import RunState
from ropewalk.k8s.api.client import Kubernetes
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.submission.preflight import quotas
from tests.k8s.cluster import Namespace
from tests.k8s.toy import KubeToy
from tests.patience import Patience, Stopwatch, until

Start = Callable[..., KubeToy]

SECONDS = 10.0


SECRET_VOLUME = {
    "spec": {
        "volumes": [{"name": "login", "secret": {"secretName": "gone"}}],
        "containers": [{"name": "ropewalk", "volumeMounts": [{"name": "login", "mountPath": "/login"}]}],
    }
}


@contextmanager
def quickly() -> Iterator[None]:
    watch = Stopwatch()
    yield
    assert watch.seconds < SECONDS


def told(run: KubeToy, message: str = "") -> BackendState:
    """The first state that says why, in these words."""
    observed: list[BackendState] = []

    def says_why() -> bool:
        observed.append(run.state)
        return bool(observed[-1].reason) and message in observed[-1].reason

    try:
        until(says_why, Patience.SIGNAL)
    except AssertionError:
        raise AssertionError(f"{message!r} is not in {observed[-1]}") from None
    return observed[-1]


def jobs(namespace: Namespace) -> list[Any]:
    return [job for job in namespace.items("Job") if _stays(job)]


def _stays(job: dict[str, Any]) -> bool:
    return "deletionTimestamp" not in job["metadata"]


# --- refused before anything is created


@pytest.mark.parametrize(
    ("profile", "resources", "message"),
    [
        ({"claim": "nope"}, {}, r"no PersistentVolumeClaim 'nope' .*\(existing: runs\).*correct `claim`"),
        ({"namespace": "nope"}, {}, "no namespace 'nope'.*correct `namespace`"),
        ({"service_account": "nope"}, {}, "no ServiceAccount 'nope'.*apply k8s/manifests/rbac.yaml"),
        ({"queue": "nope"}, {}, "no LocalQueue 'nope'"),
        ({"priority_class": "nope"}, {}, "no PriorityClass 'nope'"),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_what_the_cluster_does_not_have(
    namespace: Namespace, start: Start, profile: dict[str, Any], resources: dict[str, Any], message: str
) -> None:
    run = start(profile=profile, resources=resources, submit=False)
    with quickly(), pytest.raises(BackendError, match=message):
        run.backend.submit(run.run, run.resources)
    assert run.state.state is RunState.FAILED
    assert run.state.reason.startswith("never started: there is no ")
    assert jobs(namespace) == []


def test_a_context_that_is_not_there(start: Start) -> None:
    run = start(profile={"context": "nope"}, submit=False)
    with quickly(), pytest.raises(ConfigError, match=r"context 'nope': not in .*; it has "):
        run.backend.submit(run.run, run.resources)


def quota(namespace: Namespace, **hard: str) -> None:
    spec = {"hard": hard}
    metadata = {"name": "small", "namespace": namespace.name}
    namespace.cluster.rest.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": spec})

    def counted() -> bool:
        result = namespace.items("ResourceQuota")
        return bool(result[0].get("status", {}).get("hard"))

    until(counted, Patience.SIGNAL)


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ({}, True),
        ({"scopes": ["NotBestEffort", "NotTerminating"]}, True),
        ({"scopes": ["BestEffort"]}, False),
        ({"scopes": ["Terminating"]}, False),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}, False),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["mine"]}]}}, True),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}}, True),
    ],
)
def test_a_quota_holds_for_the_pods_of_its_scopes(spec: dict[str, Any], counts: bool) -> None:
    class Quotas:
        def list(self, kind: str) -> list[dict[str, Any]]:
            return [{"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}, **spec}}]

    assert bool(quotas(cast("Kubernetes", Quotas()), K8sProfile(priority_class="mine"))) == counts


def test_a_quota_of_nothing(namespace: Namespace, start: Start) -> None:
    quota(namespace, **{"requests.cpu": "0"})
    run = start(submit=False, resources={"nodes": 2})
    with quickly(), pytest.raises(BackendError, match=r"quota 'small' .* allows 0 CPU, the run needs 2 CPU; request less"):
        run.backend.submit(run.run, run.resources)


def test_a_quota_that_others_use_up(namespace: Namespace, start: Start) -> None:
    quota(namespace, **{"requests.cpu": "2"})
    first = start(steps=10_000, resources={"nodes": 1, "cpus": 2}, pause=0.1)
    until(lambda: bool(namespace.pods()), Patience.SIGNAL)
    second = start(resources={"cpus": 1})
    with quickly():
        state = told(second, "exceeded quota")
    assert state.state is RunState.PENDING
    assert "exceeded quota: small, requested: requests.cpu=1, used: requests.cpu=2" in state.reason
    assert state.reason.endswith("`kubectl describe quota`")
    assert first.backend.start_estimate(second.run, second.resources) == "It would wait: 1 CPU more needed in quota small."


def test_who_may_not(namespace: Namespace, start: Start, tmp_path: Path) -> None:
    namespace.kubectl("create", "serviceaccount", "nobody")
    token = namespace.kubectl("create", "token", "nobody").strip()
    config = yaml.safe_load(Path(namespace.cluster.kubeconfig).read_text())
    config["users"][0]["user"] = {"token": token}
    path = tmp_path / "nobody"
    path.write_text(yaml.safe_dump(config))
    run = start(profile={"kubeconfig": str(path)}, submit=False)
    with (
        quickly(),
        pytest.raises(BackendError, match=r"cannot create resource .jobs.*ask for the permissions listed in k8s/manifests/rbac"),
    ):
        run.backend.submit(run.run, run.resources)
    check = next(check for check in run.backend.checks() if check.name == "rights")
    assert (check.ok, "you may not create jobs" in check.detail) == (False, True)


# --- seen as soon as somebody looks: it can never start; as soon as its owner acts it has ended, and nothing of it stays


NEVER: tuple[tuple[dict[str, Any], str], ...] = (
    ({"image": "No Image"}, "couldn't parse image name.*correct `image` in the cluster's profile"),
    ({"image": "local.test/nope:1", "image_pull_policy": "Never"}, "image .*local.test/nope:1.*correct `image`"),
    ({"python": "/no/python"}, "/no/python: no such file.*correct `python` in the cluster's profile"),
    ({"secrets": ["nope"]}, 'secret "nope" not found; create the Secret'),
    ({"pod": SECRET_VOLUME}, 'secret "gone" not found; create the Secret'),
    ({"pod": {"spec": {"hostNetwork": True}}}, 'violates PodSecurity "restricted'),
)


def test_what_can_never_start(namespace: Namespace, start: Start) -> None:
    runs = [start(profile=profile) for profile, _ in NEVER]
    with quickly():
        for run in runs:
            told(run, "never started: ")
    for run, (_, message) in zip(runs, NEVER, strict=True):
        assert run.state.reason.startswith("never started: ")
        assert re.search(message, run.state.reason), run.state.reason
        assert run.run.last_outcome() is None
    assert len(jobs(namespace)) == len(runs), "who looks changes nothing"
    for run in runs:
        state = run.backend.settle([run.run])[run.run.id]
        outcome = run.run.last_outcome()
        assert outcome is not None, state
        assert (state.state, outcome.state, outcome.cause) == (RunState.FAILED, RunState.FAILED, state.reason)
    assert jobs(namespace) == []


# --- it waits, and says what for


WAITING: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
    ({"node_selector": {"a": "b"}}, {}, "didn't match Pod's node affinity/selector; correct `node_selector`"),
    ({}, {"cpus": 500}, "Insufficient cpu; request less per node"),
    ({}, {"gpus": 3}, "Insufficient nvidia.com/gpu"),
    ({"devices": {"rdma/hca": 1}}, {}, "Insufficient rdma/hca"),
)


def test_what_waits_for_room(start: Start) -> None:
    runs = [start(profile=profile, resources=resources) for profile, resources, _ in WAITING]
    with quickly():
        states = [told(run, message) for run, (*_, message) in zip(runs, WAITING, strict=True)]
    assert {(state.state, state.word) for state in states} == {(RunState.PENDING, "Unschedulable")}


def test_a_registry_that_is_away(start: Start) -> None:
    run = start(profile={"image": "nowhere.invalid/ropewalk:1"})
    with quickly():
        state = told(run)
    assert state.state is RunState.PENDING
    assert "nowhere.invalid/ropewalk:1" in state.reason
