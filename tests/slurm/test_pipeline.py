"""A pipeline on a real Slurm cluster: Slurm itself starts each step after those that it needs."""

import sys
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.job import config_of_run, step_runs
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.slurm.lab.cluster import Lab
from tests.slurm.toy import finish, said

ROOT = Path(__file__).resolve().parents[2]


def step(line: str, *needs: str) -> dict[str, object]:
    keys = {"command": line, "launch": "once", "retries": {"bugs": 0}, "code": {"ship": False}}
    return {"job": "command", "needs": list(needs), "config": keys}


@pytest.mark.soak(
    "six jobs; test_a_failed_step_stops_what_needs_it_and_nothing_else resumes a pipeline,"
    " test_dependants_of_a_run_without_success_are_cancelled_and_say_so has chains of Slurm"
)
def test_steps_follow_each_other_and_a_failed_one_is_resumed_with_all(
    slurm_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = tmp_path / "clusters.yaml"
    clusters.write_text(yaml.safe_dump({"lab": {"backend": "slurm", "runs": str(tmp_path / "runs"), "python": sys.executable}}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(clusters))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    steps = {
        "train": step(f"test -e {tmp_path}/mended || exit 3"),
        "score": step("ls $ROPEWALK_RUN/../{train.run}/run.yaml"),
    }
    pipeline = submit("pipeline", load_config(PipelineConfig, {"name": "life", "steps": steps}), "lab")
    runs = step_runs(pipeline, config_of_run(pipeline))
    for run in (*runs.values(), pipeline):
        wait(run)  # Slurm alone knows of those that it has dropped, until it is asked
    outcome = finish(pipeline)
    assert outcome.state is RunState.FAILED, said(pipeline)
    assert outcome.cause.startswith(f"its step train ({runs['train'].id}) ended as FAILED: "), outcome.cause
    assert [finish(run).state for run in runs.values()] == [RunState.FAILED, RunState.CANCELLED]
    (tmp_path / "mended").touch()
    resume(pipeline)
    assert finish(pipeline).state is RunState.SUCCEEDED, said(pipeline)
    assert [len(run.attempts()) for run in runs.values()] == [2, 2]
    assert pipeline.results()["steps"]["score"]["run"] == runs["score"].id
