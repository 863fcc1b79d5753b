"""The command over the real local backend: follow, interrupt, cancel, resume, wait, read the logs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.jobs.shell import Shell
from tests.patience import HANG_SECONDS, until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A counter over two virtual nodes that has not been started yet."""
    record = {
        "job": "pretrain",
        "entry": "tests.fakes.toy:count",
        "engine": "ranks",
        "preload": ["torch", "tests.fakes.toy"],
        "sidecars": ["ropewalk.jobs.runs.mirror.sidecar"],
        "config": {"steps": 100_000, "pause": 0.02},
        "resources": {"nodes": 2, "ranks_per_node": 1},
        "cluster": "local",
        "created": time.time(),
    }
    return RunDir.create("counted", record, tmp_path / "runs")


def start(run: RunDir, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ROPEWALK_RUNS": str(run.path.parent), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "ropewalk.jobs.cli", *arguments]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else it is deaf where these tests run in the background
    try:
        # where the toy can be imported from
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def steps(run: RunDir) -> int:
    lines = run.read_metrics()
    return int(lines[-1]["step"]) if lines else 0


def test_a_run_outlives_its_terminal_and_goes_on_where_it_was(run: RunDir, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    followed = start(run, "resume", run.id)
    try:
        until(lambda: steps(run) > 5)
        followed.send_signal(signal.SIGINT)
        _, err = followed.communicate(timeout=HANG_SECONDS)
        assert followed.returncode == 130
        assert "keeps running" in err
        before = steps(run)
        until(lambda: steps(run) > before)  # nobody follows it any more

        (row,) = json.loads(shell("ps", "--json"))
        assert (row["run"], row["state"], row["nodes"]) == (run.id, "RUNNING", 2)
        assert "node 1" in shell("top", "--once")
        assert "It is running" in shell("why", run.id)
        shell("resume", run.id, "--detach", expect=1)  # it is under way already
    finally:
        shell("cancel", run.id)
    ended = json.loads(shell("wait", run.id, "--json", expect=1))
    assert ended["state"] == "CANCELLED"
    reached = steps(run)

    shell("resume", run.id, "resources.nodes=1", "--detach")
    assert run.id in shell("ps")  # the old outcome ends nothing any more
    until(lambda: steps(run) > reached + 3)
    step_numbers = [line["step"] for line in run.read_metrics()]  # once: it goes on meanwhile
    assert step_numbers == list(range(1, len(step_numbers) + 1))
    listening = start(run, "logs", "-f", run.id)
    shell("cancel", run.id)
    shell("wait", run.id, expect=1)
    listening.communicate(timeout=HANG_SECONDS)
    assert listening.returncode == 0  # it ends with the run
    assert run.attempts() == [1, 2]
    outcome = run.outcome(2)
    assert outcome is not None
    assert outcome.state is RunState.CANCELLED
    assert "It was cancelled" in shell("why", run.id)
