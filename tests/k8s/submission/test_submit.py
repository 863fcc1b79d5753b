"""A run has one Job, whatever happens to the answers and the API server; and what ends it removes all of it, and only it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.errors import BackendError, ConfigError, SubmissionInDoubtError
from ropewalk.cluster.spec import RunState
from ropewalk.k8s.api.client import ApiAwayError, ConflictError, Kubernetes
from ropewalk.k8s.api.kubeconfig import connect
from ropewalk.k8s.api.objects import Object
from ropewalk.k8s.submission.submit import submit_once
from tests.k8s.cluster import Namespace
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until

Start = Callable[..., KubeToy]

NOWHERE = {"node_selector": {"nowhere": "true"}}  # such a run waits


class Unlucky(Kubernetes):
    """A cluster whose answers to creations are lost, so many times for each kind; what was asked is done, or it is not."""

    def __init__(self, real: Kubernetes, losses: int, *, done: bool) -> None:
        super().__init__(real.transport, real.namespace)
        self.losses, self.done = losses, done
        self.asked: dict[str, int] = {}

    def create(self, each: Object) -> Object:
        request = self.asked[each["kind"]] = self.asked.get(each["kind"], 0) + 1
        lost = request <= self.losses
        if self.done or not lost:
            created = super().create(each)
            if not lost:
                return created
        raise ApiAwayError("the API server did not answer in time")


def names(namespace: Namespace, *kinds: str) -> list[str]:
    """Everything in the namespace that is of ropewalk and is not leaving."""
    results = [
        each for kind in kinds or ("Job", "ConfigMap") for each in namespace.items(kind, "app.kubernetes.io/name=ropewalk")
    ]
    return sorted(f"{each['kind']}/{each['metadata']['name']}" for each in results if "deletionTimestamp" not in each["metadata"])


# --- exactly once


@pytest.mark.parametrize("done", [True, False])
def test_answers_that_are_lost(namespace: Namespace, start: Start, done: bool) -> None:
    run = start(profile=NOWHERE, resources={"nodes": 2}, submit=False)
    run.backend.kube = unlucky = Unlucky(run.backend.kube, 1, done=done)
    handle = run.backend.submit(run.run, run.resources)
    name = f"{run.run.id}-1"
    assert handle == f"k8s:{namespace.name}/{name}"
    assert names(namespace) == [f"Job/{name}"]
    assert unlucky.asked["Job"] >= 2
    assert run.state.state is RunState.PENDING


@pytest.mark.parametrize("done", [True, pytest.param(False, marks=pytest.mark.soak("make test loses the answer alone"))])
def test_a_lost_answer_about_its_service_takes_no_run_back(
    namespace: Namespace, start: Start, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    run = start(profile=NOWHERE, submit=False)
    service: Object = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": run.run.id}, "spec": {"ports": [{"port": 80}]}}
    monkeypatch.setattr("ropewalk.k8s.submission.submit.render_service", lambda *_: service)
    run.backend.kube = Unlucky(run.backend.kube, 1, done=done)
    run.backend.submit(run.run, run.resources)
    (created,) = namespace.items("Service")
    assert created["metadata"]["ownerReferences"][0]["uid"] == namespace.job()["metadata"]["uid"]
    assert run.state.state is RunState.PENDING


class Serves:
    """A run that serves requests at a port."""

    def __init__(self, start: Start) -> None:
        self.started = start(profile=NOWHERE, submit=False)
        self.started.run.record["service"] = {"port": 8000}  # type: ignore[index]


def test_the_served_port_is_opened_by_a_policy_that_goes_with_its_job(namespace: Namespace, start: Start) -> None:
    run = Serves(start).started
    run.backend.submit(run.run, run.resources)
    (policy,) = namespace.items("NetworkPolicy")
    assert policy["spec"]["ingress"][0] == {"ports": [{"port": 8000, "protocol": "TCP"}]}
    run.backend.cancel(run.run)
    until(lambda: not namespace.items("NetworkPolicy") and not namespace.items("Service"), Patience.CLUSTER)


def test_without_permission_for_the_policy_the_run_goes_on_and_says_so(
    namespace: Namespace, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    namespace.kubectl("create", "serviceaccount", "user")
    namespace.kubectl("create", "rolebinding", "user", "--role=ropewalk-user", f"--serviceaccount={namespace.name}:user")
    config = yaml.safe_load(Path(namespace.cluster.kubeconfig).read_text())
    config["users"][0]["user"] = {"token": namespace.kubectl("create", "token", "user").strip()}
    (tmp_path / "user").write_text(yaml.safe_dump(config))
    run = Serves(start).started
    run.backend.kube = connect(run.backend.profile.model_copy(update={"kubeconfig": str(tmp_path / "user")}))
    run.backend.submit(run.run, run.resources)
    assert len(namespace.items("NetworkPolicy")) == 1, "the shipped Role allows it"
    assert caplog.messages == []
    run.backend.cancel(run.run)
    until(lambda: not namespace.items("NetworkPolicy"), Patience.CLUSTER)

    rules = [{"op": "remove", "path": f"/rules/{place_of_policies(namespace)}"}]
    namespace.kubectl("patch", "role", "ropewalk-user", "--type=json", "-p", json.dumps(rules))
    run = Serves(start).started
    run.backend.kube = connect(run.backend.profile.model_copy(update={"kubeconfig": str(tmp_path / "user")}))
    run.backend.submit(run.run, run.resources)
    assert (len(namespace.items("NetworkPolicy")), len(namespace.items("Service"))) == (0, 1)
    assert run.state.state is RunState.PENDING
    assert "may keep clients away" in caplog.text
    assert "networkpolicies" in next(e for e in run.run.read_events() if e["event"] == "port_not_opened")["error"]


def place_of_policies(namespace: Namespace) -> int:
    rules = json.loads(namespace.kubectl("get", "role", "ropewalk-user", "-o", "json"))["rules"]
    return next(number for number, rule in enumerate(rules) if "networkpolicies" in rule["resources"])


def test_a_name_that_is_taken_by_somebody_else(namespace: Namespace, start: Start) -> None:
    run = start(submit=False)
    name = f"{run.run.id}-1"
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}
    metadata: dict[str, Any] = {"name": name, "namespace": namespace.name}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template, "suspend": True}}
    namespace.cluster.rest.apply(job)
    with pytest.raises(ConflictError, match="exists already and belongs to another submission"):
        submit_once(run.backend.kube, {**job, "metadata": {**metadata, "labels": {"ropewalk/run": run.run.id}}})
    assert namespace.job()["metadata"]["name"] == name


def test_nobody_answers() -> None:
    now = [0.0]

    class Away(Kubernetes):
        def create(self, each: Object) -> Object:
            raise ApiAwayError("the API server cannot be reached")

    with pytest.raises(SubmissionInDoubtError, match=r"cannot be reached; no answer for 120 s.*see `ropewalk ps`"):
        submit_once(
            Away(None, "team"),  # type: ignore[arg-type]
            {"kind": "Job", "metadata": {"name": "x"}},
            sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
            clock=lambda: now[0],
        )


def test_a_second_submission_is_refused_while_the_first_waits(namespace: Namespace, start: Start) -> None:
    run = start(profile=NOWHERE)
    with pytest.raises(BackendError, match=r"already has an active Job \(k8s:.*cancel it first: ropewalk cancel"):
        run.backend.submit(run.run, run.resources)
    assert names(namespace) == [f"Job/{run.run.id}-1"]


def test_a_cancelled_run_is_resumed_under_another_name(namespace: Namespace, start: Start) -> None:
    run = start(profile=NOWHERE)
    run.backend.cancel(run.run)
    assert run.state.state is RunState.CANCELLED
    run.run.withdraw_cancel()
    run.backend.submit(run.run, run.resources)
    assert names(namespace) == [f"Job/{run.run.id}-2"]
    assert run.state.state is RunState.REQUEUED


# --- cancelling


@pytest.mark.soak(
    "three runs; test_there_and_back cancels a run at work and one that waits, test_scancel_saves_and_ends_for_good saves"
)
def test_cancel_saves_and_removes_all_of_a_run_and_only_it(namespace: Namespace, start: Start) -> None:
    bystander = start(profile=NOWHERE, resources={"nodes": 2})
    namespace.kubectl("create", "configmap", "of-somebody-else")
    run = start(steps=10_000, resources={"nodes": 2, "cpus": 1, "grace_seconds": 5}, pause=0.05)
    waiting = start(profile=NOWHERE, resources={"nodes": 2})
    run.reach(2)
    run.backend.cancel_many([run.run, waiting.run])
    assert waiting.state.state is RunState.CANCELLED
    assert waiting.state.reason == "cancelled while waiting"
    outcome = run.finish()
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled after saving")
    remaining = [f"Job/{bystander.run.id}-1"]
    until(lambda: names(namespace) == remaining, Patience.START)
    until(lambda: all(pod["metadata"]["labels"]["ropewalk/run"] == bystander.run.id for pod in namespace.pods()), Patience.STEP)
    namespace.kubectl("get", "configmap", "of-somebody-else")
    run.backend.cancel(run.run)  # once more is no error
    assert run.state.state is RunState.CANCELLED


def test_a_job_that_somebody_has_deleted(namespace: Namespace, start: Start) -> None:
    run = start(profile=NOWHERE)
    namespace.kubectl("delete", "job", f"{run.run.id}-1")
    attempt = run.run.attempt_details(1)
    run.run.describe_attempt(1, created=attempt["created"] - 1000)
    assert run.state.state is RunState.UNKNOWN
    assert f"no longer has Job {run.run.id}-1" in run.state.reason
    assert f"`ropewalk resume {run.run.id}`" in run.state.reason


# --- waiting for others


@pytest.mark.soak(
    "one gate lets all go: make test runs test_release_controller.py, and a run that waits in volume/test_remote.py"
)
def test_after_a_run_that_succeeds(namespace: Namespace, start: Start) -> None:
    first = start(steps=5)
    second = start(steps=2, submit=False)
    second.backend.submit(second.run, second.resources, [first.run.id])
    assert (second.state.state, second.state.reason) == (RunState.PENDING, f"waits for {first.run.id}")
    assert first.finish().state is RunState.SUCCEEDED
    assert second.finish().state is RunState.SUCCEEDED
    assert second.run.read_metrics()[0]["time"] > first.run.read_metrics()[-1]["time"]


@pytest.mark.soak("make test cancels what waits for a cancelled run in volume/test_remote.py")
def test_after_a_run_that_fails(namespace: Namespace, start: Start) -> None:
    first = start("refuse", "process")
    second = start(steps=2, submit=False)
    second.backend.submit(second.run, second.resources, [first.run.id])
    outcome = second.finish()
    assert outcome.state is RunState.CANCELLED
    assert outcome.cause.startswith(f"never started: it waited for {first.run.id}, which ended as FAILED (")
    third = start(submit=False)
    with pytest.raises(
        ConfigError, match=f"--after {first.run.id}: that run ended as FAILED .*`ropewalk resume {first.run.id}` first"
    ):
        third.backend.submit(third.run, third.resources, [first.run.id])
    until(lambda: not [pod for pod in namespace.pods() if pod["status"]["phase"] in {"Pending", "Running"}], Patience.START)


@pytest.mark.soak(
    "two runs after each other; test_release_controller.py lets held runs go without pods,"
    " test_an_array_carries_each_run_a_few_at_a_time has them on Slurm"
)
def test_at_most_so_many_at_a_time(namespace: Namespace, start: Start) -> None:
    runs = [start(steps=5, submit=False) for _ in range(2)]
    head = runs[0]
    head.backend.submit_many([each.run for each in runs], head.resources, at_once=1)
    states = head.backend.states([each.run for each in runs])
    assert states[runs[1].run.id].word == "Turn"
    for each in runs:
        assert each.finish().state is RunState.SUCCEEDED
    first, second = ([line["time"] for line in each.run.read_metrics()] for each in runs)
    assert max(first) < min(second)
