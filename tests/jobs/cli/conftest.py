"""A running run for the tests of the command."""

import json

import pytest

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.metrics import MetricLog
from tests.jobs.shell import Shell, pretrain


@pytest.fixture
def running(shell: Shell) -> RunDir:
    run = RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", "slow")).strip())
    log = MetricLog(JobContext(run=run, attempt=1))
    for step in range(1, 4):
        log.log(step, {"train/loss": 5.0 - step, "train/tokens_per_second": 1000.0})
    sample = {"time": 1.0, "node": 0, "cpu_percent": 55.0, "memory_used_gib": 3.25}
    (run.attempt_dir(1) / "nodes/node-0.jsonl").write_text(json.dumps(sample) + "\n")
    for name, text in (("node-0", "agent up\n"), ("rank-0", "hello\n"), ("rank-1", "world\n")):
        (run.log_dir(1) / f"{name}.log").write_text(text)
    return run
