"""Everything that a user does, as somebody who is not root, through the command."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.slurm.job_lookup import job_id
from tests.fakes.token_files import write_dataset
from tests.patience import HANG_SECONDS, Patience, until
from tests.slurm.conftest import ROOT, OrdinaryUser, need_slurm

JOB = ("pretrain", "data=data", "model.preset=tiny", "seq_len=16", "batch.global_batch=4", "batch.micro_batch=2", "--on", "mine")


def steps_of(run: RunDir) -> list[int]:
    return [line["step"] for line in read_lines(run.metrics) if "train/loss" in line]


@pytest.fixture
def own_lab(ordinary_user: OrdinaryUser) -> Iterator[dict[str, str]]:
    """A cluster of this user's own: root's nodes could not read a Python that lies in root's home."""
    need_slurm()
    command = (sys.executable, "-m", "ropewalk.jobs.cli", "lab", "slurm")
    folder = str(ordinary_user.home / "lab")
    done = ordinary_user.run(*command, "up", folder, "--nodes", "1")
    assert done.returncode == 0, done.stderr
    yield {"SLURM_CONF": f"{folder}/etc/slurm.conf"}
    ordinary_user.run(*command, "down", folder)


@pytest.mark.soak("three runs in a lab of its own; make test runs test_an_ordinary_user_submits_to_roots_cluster")
def test_a_day_of_an_ordinary_user(own_lab: dict[str, str], ordinary_user: OrdinaryUser) -> None:
    home = ordinary_user.home
    (home / "clusters.yaml").write_text(yaml.safe_dump({"mine": {"backend": "slurm", "environment": {"PYTHONPATH": str(ROOT)}}}))
    write_dataset(home / "data", [5000], [600])
    (home / "data/tokenizer").mkdir()
    (home / "data/tokenizer/tokenizer.json").write_text("{}")  # a run that trains takes a copy

    def ropewalk(*arguments: str, code: int = 0) -> str:
        done = ordinary_user.run(
            sys.executable, "-m", "ropewalk.jobs.cli", *arguments, seconds=HANG_SECONDS, COLUMNS="200", **own_lab
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_of(word: str) -> RunDir:
        return RunDir(home / "runs" / word)

    ropewalk("trust")
    first = run_of(ropewalk("submit", *JOB, "steps=40", "resources.grace_seconds=20", "checkpoint.every_steps=10").split()[-1])
    chained = run_of(ropewalk("submit", *JOB, "steps=2", "--after", first.id).split()[-1])
    rows = {row["run"]: row for row in json.loads(ropewalk("ps", "--json"))}
    assert rows[first.id]["handle"] == f"slurm:{job_id(first)}"
    assert rows[chained.id]["reason"] == "Dependency"
    waiting = ropewalk("submit", *JOB, "steps=9", "--each", "seed=1,2", "--after", first.id).split()
    assert ropewalk("cancel", *waiting).count("is cancelled: cancelled while waiting") == 2
    until(lambda: steps_of(first), Patience.RUN)
    done = ordinary_user.run("scontrol", "requeue", job_id(first), **own_lab)
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in ropewalk("wait", first.id, "--json")
    assert steps_of(first)[-1] == 40
    assert sorted(set(steps_of(first))) == steps_of(first), "every step once"
    assert "SUCCEEDED" in ropewalk("wait", chained.id, "--json")
    assert "step" in ropewalk("logs", first.id)
    assert ropewalk("ps").startswith("no live runs")
    assert {path.owner() for path in Path(home / "runs").rglob("*")} == {ordinary_user.name}
