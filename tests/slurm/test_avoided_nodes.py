"""Machines that failed repeatedly are excluded from new jobs; an error of GPU hardware is noted for its host."""

import math
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, write_json
from ropewalk.cluster.run.node_ledger import read_failures, record_gpu_failures
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.runtime.allocation import SlurmAllocation
from tests.slurm.test_cores import PARTITION

NODES = "".join(f"n{number}|idle|0/8/0/8|1000|(null)\n" for number in range(20))


def backend(**profile: Any) -> SlurmBackend:
    def answer(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        partition = PARTITION.format(name="gpu", default="YES", share="NO", defaults="(null)")
        return subprocess.CompletedProcess(command, 0, NODES if command[0] == "sinfo" else partition, "")

    return SlurmBackend(Profile(name="big", backend="slurm", options=profile), Slurm(answer))


def fail(root: Path, *names: str) -> None:
    """Two runs lose each machine, days apart."""
    (root / ".nodes").mkdir()
    for number, node in enumerate(names):
        for run in ("a", "b"):
            when = time.time() - 86400 * (number + 1) - 7200 * (run == "a")
            line = {"time": when, "node": node, "cause": "down", "run": f"{run}-{node}", "attempt": 1}
            append_line(root / f".nodes/big-{os.getuid()}.jsonl", line)


def test_a_tenth_of_the_partition_is_excluded(tmp_path: Path) -> None:
    assert backend()._with_avoided(tmp_path).exclude is None
    fail(tmp_path, "n3", "n7", "n9", "elsewhere")
    assert backend()._with_avoided(tmp_path).exclude == "n3,n7"
    assert backend(exclude="n1")._with_avoided(tmp_path).exclude == "n1,n3,n7"
    assert backend(reservation="mine")._with_avoided(tmp_path).exclude is None, "its nodes are chosen already"


@pytest.mark.parametrize(("spare", "excluded"), [(1, "n1,n2,n3"), (0, "n1,n3")])
def test_a_lost_machine_is_not_asked_again_for_a_while_if_the_run_can_wait(
    spare: int, excluded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropewalk.slurm.runtime.allocation.ends_at", lambda _: math.inf)
    run = RunDir.create("toy", {"job": "toy", "engine": "ranks", "config": {}}, tmp_path)
    run.make_folders(run.begin_attempt())
    options: list[str] = []
    slurm: Any = SimpleNamespace(job_details=lambda _: {}, sbatch=lambda _, *more: options.extend(more) or "7")
    resources = Resources.model_validate({"nodes": "1..2", "spare_nodes": spare})
    allocation = SlurmAllocation(run, resources, SlurmProfile(), slurm, job="1", hosts=["n1", "n2", "n3"])
    allocation.mark_lost(1)
    allocation._request_nodes(1)
    assert options == [f"--exclude={excluded}"]


def test_an_error_of_gpu_hardware_is_noted_for_its_host(tmp_path: Path) -> None:
    run = RunDir.create("test", {"job": "command", "engine": "ranks", "config": {}, "resources": {}, "cluster": "big"}, tmp_path)
    run.begin_attempt()
    for rank, (host, message) in enumerate([("n2", "uncorrectable ECC error"), ("n3", "out of memory"), ("m1", "GPU is lost")]):
        (run.attempt_dir(1) / "errors").mkdir(exist_ok=True)
        error = {"host": host, "message": message, "exit_code": 1, "time": 1.0}
        write_json(run.attempt_dir(1) / f"errors/group-1-rank-{rank}.json", error)
    record_gpu_failures(run, 1, {"n2", "n3"})
    assert [(each.node, each.cause) for each in read_failures(tmp_path, "big")] == [("n2", "gpu")]
