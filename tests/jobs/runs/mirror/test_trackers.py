"""Other trackers, with their real packages: what they hold is what metrics.jsonl holds, over attempts and kills."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import ClassVar

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.runs.mirror.tensorboard import TensorBoard
from ropewalk.jobs.runs.mirror.trackers import Reader, find_tracker
from tests.patience import Patience, ended, until

POINTS = """[ropewalk.trackers]
tensorboard = ropewalk.jobs.runs.mirror.tensorboard:TensorBoard
mlflow = ropewalk.jobs.runs.mirror.mlflow:MLflow
no = nothing:At
trackio = ropewalk.jobs.runs.mirror.trackio:Trackio
forgetful = tests.jobs.runs.mirror.test_trackers:Forgetful
"""


class Forgetful:
    """A tracker that fails once, and forgets what it was not told to keep."""

    stored: ClassVar[list[int]] = []
    failed: ClassVar[bool] = False

    def __init__(self, run: RunDir) -> None:
        self._waiting: list[int] = []

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        if step == 3 and not Forgetful.failed:
            Forgetful.failed = True
            raise ConnectionError("away")
        self._waiting.append(step)

    def flush(self) -> None:
        Forgetful.stored += self._waiting
        self._waiting = []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    plugin = tmp_path / "plugin/trackers-1.0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "entry_points.txt").write_text(POINTS)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: trackers\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(plugin.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(plugin.parent))
    config = {"name": "twist", "steps": 20, "trackers": ["tensorboard", "mlflow"]}
    return RunDir.create("tracked", {"job": "pretrain", "config": config, "cluster": "local"}, tmp_path)


def start(run: RunDir, attempt: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "ropewalk.jobs.runs.mirror.trackers", str(run.path), "--attempt", str(attempt)]
    )


def log_steps(run: RunDir, attempt: int, steps: range) -> None:
    metrics = MetricLog(JobContext(run=run, attempt=attempt))
    for step in steps:
        metrics.log(step, {"train/loss": 1 / step, "train/odd": float("nan")})


def tensorboard_steps(run: RunDir) -> set[int]:
    from tensorboardX.proto.event_pb2 import Event

    results = set()
    for path in (run.path / "trackers/tensorboard").glob("events.*"):
        raw, at = path.read_bytes(), 0
        while at + 12 <= len(raw):  # length, its checksum, the event, its checksum
            size = int.from_bytes(raw[at : at + 8], "little")
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            results |= {event.step for value in event.summary.value if value.tag == "train/loss"}
            at += size + 16
    return results


def mlflow_steps(run: RunDir) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{run.path}/trackers/mlflow/mlflow.db")
        recorded = read_json(run.path / "trackers/mlflow/run.json") or {}
        return sorted({metric.step for metric in client.get_metric_history(recorded["run_id"], "train/loss")})


@pytest.mark.soak(
    "MLflow's imports and its database take a minute; another test of this file reads TensorBoard's file after a kill"
)
def test_both_hold_every_step_over_two_attempts_and_a_kill(run: RunDir) -> None:
    run.begin_attempt()
    killed = start(run, 1)
    log_steps(run, 1, range(1, 11))
    until(lambda: (run.path / "trackers/mlflow/run.json").exists() and tensorboard_steps(run), Patience.START)
    killed.kill()
    killed.wait()
    run.begin_attempt()
    again = start(run, 2)
    log_steps(run, 2, range(11, 21))
    until(lambda: 20 in tensorboard_steps(run), Patience.START)
    again.send_signal(signal.SIGHUP)
    assert ended(again) == 0
    assert tensorboard_steps(run) == set(range(1, 21))
    assert mlflow_steps(run) == list(range(1, 21))


def test_a_tracker_that_is_not_there_is_named(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="comet is not installed; installed: forgetful, mlflow, no, tensorboard, trackio"):
        find_tracker("comet")
    with pytest.raises(ConfigError, match="no needs a package that is not installed here"):
        find_tracker("no")


def test_what_was_flushed_outlives_the_process(run: RunDir) -> None:
    """The cursor is written behind a flush: what a kill takes then, nobody hands over again."""
    writer = TensorBoard(run)
    for step in range(1, 101):
        writer.log(step, {"train/loss": 1 / step}, 1.0)
    writer.flush()
    assert tensorboard_steps(run) == set(range(1, 101))
    writer._writer.close()


def test_a_tracker_that_fails_is_opened_again_and_lacks_nothing(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    run.begin_attempt()
    log_steps(run, 1, range(1, 6))
    reader = Reader(run, "forgetful")
    reader.look()
    reader.look()
    assert Forgetful.stored == [], "it waits before it opens it again"
    reader.look(last=True)
    assert Forgetful.stored == [1, 2, 3, 4, 5]
    assert [record.message for record in caplog.records] == ["forgetful: away; reopening the tracker every 15 seconds"]


READ = (
    "import json, sys; from trackio.sqlite_storage import SQLiteStorage; print(json.dumps(SQLiteStorage.get_logs(*sys.argv[1:])))"
)


@pytest.mark.soak("needs another pillow than the tests' environment has; another test of this file covers TensorBoard")
def test_trackio_holds_every_step_over_two_attempts_and_a_kill(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    python = os.environ.get("ROPEWALK_TEST_TRACKIO")
    if python is None:
        pytest.skip(
            "ROPEWALK_TEST_TRACKIO names no folder with trackio: pip install --no-deps --target DIR trackio gradio_client"
        )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], python]))
    run = RunDir.create("trackio", {"job": "pretrain", "config": {"trackers": ["trackio"]}, "cluster": "local"}, run.path.parent)

    def seen() -> set[int]:
        environment = {**os.environ, "TRACKIO_DIR": str(run.path / "trackers/trackio")}
        command = [sys.executable, "-c", READ, "ropewalk", run.id]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return {line["step"] for line in json.loads(done.stdout or "[]") if "train/loss" in line}

    run.begin_attempt()
    killed = start(run, 1)
    log_steps(run, 1, range(1, 11))
    until(lambda: 10 in seen(), Patience.START)
    log_steps(run, 1, range(11, 16))
    killed.kill()
    killed.wait()
    run.begin_attempt()
    again = start(run, 2)
    log_steps(run, 2, range(16, 21))
    until(lambda: 20 in seen(), Patience.START)
    again.send_signal(signal.SIGHUP)
    assert ended(again) == 0
    assert seen() == set(range(1, 21))
