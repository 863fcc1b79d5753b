"""A run with `micro_batch: auto` in a control group that has half of the memory which the same run takes without a limit."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.spec import RunState
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, events, losses
from tests.patience import HANG_SECONDS, until

CONTROLLER = Path("/sys/fs/cgroup/memory")
STEPS = 6
# of version 1: one that root may make anywhere, in a container too
pytestmark = [
    pytest.mark.soak("gigabytes; make test plants errors of memory in test_micro_batch.py"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not (CONTROLLER / "memory.limit_in_bytes").exists(),
        reason=f"needs root and the memory controller of version 1 in {CONTROLLER}",
    ),
]


@pytest.fixture
def make_group() -> Iterator[Callable[[str], Path]]:
    groups: list[Path] = []

    def make(name: str) -> Path:
        groups.append(CONTROLLER / f"ropewalk-test-{os.getpid()}-{name}")
        groups[-1].mkdir()
        return groups[-1]

    yield make
    for group in groups:
        until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
        group.rmdir()


def train(folder: Path, group: Path, data: Path) -> RunDir:
    """Train in a control group, to the end."""
    folder.mkdir()
    config = {
        "data": str(data),
        "model": {"config": {**TINY, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4}},
        "seq_len": 128,
        "steps": STEPS,
        "batch": {"global_batch": 512, "micro_batch": "auto"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "ropewalk.jobs.cli", "run", "pretrain", "-c", "job.yaml"],
        cwd=folder,
        env={**os.environ, RUNS_VARIABLE: str(folder / "runs")},
        preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),  # type: ignore[arg-type, return-value]
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = RunDir.all(folder / "runs")
    outcome = run.last_outcome()
    assert outcome is not None
    assert outcome.state is RunState.SUCCEEDED
    return run


def test_a_run_in_half_the_memory_finds_its_micro_batch(tmp_path: Path, make_group: Callable[[str], Path]) -> None:
    data = make_dataset(tmp_path / "data", num_documents=800)
    whole, half = make_group("whole"), make_group("half")
    free = train(tmp_path / "free", whole, data)
    taken = int((whole / "memory.max_usage_in_bytes").read_text())
    (half / "memory.limit_in_bytes").write_text(str(taken // 2))
    limited = train(tmp_path / "limited", half, data)
    sizes = [[event["size"] for event in events(run, "micro_batch")] for run in (free, limited)]
    print(f"{taken / 2**20:.0f} MiB without a limit; micro-batches {sizes[0]}, then {sizes[1]}")
    assert sizes[0] == [512]
    assert sizes[1][-1] < 512
    last = max((event["time"] for event in events(limited, "micro_batch")), default=0.0)
    steps = [line["step"] for line in limited.read_metrics() if "train/loss" in line and line["time"] < last]
    assert max(steps, default=0) <= 5
    assert losses(limited) == pytest.approx(losses(free), rel=1e-6)
