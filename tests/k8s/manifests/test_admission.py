"""The policy that ties what pods may change to their own run, on a real API server and with pods' own tokens."""

import json
from collections.abc import Callable, Iterator

import pytest

from tests.k8s.cluster import ROOT, Cluster, Namespace
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

POLICY = ROOT / "k8s/manifests/admission-policy.yaml"
# what training code can do: it finds the token of its pod
HOSTILE = """
import sys
from ropewalk.k8s.api.client import ApiError
from ropewalk.k8s.api.in_cluster import InClusterApi
api = InClusterApi()
api.job_name, pod, uid = sys.argv[2:5]
for what in sys.argv[1].split(","):
    try:
        if what == "outcome":
            api.patch_job({"metadata": {"annotations": {"ropewalk/outcome": "{}"}}})
        elif what == "status":
            api.patch_pod_status(pod, {"message": "patched"})
        else:
            api._ask("DELETE", api.path("Pod", pod), {"dryRun": "All"})
        print("done")
    except ApiError as error:
        print(" ".join(str(error).split()))
"""


@pytest.fixture
def policy(kube: Cluster) -> Iterator[Callable[[], object]]:
    """Applies the policy; it goes with the test."""
    kube.need("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy")
    yield lambda: kube.kubectl("apply", "-f", str(POLICY))
    kube.kubectl("delete", "--ignore-not-found", "-f", str(POLICY))


def status(namespace: Namespace, job: str, pod: str) -> int:
    """Status of the API server's answer to a pod of this name that writes a Job's outcome."""
    who = {"Impersonate-User": f"system:serviceaccount:{namespace.name}:ropewalk"}
    who |= {"Impersonate-Extra-Authentication.kubernetes.io%2fpod-Name": pod} if pod else {}
    patch = json.dumps({"metadata": {"annotations": {"ropewalk/outcome": "{}"}}})
    path = f"/apis/batch/v1/namespaces/{namespace.name}/jobs/{job}"
    headers = {**who, "Content-Type": "application/merge-patch+json"}
    client = namespace.cluster.rest.client
    return int(client.request("PATCH", path, params={"dryRun": "All"}, content=patch, headers=headers).status_code)


def test_a_pod_changes_its_own_run_and_no_other(
    start: Callable[..., KubeToy], namespace: Namespace, policy: Callable[[], object]
) -> None:
    mine, other = start(steps=100_000, pause=0.2), start(profile={"node_selector": {"nowhere": "true"}})
    mine.reach(1)
    until(lambda: len(namespace.pods()) == 2)

    def pod_of(run: KubeToy) -> dict[str, str]:
        pods = [pod for pod in namespace.pods() if pod["metadata"]["name"].startswith(run.run.id)]
        return dict(pods[0]["metadata"])

    def do(what: str, to: KubeToy) -> list[str]:
        pod = pod_of(to)
        job = str(to.run.attempt_details(1)["name"])
        arguments = (namespace.cluster.python, "-c", HOSTILE, what, job, pod["name"], pod["uid"])
        return namespace.kubectl("exec", pod_of(mine)["name"], "--", *arguments).strip().splitlines()

    every = "outcome,status,delete"
    assert do(every, other) == ["done"] * 3, "the Role alone allows it"
    policy()
    refused = "may change only its own run"
    # the API server has to learn of it
    until(lambda: status(namespace, f"{other.run.id}-1", f"{mine.run.id}-1-0-abcde") == 403, Patience.START)
    answers = do(every, other)
    assert [refused in answer for answer in answers] == [True] * 3, answers
    assert do(every, mine) == ["done"] * 3


def test_which_pods_are_a_runs_own(namespace: Namespace, policy: Callable[[], object]) -> None:
    """The API server sees callers whose pods have these names."""
    policy()
    for name, suspend in (("run-1", False), ("other-1", False), ("held-1", True)):
        container = {"name": "x", "image": "nothing"}
        spec = {"suspend": suspend, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
        about = {"name": name, "namespace": namespace.name}
        namespace.cluster.rest.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec})

    def statuses(job: str, *pods: str) -> list[int]:
        return [status(namespace, job, pod) for pod in pods]

    until(lambda: statuses("other-1", "run-1-0-abcde") == [403], Patience.START)  # the API server has to learn of it
    assert statuses("run-1", "run-1-0-abcde", "run-1-12-abcde") == [200, 200]
    assert statuses("run-1", "", "run-1-0-3-abcde", "run-12-0-abcde", "run-1-gate-abcde") == [403] * 4
    assert statuses("held-1", "run-1-gate-abcde", "run-1-0-abcde") == [200, 403]


@pytest.mark.soak("two runs of pods; test_a_pod_changes_its_own_run_and_no_other has a run under it")
def test_runs_live_with_the_policy(start: Callable[..., KubeToy], namespace: Namespace, policy: Callable[[], object]) -> None:
    """A lost pod is replaced without delay, the end is told on the Job, and a gate lets go who waits."""
    policy()
    run = start("count", "ranks", resources={"nodes": 2}, steps=60, pause=0.2)
    waiting = KubeToy(namespace, steps=2, submit=False)
    waiting.backend.submit(waiting.run, waiting.resources, [run.run.id])
    run.reach(3)
    namespace.kubectl("delete", "pod", str(namespace.pod(1)["metadata"]["name"]), "--wait=false")
    run.reach_attempt(2)
    assert run.finish().state.value == "SUCCEEDED"
    assert waiting.finish().state.value == "SUCCEEDED"
    job = str(run.run.attempt_details(1)["name"])
    assert "SUCCEEDED" in namespace.kubectl("get", "job", job, "-o", "jsonpath={.metadata.annotations}")
    waiting.close()
