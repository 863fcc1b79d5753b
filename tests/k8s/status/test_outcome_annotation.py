"""Trust in the outcome that a Job's annotation claims."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.k8s.names import OUTCOME_ANNOTATION
from ropewalk.k8s.status.observe import Observation
from ropewalk.k8s.status.run_state import run_state, unrecorded_outcome

COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}


@pytest.mark.parametrize(
    ("metadata", "status", "state"),
    [
        ({}, {"active": 1, "ready": 1}, RunState.RUNNING),
        ({}, COMPLETE, RunState.SUCCEEDED),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, {"active": 1}, RunState.SUCCEEDED),
    ],
)
def test_an_outcome_counts_once_the_job_is_over(
    tmp_path: Path, metadata: dict[str, Any], status: dict[str, Any], state: RunState
) -> None:
    """Training code of any run of the namespace may be able to write it on any Job."""
    record = {"config": {}, "engine": "process", "resources": Resources().model_dump(mode="json")}
    run = RunDir.create("toy", record, tmp_path)
    run.begin_attempt(created=time.time())
    annotation = json.dumps(vars(Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", ended=time.time())), default=str)
    about = {"name": "toy-1", "namespace": "ns", "labels": {}, "annotations": {OUTCOME_ANNOTATION: annotation}, **metadata}
    job = {"kind": "Job", "metadata": about, "spec": {"parallelism": 1, "completions": 1}, "status": status}
    observed = Observation(details={}, job=job)
    assert run_state(run, observed).state is state
    assert (unrecorded_outcome(run, observed) is None) is (state is RunState.RUNNING)
    assert run.last_outcome() is None, "who looks writes nothing"
