"""Asking for states changes nothing; settling a run needs its owner, and works with fewer rights. No cluster is needed."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.k8s import backend as module
from ropewalk.k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes
from ropewalk.k8s.backend import K8sBackend
from ropewalk.k8s.names import RUN_LABEL
from ropewalk.k8s.status.observe import Observation, observe
from ropewalk.k8s.status.run_state import run_state

POD: dict[str, Any] = {
    "metadata": {"name": "pod", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {},
    "status": {
        "phase": "Pending",
        "containerStatuses": [{"name": "ropewalk", "state": {"waiting": {"reason": "ErrImagePull", "message": "x: not found"}}}],
    },
}
ENDED = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": "2026-01-01T00:00:00Z"}
TOLD = [RunState.FAILED, RunState.PENDING, RunState.FAILED]


class Guarded:
    """A cluster that deletes what it is told to, unless that is not allowed."""

    namespace = "team"

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, list[str]()

    def delete(self, kind: str, name: str, **_: Any) -> None:
        self.asked.append(name)
        if self.error is not None:
            raise self.error


def job(run: RunDir, **status: Any) -> dict[str, Any]:
    metadata = {"name": run.id, "namespace": "team", "uid": run.id, "labels": {}}
    return {"kind": "Job", "metadata": metadata, "spec": {"parallelism": 1}, "status": {"active": 1, **status}}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    """A run whose image is not there, one whose pods are on their way, and one whose Job ended without a word."""
    results = [RunDir.create("toy", {"job": "toy", "config": {}}, tmp_path) for _ in range(3)]
    for run in results:
        run.begin_attempt(name=run.id, opened_by="submission")

    def observe(kube: object, requested: list[RunDir]) -> dict[str, Observation]:
        lost, ended = results[0].id, results[2].id
        pods, status = {lost: [POD]}, {ended: {"conditions": [ENDED]}}
        return {
            run.id: Observation(details={"name": run.id}, job=job(run, **status.get(run.id, {})), pods=pods.get(run.id, ()))
            for run in requested
        }

    monkeypatch.setattr(module, "observe", observe)
    monkeypatch.setenv("ROPEWALK_RUNS", "/runs")
    return results


def backend_of(runs: list[RunDir], kube: Guarded) -> K8sBackend:
    options = {"claim_path": "/runs", "runs": str(runs[0].path.parent)}
    return K8sBackend(Profile(name="team", backend="k8s", options=options), cast("Kubernetes", kube))


def files_of(runs: list[RunDir]) -> dict[str, int]:
    folder = runs[0].path.parent
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_who_looks_is_told_all_and_changes_nothing(runs: list[RunDir]) -> None:
    kube = Guarded()
    before = files_of(runs)
    states = backend_of(runs, kube).states(runs)
    assert [states[run.id].state for run in runs] == TOLD
    assert "not found" in states[runs[0].id].reason
    assert states[runs[2].id].reason == "Kubernetes reports Failed (DeadlineExceeded)"
    assert (kube.asked, files_of(runs)) == ([], before)


@pytest.mark.parametrize("error", [None, ForbiddenError("you may not delete jobs"), ApiAwayError("it is away")])
def test_a_job_that_may_not_be_deleted_blanks_no_other_run(
    runs: list[RunDir], error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    kube = Guarded(error)
    states = backend_of(runs, kube).settle(runs)
    assert [states[run.id].state for run in runs] == TOLD
    assert kube.asked == [runs[0].id], "what can never start"
    outcomes = [run.last_outcome() for run in runs]
    assert [outcome and outcome.state for outcome in outcomes] == [RunState.FAILED, None, RunState.FAILED]
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert messages == ([f"{runs[0].id} can never start, but its Job cannot be deleted: {error}"] if error else [])


def test_of_anothers_run_nothing_is_changed(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    kube, before = Guarded(), files_of(runs)
    owner = runs[0].path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 4711)
    states = backend_of(runs, kube).settle(runs)
    assert [states[run.id].state for run in runs] == TOLD
    assert (kube.asked, files_of(runs)) == ([], before)


def test_who_is_held_names_only_the_runs_that_it_still_waits_for(tmp_path: Path) -> None:
    first, second, held = (RunDir.create("toy", {"job": "toy", "config": {}}, tmp_path) for _ in range(3))
    for run in (first, second):
        run.begin_attempt(name=run.id, opened_by="submission")
    held.begin_attempt(name=held.id, opened_by="submission", after=[first.id, second.id])
    suspended = {**job(held), "spec": {"parallelism": 1, "suspend": True}}

    class Cluster:
        def list(self, kind: str, *_: str, **__: str) -> list[Any]:
            return [suspended] if kind == "Job" else []

    def why() -> str:
        return run_state(held, observe(cast("Kubernetes", Cluster()), [held])[held.id]).reason

    assert why() == f"waits for {first.id} and {second.id}"
    first.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=1.0))
    assert why() == f"waits for {second.id}"
    second.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=1.0))
    assert why().startswith("its dependencies have ended")


@pytest.mark.parametrize("status", [{"active": 1}, {"uncountedTerminatedPods": {"failed": ["uid"]}}, {"failed": 1}])
def test_a_pod_that_cannot_run_is_seen_also_while_its_job_counts_it_nowhere(tmp_path: Path, status: dict[str, Any]) -> None:
    run = RunDir.create("toy", {"job": "toy", "config": {}}, tmp_path)
    run.begin_attempt(name=run.id, opened_by="submission")
    listed = {
        "Job": {**job(run), "status": status},
        "Pod": {**POD, "metadata": {**POD["metadata"], "labels": {RUN_LABEL: run.id}}},
    }

    class Cluster:
        def list(self, kind: str, *_: str, **__: str) -> list[Any]:
            return [listed[kind]] if kind in listed else []

    assert "not found" in run_state(run, observe(cast("Kubernetes", Cluster()), [run])[run.id]).reason
