"""Messages of Kubernetes about pods that do not start become one line with the remedy. The sentences are Kubernetes' own."""

from collections.abc import Sequence
from typing import Any

import pytest

from ropewalk.cluster.backends.base import Waiting
from ropewalk.cluster.config import Resources
from ropewalk.k8s.api.client import ForbiddenError, NotFoundError
from ropewalk.k8s.api.objects import amount, format_amount
from ropewalk.k8s.profile import K8sProfile
from ropewalk.k8s.status.pending_reasons import pod_reason, remedy_of, simplify, workload_reason
from ropewalk.k8s.status.start_estimate import Capacity, sentence
from ropewalk.k8s.status.waiting import explain_waiting

SENTENCES = {
    'Failed to pull image "r.example/x:1": r.example/x:1: not found': ("correct `image`", True),
    'failed to pull and unpack image "x": pull access denied, authorization failed': (
        "correct `image`",
        True,
    ),
    'Failed to pull image "x": dial tcp: lookup r.example: i/o timeout': ("correct `image`", False),
    '0/3 nodes are available: persistentvolumeclaim "nope" not found.': ("create the claim", True),
    "0/3 nodes are available: 3 Insufficient cpu.": ("request less", False),
    "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.": ("request less", False),
    "0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}.": ("add `tolerations`", False),
    'Error: secret "wandb" not found': ("create the Secret", True),
    "exceeded quota: q, requested: cpu=2, used: cpu=7, limited: cpu=8": ("wait until other jobs", False),
    "failed quota: q: must specify memory for: ropewalk": ("set resources.memory_gib", True),
    'pods "x" is forbidden: violates PodSecurity "restricted:latest": host namespaces': ("`pod` patch", True),
    'exec: "/no/python": stat /no/python: no such file or directory': ("correct `python`", True),
    "something new": ("", False),
}


@pytest.mark.parametrize("message", SENTENCES)
def test_a_sentence_of_kubernetes(message: str) -> None:
    remedy, permanent = remedy_of(message)
    expected, never = SENTENCES[message]
    assert (remedy.startswith(expected) or expected in remedy, permanent) == (True, never)


def pod(**status: Any) -> dict[str, Any]:
    spec = {"nodeName": "node1", "containers": [{"name": "ropewalk", "image": "x:1"}]}
    return {"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Pending", **status}}


def test_a_pod_that_waits() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x:1": ErrImagePull: x:1: not found'}
    result = pod_reason(pod(containerStatuses=[{"image": "x:1", "state": {"waiting": waiting}}]))
    assert result is not None
    assert (result.word, result.permanent) == ("ImagePullBackOff", True)
    assert (
        pod_reason(pod(containerStatuses=[{"image": "x:1", "state": {"waiting": {"reason": "ContainerCreating"}}}])) is not None
    )


def test_a_pod_that_saved_and_left_is_no_trouble() -> None:
    for code, word in ((85, None), (1, "it: boom")):
        ended = {"exitCode": code, "reason": "Error", "message": "first\nit: boom\n"}
        result = pod_reason(pod(phase="Failed", containerStatuses=[{"state": {"terminated": ended}}]))
        assert (result is None) == (word is None)
        assert result is None or word in result.message


@pytest.mark.parametrize(
    ("since", "message"), [("2999", ""), ("2020", "node1 prepares its pod: it pulls image x:1 or mounts volumes")]
)
def test_a_pod_that_has_a_node(since: str, message: str) -> None:
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": f"{since}-01-01T00:00:00Z"}
    assert str(pod_reason(pod(conditions=[placed])) or "") == message
    assert pod_reason({**pod(), "spec": {}}) is None, "no scheduler has looked at it yet"


def test_a_container_that_has_to_end_first() -> None:
    waiting = [{"name": "stage-in", "image": "x:1", "state": {"running": {}}}]
    assert str(pod_reason(pod(initContainerStatuses=waiting))) == "container stage-in of its pod has to finish first"


