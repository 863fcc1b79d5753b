"""Finetuning, preferences and rewards on a real Slurm cluster: requeued, and their nodes dead, they learn as in peace."""

import subprocess
import sys

import pytest
import yaml

from cluster.run.files import read_lines
from cluster.run.names import AGENTS
from slurm.job_lookup import job_id
from tests.jobs.assistant import Assistant, check_equal, write_files
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.launch import events
from tests.jobs.shell import Shell
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT, MakeLab
from tests.slurm.toy import said

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800), pytest.mark.usefixtures("alone_with_ray")]


def test_an_assistant_is_made_bit_by_bit_though_jobs_are_requeued_and_nodes_die(
    make_lab: MakeLab,
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = make_lab(nodes=3, node_timeout_seconds=10)
    for name, value in {"PYTHONPATH": ROOT, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))
    # roots of their own: data that was prepared for a run is there for all beside it
    runs = {"local": shell.home / "runs", "lab": shell.home / "runs-of-lab"}
    profile = {"backend": "slurm", "runs": str(runs["lab"]), "python": sys.executable}
    (shell.home / "clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
    write_files(shell.home / "files")

    def begin(on: str, **resources: int) -> Assistant:
        return Assistant(shell, shell.home / "files", on, resources, runs[on].joinpath)

    def kill_node(name: str, step: int) -> str:
        run = disturbed.reach(name, step)
        host = [line["address"] for line in read_lines(run.attempt_dir(run.attempts()[-1]) / AGENTS)][-1]
        lab.kill_node(host)
        until(lambda: len(run.attempts()) == 2, said=lambda: said(run))
        return str(host)

    peaceful = begin("local", ranks_per_node=2)
    peaceful.finish()
    disturbed = begin("lab", nodes=2, grace_seconds=20)
    first = disturbed.runs["finetune"]
    until(lambda: events(first, "actors"), Patience.CLUSTER, lambda: said(first))  # Ray prepares the data
    subprocess.run(["scontrol", "requeue", job_id(first)], check=True)
    until(lambda: len(first.attempts()) == 2, said=lambda: said(first))
    subprocess.run(["scontrol", "requeue", job_id(disturbed.reach("finetune", 10))], check=True)
    lab.start_node(kill_node("dpo", 10))
    kill_node("grpo", 5)
    disturbed.finish()
    assert [len(run.attempts()) for run in disturbed.runs.values()] == [3, 2, 2]
    check_equal(peaceful, disturbed)
