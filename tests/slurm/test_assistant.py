"""Finetuning, preferences and rewards on a real Slurm cluster: requeued, and their nodes dead, they learn as in peace."""

import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.slurm.job_lookup import job_id
from tests.jobs.assistant import Assistant, check_equal, set_up, write_files
from tests.jobs.launch import events
from tests.patience import Patience, until
from tests.slurm.conftest import MakeLab
from tests.slurm.toy import said

pytestmark = [
    pytest.mark.soak(
        "minutes, six runs; make test kills the same jobs on this machine, and test_command.py kills the node of a plain script"
    ),
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("alone_with_ray"),
]


def test_an_assistant_is_made_bit_by_bit_though_jobs_are_requeued_and_nodes_die(
    make_lab: MakeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(nodes=3, node_timeout_seconds=10)
    # roots of their own: data that was prepared for a run is there for all beside it
    runs = {"local": tmp_path / "runs", "lab": tmp_path / "runs-of-lab"}
    set_up(tmp_path, {"lab": {"backend": "slurm", "runs": str(runs["lab"]), "python": sys.executable}}, monkeypatch)
    write_files(tmp_path / "files")

    def begin(on: str, **resources: int) -> Assistant:
        return Assistant(tmp_path, tmp_path / "files", on, resources, runs[on].joinpath)

    def kill_node(name: str, step: int) -> str:
        run = disturbed.reach(name, step)
        host = [line["address"] for line in read_lines(run.attempt_dir(run.attempts()[-1]) / AGENTS)][-1]
        lab.kill_node(host)
        until(lambda: len(run.attempts()) == 2, describe=lambda: said(run))
        return str(host)

    peaceful = begin("local", ranks_per_node=2)
    peaceful.finish()
    disturbed = begin("lab", nodes=2, grace_seconds=20)
    first = disturbed.runs["finetune"]
    until(lambda: events(first, "actors"), Patience.CLUSTER, lambda: said(first))  # Ray prepares the data
    subprocess.run(["scontrol", "requeue", job_id(first)], check=True)
    until(lambda: len(first.attempts()) == 2, describe=lambda: said(first))
    subprocess.run(["scontrol", "requeue", job_id(disturbed.reach("finetune", 10))], check=True)
    lab.start_node(kill_node("dpo", 10))
    kill_node("grpo", 5)
    disturbed.finish()
    assert [len(run.attempts()) for run in disturbed.runs.values()] == [3, 2, 2]
    check_equal(peaceful, disturbed)
