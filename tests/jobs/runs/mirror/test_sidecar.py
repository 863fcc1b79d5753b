"""The W&B sidecar: real processes, W&B's own offline files read back, kill -9."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.results.metrics import MetricLog
from tests.forked import Forked
from tests.jobs.runs.mirror.offline import records
from tests.patience import Stopwatch, ended, until

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'ropewalk.jobs.runs.mirror.sidecar', *sys.argv[1:]])"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the person who runs the tests
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    record = {"job": "pretrain", "config": {"name": "twist", "optim": {"lr": 0.1}}, "cluster": "local", "code": {"commit": "abc"}}
    return RunDir.create("mirrored", record, tmp_path)


def start(run: RunDir, attempt: int) -> Any:
    return Forked(module_command("ropewalk.jobs.runs.mirror.sidecar", str(run.path), "--attempt", str(attempt)))


def catches_sigterm(pid: int) -> bool:
    """Return True if the process has installed its handler of SIGTERM."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & (1 << (signal.SIGTERM - 1)))


def stop(sidecar: Any, run: RunDir, attempt: int, exit_code: int) -> float:
    """Stop a sidecar as the agent does; return the seconds it took."""
    until(lambda: catches_sigterm(sidecar.pid))
    write_json(run.attempt_dir(attempt) / "nodes" / "node-0.json", {"exit_code": exit_code})
    sidecar.send_signal(signal.SIGTERM)
    watch = Stopwatch()
    assert ended(sidecar) == 0
    return watch.seconds


def history(run: RunDir, key: str) -> list[float]:
    values = []
    for record in records(run, "history"):
        row = record["history"]
        row = row.get("item", row)
        if isinstance(row, list):
            row = {i.get("key") or ".".join(i["nested_key"]): json.loads(i["value_json"]) for i in row}
        if key in row:
            values.append(row[key])
    return values


def log_steps(run: RunDir, attempt: int, steps: range) -> None:
    metrics = MetricLog(JobContext(run=run, attempt=attempt))
    for step in steps:
        metrics.log(step, {"train/loss": 1 / step})


@pytest.mark.soak(
    "11 seconds of CPU time; make test mirrors three attempts in test_every_line_once_though_sidecar_and_relay_are_killed"
)
def test_one_wandb_run_over_two_attempts_nothing_twice(run: RunDir) -> None:
    for attempt, steps, code in ((1, range(1, 21), 85), (2, range(21, 41), 0)):
        run.begin_attempt(handle=f"local:{attempt}")
        sidecar = start(run, attempt)
        log_steps(run, attempt, steps)
        run.event("checkpoint", step=steps[-1])
        (run.attempt_dir(attempt) / "nodes" / "node-0.jsonl").write_text('{"time": 5.0, "node": 0, "cpu_percent": 7.5}\n')
        assert stop(sidecar, run, attempt, code) < 10
    assert sorted(history(run, "train/step")) == sorted([*range(1, 41), 20, 40])  # and two events
    assert len(history(run, "train/loss")) == 40
    assert history(run, "system/node-0/cpu_percent") == [7.5, 7.5]
    opened = [record["run"] for record in records(run, "run")]
    assert {r["run_id"] for r in opened} == {run.id}
    assert {(r["run_group"], r["job_type"]) for r in opened} == {("twist", "pretrain")}
    assert opened[0]["tags"] == ["local"]
    text = json.dumps(opened)
    assert all(word in text for word in ('"commit": "abc"', "local:2", '"lr": 0.1'))
    exits = [record["exit"].get("exit_code", 0) for record in records(run, "exit")]
    assert exits == [85, 0]


@pytest.mark.soak("test_every_line_once_though_sidecar_and_relay_are_killed kills a sidecar")
def test_kill_9_loses_nothing_older_than_a_second_and_a_new_sidecar_goes_on(run: RunDir) -> None:
    run.begin_attempt()
    sidecar = start(run, 1)
    log_steps(run, 1, range(1, 11))
    until((run.wandb / "offline.json").exists)
    sidecar.kill()
    sidecar.wait()
    assert history(run, "train/loss") == [pytest.approx(1 / s) for s in range(1, 11)]
    log_steps(run, 1, range(11, 16))
    again = start(run, 1)
    stop(again, run, 1, 0)
    assert history(run, "train/loss") == [pytest.approx(1 / s) for s in range(1, 16)]
    assert [line["step"] for line in run.read_metrics()] == list(range(1, 16))


@pytest.mark.soak("test_every_line_once_though_sidecar_and_relay_are_killed has sidecars and their ends")
def test_the_end_of_the_agent_is_the_end_of_the_sidecar(run: RunDir) -> None:
    """An agent that was killed sends no signal."""
    run.begin_attempt()
    log_steps(run, 1, range(1, 4))
    command = [sys.executable, "-c", PARENT, str(run.path), "--attempt", "1"]
    parent = subprocess.Popen(command)
    until(lambda: bool(list(run.wandb.glob("offline-run-*"))))
    parent.kill()
    parent.wait()
    until(lambda: bool(run.wandb.exists() and records(run, "exit")))
    assert len(history(run, "train/loss")) == 3


@pytest.mark.soak("waits for timeouts; test_relay.py kills the sidecar, and says once that a key is missing")
def test_a_server_that_is_down_holds_up_nobody(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run.begin_attempt()
    sidecar = start(run, 1)
    log_steps(run, 1, range(1, 4))
    assert stop(sidecar, run, 1, 0) < 10
    assert len(history(run, "train/loss")) == 3