def test_a_workload_that_is_not_admitted() -> None:
    message = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 2 more needed"
    conditions = [{"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}]
    result = workload_reason({"spec": {"queueName": "team"}, "status": {"conditions": conditions}})
    assert result is not None
    assert result.message == f"queue team: {message}"
    assert workload_reason({"spec": {}, "status": {"conditions": [{"type": "QuotaReserved", "status": "True"}]}}) is None


def test_words_for_a_debugger_are_left_out() -> None:
    assert simplify(
        "0/3 nodes are available: 3 Insufficient cpu. no new claims to deallocate, preemption: 0/3 nodes are available: x"
    ) == ("0/3 nodes are available: 3 Insufficient cpu")
    assert simplify('Error creating: pods "a-0-x" is forbidden: exceeded quota: q') == "exceeded quota: q"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", 0.5),
        ("2", 2.0),
        (3, 3.0),
        ("1Gi", 2.0**30),
        ("24632884Ki", 24632884 * 1024),
        ("1e3", 1000.0),
        ("5G", 5e9),
        ("1.5Ti", 1.5 * 2**40),
    ],
)
def test_a_quantity(text: str | int, value: float) -> None:
    assert amount(text) == pytest.approx(value)


def test_how_amounts_are_shown() -> None:
    assert [format_amount("cpu", 2), format_amount("memory", 2**30), format_amount("amd.com/gpu", 8)] == [
        "2 CPU",
        "1.0 GiB memory",
        "8 amd.com/gpu",
    ]


@pytest.mark.parametrize(
    ("capacities", "nodes", "message"),
    [
        ([], 2, "no queue or quota tells when"),
        ([Capacity(nodes=4, short="")], 4, "It would start as soon as nodes have room\\.$"),
        ([Capacity(nodes=4, short="", ahead=2)], 4, "unless 2 that wait in its queue come first"),
        ([Capacity(nodes=9, short=""), Capacity(nodes=3, short="2 CPU more needed")], 4, "It would wait: 2 CPU more .*; 3 nodes"),
        ([Capacity(nodes=0, short="x")], 1, "It would wait: x.$"),
        ([Capacity(nodes=1, short="x")], "1..4", "It would start with 1 of 4 nodes"),
    ],
)  # fmt: skip
def test_the_start_estimate(capacities: list[Capacity], nodes: int | str, message: str) -> None:
    import re

    assert re.search(message, sentence(capacities, Resources.model_validate({"nodes": nodes})))


class Recorded:
    """Answers of an API server; anything else is forbidden."""

    namespace = "team"

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def raw(self, path: str) -> Any:
        name = path.rpartition("/")[2]
        if name not in self._answers or "v1beta2" in path:
            raise NotFoundError("no such path")
        return self._answers[name]

    def get(self, kind: str, _: str) -> Any:
        if kind not in self._answers:
            raise ForbiddenError(f"may not read {kind}")
        return self._answers[kind]


def quota(name: str, most: str, used: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"name": name, "nominalQuota": most}, {"name": name, "total": used}


def test_a_workload_is_explained_by_its_place_and_the_quota() -> None:
    cpu, gpu = quota("cpu", "40", "36"), quota("nvidia.com/gpu", "8", "7")
    items = [
        {"metadata": {"name": name}, "priority": 5, "positionInLocalQueue": number, "positionInClusterQueue": number + 2}
        for number, name in enumerate(("job-a", "job-b", "mine"))
    ]
    answers = {
        "pendingworkloads": {"items": items},
        "LocalQueue": {"spec": {"clusterQueue": "lab"}, "status": {"pendingWorkloads": 3}},
        "ClusterQueue": {
            "spec": {"resourceGroups": [{"flavors": [{"name": "default", "resources": [cpu[0], gpu[0]]}]}]},
            "status": {"flavorsReservation": [{"name": "default", "resources": [cpu[1], gpu[1]]}]},
        },
    }
    workload = {"metadata": {"name": "mine"}, "spec": {"queueName": "team"}}
    resources = Resources.model_validate({"nodes": 2, "cpus": 4})
    profile = K8sProfile.model_construct(queue="team")

    def explained(names: Sequence[str]) -> Waiting:
        kube: Any = Recorded({name: answers[name] for name in names})
        return explain_waiting(kube, profile, workload, resources)

    before = "its priority in queue team is 5; 4 workloads are before it: job-a, job-b, 2 of other queues"
    used = "in use of queue team's quota (lab): 36 CPU of 40 CPU, 7 nvidia.com/gpu of 8 nvidia.com/gpu"
    assert list(explained([*answers]).lines) == [before, used]
    assert explained([*answers]).remedy == "with resources.nodes=1 it would fit into the quota that is free now"
    assert list(explained(["pendingworkloads"]).lines) == [before]
    assert explained([]) == Waiting(lines=[])


def test_a_held_workload() -> None:
    result = workload_reason({"spec": {"queueName": "team", "active": False}, "status": {}})
    assert str(result) == "it is held; `ropewalk release RUN` lets it start"
