"""A program of the user's own on a real Slurm cluster: its project travels, and it goes on after whatever Slurm does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.slurm.job_lookup import job_id
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.orchestration.command.programs import undisturbed
from tests.patience import Patience, until
from tests.slurm.conftest import MakeLab
from tests.slurm.toy import finish, said

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ROOT / "jobs/configs/examples/plain.py"
FAST = ROOT / "tests/fakes/training_program.py"

pytestmark = pytest.mark.soak(
    "14 seconds of CPU time; make test runs the same program on this machine in jobs/orchestration/command/test_command.py, and"
    " toys on Slurm in test_stops.py"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of somebody's own, with a training program, one uncommitted change and one ignored file."""
    folder = tmp_path / "project/work"
    folder.mkdir(parents=True)
    top = folder.parent
    (folder / "train.py").write_text(FAST.read_text())
    (top / "settings.py").write_text("STEPS = 1\n")
    (top / ".gitignore").write_text("*.big\n")
    for arguments in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(top), *arguments], check=True)
    (top / "settings.py").write_text("STEPS = 60\n")
    (top / "ignored.big").write_text("x")
    clusters = tmp_path / "clusters.yaml"
    clusters.write_text(yaml.safe_dump({"lab": {"backend": "slurm", "runs": str(tmp_path / "runs"), "python": sys.executable}}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(clusters))
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return folder


def start(project: Path, *arguments: str, on: str = "lab", **more: object) -> RunDir:
    resources = {"grace_seconds": 20} if on != "local" else {}
    values = {"command": [sys.executable, *arguments], "directory": str(project), "resources": resources}
    return submit("command", load_config(CommandConfig, {**values, **more}), on)


def final_words(run: RunDir) -> list[str]:
    logs = [run.log_dir(number) / "rank-0.log" for number in run.attempts()]
    return [line for log in logs if log.exists() for line in log.read_text().splitlines() if line.startswith("final")]


def reach(run: RunDir, step: int) -> None:
    def reached() -> bool:
        outcome = run.last_outcome()
        assert outcome is None or not outcome.state.final, said(run)
        return max((line["step"] for line in run.read_metrics()), default=0) >= step

    until(reached, Patience.RUN)


@pytest.mark.parametrize("node_dies", [False, True])
def test_a_training_program_goes_on_bit_by_bit(make_lab: MakeLab, project: Path, node_dies: bool) -> None:
    lab = make_lab(nodes=2)
    run = start(project, "train.py", "--steps", "40", "--pause", "0.1" if node_dies else "0.03")
    (project / "train.py").write_text("raise SystemExit('this was written after the submission')\n")
    reach(run, 8)
    subprocess.run(["scontrol", "requeue", job_id(run)], check=True)
    until(lambda: len(run.attempts()) == 2)
    if node_dies:
        reach(run, 20)
        lab.fail_node([line["address"] for line in read_lines(run.attempt_dir(2) / "agents.jsonl")][-1])
    assert finish(run).state is RunState.SUCCEEDED, said(run)
    assert final_words(run)[-1] == undisturbed(40, 1)[0]
    stopped_at = max(e["step"] for e in run.read_events() if e["event"] == "checkpoint" and e["attempt"] == 1)
    assert [line["step"] for line in run.read_metrics()].count(stopped_at + 1) == 1, "an announced stop loses no step"


def test_the_users_project_travels(slurm_lab: Lab, project: Path) -> None:
    shutil.copy(PLAIN, project)
    lines = [
        "import os, sys",
        "sys.path.insert(0, '..')",
        "import settings",
        "print(settings.STEPS, sorted({*os.listdir('..')} - {'__pycache__'}))",
    ]
    (project / "look.py").write_text("\n".join(lines))
    run = start(project, command=f"{sys.executable} look.py && {sys.executable} plain.py --steps 2")
    (project.parent / "settings.py").write_text("STEPS = 0\n")
    assert finish(run).state is RunState.SUCCEEDED, said(run)
    assert [line["step"] for line in run.read_metrics()] == [1, 2]
    assert f"60 {['.gitignore', 'settings.py', 'work']}" in (run.log_dir(1) / "rank-0.log").read_text()
    assert run.record["project"]["folder"] == "work"
    assert os.listdir(run.path.parent / ".code")
