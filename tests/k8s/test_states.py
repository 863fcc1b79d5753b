"""What `ps` does to runs that can never start, where one may not end them or they are another's; no cluster is needed."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.backends.base import Profile
from cluster.run.directory import RunDir
from cluster.spec import RunState
from k8s import backend as module
from k8s.api.client import ApiAwayError, ForbiddenError, Kubernetes
from k8s.backend import K8sBackend
from k8s.status.run_state import Seen

POD: dict[str, Any] = {
    "metadata": {"name": "pod", "creationTimestamp": "2026-01-01T00:00:00Z"},
    "spec": {},
    "status": {
        "phase": "Pending",
        "containerStatuses": [{"name": "ropewalk", "state": {"waiting": {"reason": "ErrImagePull", "message": "x: not found"}}}],
    },
}


class Guarded:
    """Deletes what it is told to, unless that is not allowed."""

    namespace = "team"

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, list[str]()

    def delete(self, kind: str, name: str, **_: Any) -> None:
        self.asked.append(name)
        if self.error is not None:
            raise self.error


def job(run: RunDir) -> dict[str, Any]:
    metadata = {"name": run.id, "namespace": "team", "uid": run.id, "labels": {}}
    return {"kind": "Job", "metadata": metadata, "spec": {"parallelism": 1}, "status": {"active": 1}}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunDir]:
    """Two runs whose image is not there, and one whose pods are on their way."""
    found = [RunDir.create("toy", {"job": "toy", "config": {}}, tmp_path) for _ in range(3)]
    for run in found:
        run.begin_attempt(name=run.id, opened_by="submission")

    def look(kube: object, asked: list[RunDir]) -> dict[str, Seen]:
        pods = {run.id: [POD] if run in found[:2] else [] for run in asked}
        return {run.id: Seen(details={"name": run.id}, job=job(run), pods=pods[run.id]) for run in asked}

    monkeypatch.setattr(module, "look", look)
    monkeypatch.setenv("ROPEWALK_RUNS", "/runs")
    return found


def told(runs: list[RunDir], kube: Guarded) -> list[RunState]:
    options = {"claim_path": "/runs", "runs": str(runs[0].path.parent)}
    backend = K8sBackend(Profile(name="team", backend="k8s", options=options), cast("Kubernetes", kube))
    states = backend.states(runs)
    return [states[run.id].state for run in runs]


@pytest.mark.parametrize("error", [None, ForbiddenError("you may not delete jobs"), ApiAwayError("it is away")])
def test_a_job_that_may_not_be_deleted_blanks_no_other_run(runs: list[RunDir], error: Exception | None) -> None:
    kube = Guarded(error)
    assert told(runs, kube) == [RunState.FAILED, RunState.FAILED, RunState.PENDING]
    assert kube.asked == [run.id for run in runs[:2]]


def test_who_looks_at_anothers_run_ends_nothing_of_it(runs: list[RunDir], monkeypatch: pytest.MonkeyPatch) -> None:
    kube = Guarded()
    owner = runs[0].path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 4711)
    assert told(runs, kube) == [RunState.FAILED, RunState.FAILED, RunState.PENDING]
    assert kube.asked == []
