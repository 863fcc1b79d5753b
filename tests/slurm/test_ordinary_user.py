"""All of it without root: a cluster of one's own, a training run that is requeued, one that is cancelled, through the command."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.run_dir import RunDir
from tests.fakes.token_files import write_dataset
from tests.jobs.launch import TINY
from tests.slurm.conftest import OrdinaryUser, need_slurm, until


class Shell:
    """The command, as this user in his home."""

    def __init__(self, user: OrdinaryUser) -> None:
        self.user = user
        self.env: dict[str, str] = {}

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.user.run(sys.executable, "-m", "jobs.cli", *words, seconds=120, **self.env)
        assert done.returncode == code, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, steps: int) -> RunDir:
        model = json.dumps({"config": TINY})
        words = ["data=data", f"model={model}", f"steps={steps}", "seq_len=32", "batch={global_batch: 8, micro_batch: 2}"]
        words += ["checkpoint.every_steps=1000", "resources={nodes: 2, grace_seconds: 20}"]
        run = self("submit", "pretrain", *words, "--on", "lab").splitlines()[-1]
        return RunDir(self.user.home / "runs" / run)


@pytest.fixture
def shell(ordinary_user: OrdinaryUser) -> Iterator[Shell]:
    need_slurm()
    shell = Shell(ordinary_user)
    lab = ordinary_user.home / "lab"
    write_dataset(ordinary_user.home / "data", [4000])
    (ordinary_user.home / "clusters.yaml").write_text(
        f"lab: {{backend: slurm, partition: main, runs: {ordinary_user.home}/runs}}\n"
    )
    try:
        shell("lab", "slurm", "up", str(lab), "--nodes", "2")
        shell.env["SLURM_CONF"] = str(lab / "etc/slurm.conf")
        yield shell
    finally:
        shell("lab", "slurm", "down", str(lab))


def reach(run: RunDir, step: int) -> None:
    until(lambda: max((m["step"] for m in run.read_metrics()), default=0) >= step, 90)


def test_an_ordinary_user_trains_is_requeued_and_cancels(shell: Shell) -> None:
    first = shell.start(steps=60)
    reach(first, 3)
    job = str(first.attempt_details(1)["handle"]).partition(":")[2]
    assert shell.user.run("scontrol", "requeue", job, **shell.env).returncode == 0
    assert "SUCCEEDED" in shell("wait", first.id, "--json")
    assert [o.exit_code for n in first.attempts() if (o := first.outcome(n))] == [85, 0]
    steps = [m["step"] for m in first.read_metrics() if "train/loss" in m]
    assert steps == list(range(1, 61))

    second = shell.start(steps=100000)
    reach(second, 3)
    shell("cancel", second.id)
    shell("wait", second.id, code=1)
    listed: list[dict[str, Any]] = json.loads(shell("ps", "--all", "--json"))
    assert {row["run"]: row["state"] for row in listed} == {first.id: "SUCCEEDED", second.id: "CANCELLED"}
    assert not Path(second.path / "attempts/0002").exists()
