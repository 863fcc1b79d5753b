"""A program of the user's own in pods, submitted from a machine that does not see the volume: its project travels along."""

import shutil
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.directory import RUNS_VARIABLE
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.show.remote import freshen
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.runs.submit.submit import submit
from tests.jobs.orchestration.command.programs import undisturbed
from tests.k8s.cluster import Namespace
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak(
    "a minute of imports of torch in pods; test_a_training_program_is_bit_identical_after_a_kill_and_a_stop runs it on this"
    " machine, test_preempted_again_and_again evicts pods, test_there_and_back sends a project"
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that end with a process
def test_an_evicted_script_goes_on_bit_by_bit_from_its_own_checkpoint(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        RUNS_VARIABLE: tmp_path / "runs",
        "PYTHONPATH": ROOT,
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    profile = {"backend": "k8s", **namespace.options(), "runs": None}
    profile["environment"] |= {"WANDB_MODE": "disabled"}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"far": profile}))
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "tests/fakes/training_program.py", project / "train.py")

    values = {"command": [namespace.cluster.python, "train.py", "--steps", "20", "--pause", "0.2"], "directory": str(project)}
    resources = {"cpus": 1, "grace_seconds": 20}
    run = submit("command", load_config(CommandConfig, {**values, "resources": resources}), "far")
    (project / "train.py").write_text("raise SystemExit('written after the submission')\n")
    metrics = namespace.runs / run.id / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 6, Patience.RUN)
    namespace.kubectl("delete", "pod", "--wait=false", namespace.pod(0)["metadata"]["name"])
    wait(run)
    outcome = final_outcome(freshen(run))
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED, outcome
    assert undisturbed(20, 1)[0] in (run.log_dir(run.attempts()[-1]) / "rank-0.log").read_text().splitlines()
    assert len(run.attempts()) == 2
    stopped_at = max(event["step"] for event in run.read_events() if event["event"] == "checkpoint" and event["attempt"] == 1)
    assert [line["step"] for line in run.read_metrics()].count(stopped_at + 1) == 1, "an announced stop loses no step"
