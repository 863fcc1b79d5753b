"""Rank 0 reports from a thread: no step waits for a shared file system."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ropewalk.cluster.errors import StaleAttemptError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.training.loop.report.report import Report
from ropewalk.jobs.training.loop.report.throughput import Meter
from ropewalk.jobs.training.loop.update.spikes import LossStatistics
from ropewalk.jobs.training.loop.update.step import StepStats
from tests.fakes.nfs import Network
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import losses, make_run, pretrain_config, start
from tests.patience import Patience, Stopwatch, until


def stats_of(step: int) -> StepStats:
    return StepStats(
        step=step,
        position=step,
        learning_rate=0.1,
        applied=True,
        loss=1.0,
        weight=10.0,
        gradient_norm=1.0,
        stop=False,
        save_failed=False,
        metrics={},
        watch=LossStatistics(),
        ended=time.perf_counter(),
    )


def report_of(run: RunDir) -> Report:
    group: Any = SimpleNamespace(is_main=True)
    meter: Any = SimpleNamespace(count_step=lambda: None, read=lambda now: {"train/tokens_per_second": 1.0}, spec=Meter)
    run.make_folders(run.begin_attempt())
    return Report(JobContext(run=run, attempt=run.attempts()[-1]), group, meter, steps=1000, log_every=1)


def test_steps_go_on_while_the_file_server_is_away(network: Network) -> None:
    run = RunDir.create("far", {"job": "toy", "config": {}}, network.client(latency_milliseconds=20))
    report = report_of(run)
    report.step(stats_of(1))
    report.flush()
    with network.clients[0].away(Patience.START.value):
        watch = Stopwatch()
        for step in range(2, 1000):
            report.step(stats_of(step))
            report.event("something", step=step)
        assert watch.seconds < 5.0
    report.close(999)
    assert [line["step"] for line in run.read_metrics()] == list(range(1, 1000))
    assert [event["step"] for event in run.read_events() if event["event"] == "something"] == list(range(2, 1000))
    assert read_json(run.progress)["done"] == 999  # type: ignore[index]


def test_a_step_whose_state_could_still_be_lost_is_not_reported(tmp_path: Path) -> None:
    run = RunDir.create("copied", {"job": "toy", "config": {}}, tmp_path)
    report = report_of(run)

    def written() -> list[int]:
        report.flush()
        return [line["step"] for line in run.read_metrics()]

    report.step(stats_of(1))
    report.holds = True
    report.step(stats_of(2))
    report.step(stats_of(3))
    assert written() == [1]
    report.release(2)
    assert written() == [1, 2]
    report.holds = False  # copies fail
    report.step(stats_of(4))
    assert written() == [1, 2, 3, 4]
    report.holds = True
    report.step(stats_of(5))
    report.close(5)
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3, 4, 5]


def test_an_old_group_stops_at_its_next_step(tmp_path: Path) -> None:
    run = RunDir.create("old", {"job": "toy", "config": {}}, tmp_path)
    report = report_of(run)
    report.step(stats_of(1))
    report.flush()
    run.begin_attempt()

    def stopped() -> bool:
        try:
            report.step(stats_of(2))
        except StaleAttemptError:
            return True
        return False

    until(stopped, Patience.SIGNAL)
    assert [line["step"] for line in run.read_metrics()] == [1]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    run = RunDir.create("full", {"job": "toy", "config": {}}, tmp_path)
    report = report_of(run)
    run.metrics.unlink(missing_ok=True)
    run.metrics.symlink_to("/dev/full")
    report.step(stats_of(1))
    with pytest.raises(OSError, match="No space left"):
        report.flush()
    with pytest.raises(OSError, match="No space left"):
        report.step(stats_of(2))


def test_a_training_step_makes_no_call_to_the_runs_file_system(tmp_path: Path) -> None:
    if shutil.which("strace") is None or os.geteuid() != 0:
        pytest.skip("needs strace (apt-get install strace) and root to watch a rank's system calls")
    data = make_dataset(tmp_path / "data")
    run = make_run(tmp_path / "runs", pretrain_config(data, steps=100_000, checkpoint={"every_steps": 50_000}))
    ranks = start(run, 1)
    ranks.until(lambda: max(losses(run), default=0) > 5)
    traced = tmp_path / "calls"
    arguments = ["strace", "-y", "-e", "trace=%file,%desc", "-o", str(traced), "-p", str(ranks.processes[0].pid)]
    tracer = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)  # the main thread alone
    began = max(losses(run))
    ranks.until(lambda: max(losses(run)) > began + 15)
    tracer.terminate()
    tracer.wait()
    ranks.kill()
    lines = traced.read_text().splitlines()
    assert lines, "it saw nothing at all"
    # a real agent's stop flag and requests to look into the run lie on the node's own disk
    assert not [
        line for line in lines if str(run.path) in line and not any(name in line for name in ("/stop-here", '/inspection"'))
    ][:5]
