"""A pipeline on a real Kubernetes cluster: a step starts once those it needs have succeeded, and all are resumed together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.job import config_of_run, step_runs
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import submit
from tests.k8s.cluster import Namespace
from tests.slurm.toy import finish, said

pytestmark = pytest.mark.soak("a minute; make test runs the pipeline on Slurm and test_hand_over.py")


def step(line: str, *needs: str) -> dict[str, Any]:
    keys = {"command": line, "directory": "/", "launch": "once", "retries": {"bugs": 0}, "code": {"ship": False}}
    return {"job": "command", "needs": list(needs), "config": {**keys, "resources": {"cpus": 1, "grace_seconds": 20}}}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that end with a process
def test_steps_follow_each_other_and_a_failed_one_is_resumed_with_all(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = {"backend": "k8s", **namespace.options()}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    monkeypatch.chdir(tmp_path)
    steps = {
        "data": step("echo made > $ROPEWALK_RUN/../data.txt"),
        "train": step("cat $ROPEWALK_RUN/../data.txt; test -e $ROPEWALK_RUN/../mended || exit 3", "data"),
        "score": step("ls $ROPEWALK_RUN/../{train.run}/run.yaml"),
    }
    keys = {"name": "life", "steps": steps, "resources": {"cpus": 1, "grace_seconds": 20}}
    pipeline = submit("pipeline", load_config(PipelineConfig, keys), "lab")
    runs = step_runs(pipeline, config_of_run(pipeline))
    for run in (*runs.values(), pipeline):
        wait(run)
    outcome = finish(pipeline)
    assert outcome.state is RunState.FAILED, said(pipeline)
    assert outcome.cause.startswith(f"its step train ({runs['train'].id}) ended as FAILED: "), outcome.cause
    assert [finish(run).state for run in runs.values()] == [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED]
    (namespace.runs / "mended").touch()
    resume(pipeline)
    for run in (*runs.values(), pipeline):
        wait(run)
    assert finish(pipeline).state is RunState.SUCCEEDED, said(pipeline)
    assert [len(run.attempts()) for run in runs.values()] == [1, 2, 2]
    assert pipeline.results()["steps"]["score"]["run"] == runs["score"].id
