"""Samples of a node, on disks and GPUs that do not do as they should."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from ropewalk.cluster.agent import monitor as monitors
from ropewalk.cluster.agent.monitor import DENSE_SECONDS, Monitor, sample
from ropewalk.cluster.process import log_rotation
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.jobs.runs.show.logs import read_logs
from tests.patience import Patience, until


def test_a_sample_that_cannot_be_written_is_not_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gone" / "node-0.jsonl"
    monitor = Monitor(path, 0, tmp_path, interval_seconds=0.05)
    with caplog.at_level(logging.WARNING):
        monitor.start()
        until(lambda: "a sample of the node could not be written" in caplog.text, Patience.SIGNAL)
    path.parent.mkdir()
    until(lambda: read_lines(path), Patience.SIGNAL)
    monitor.stop()


def test_a_gpu_that_is_cut_into_parts_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(_: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUtilizationRates": not_supported,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=2**31),
    }.items():
        monkeypatch.setattr(pynvml, name, function)
    result = sample(0)
    assert {name: value for name, value in result.items() if name.startswith("gpu")} == {"gpu0_memory_gib": 2.0}


def test_after_a_day_samples_are_sparse_and_the_node_still_shows_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(monitors.time, "monotonic", lambda: now[0])
    path = tmp_path / "node-0.jsonl"
    monitor = Monitor(path, 0, tmp_path)
    monitor._look()
    now[0] += DENSE_SECONDS
    monitor._look()
    for seconds in range(0, 600, 5):
        now[0] += 5
        os.utime(path, (seconds, seconds))
        monitor._look()
        assert path.stat().st_mtime > 1e9
    assert len(read_lines(path)) == 2 + 10


def test_the_file_of_samples_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "ROTATION_SECONDS", 0.0)
    monkeypatch.setattr(log_rotation, "MOST_BYTES", 2000)
    monitor = Monitor(tmp_path / "node-0.jsonl", 0, tmp_path)
    for _ in range(30):
        monitor._look()
    assert {path.name for path in tmp_path.iterdir()} == {"node-0.jsonl", "node-0.jsonl.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 2000


WRITER = """
import os, sys, time
for number in range(int(sys.argv[1])):
    while os.fstat(1).st_size > 150_000:  # the monitor may be slow on a busy machine
        time.sleep(0.001)
    os.write(1, f"{number:06d} {'x' * 92}\\n".encode())  # at once, which print does not do everywhere
sys.stdin.read()  # a rotation needs a writer
"""


def test_a_log_is_bounded_while_its_writer_keeps_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is a child of a child with the log as its stdout, as an engine below a replica is."""
    monkeypatch.setattr(monitors, "ROTATION_SECONDS", 0.0)
    monkeypatch.setattr(log_rotation, "MOST_BYTES", 100_000)
    run = RunDir.create("r", {"config": {}}, tmp_path)
    run.make_folders(run.begin_attempt())
    path = run.log_dir(1) / "rank-0.log"
    other = run.log_dir(1) / "rank-1.log"
    other.write_text("of another node\n" * 10_000)
    monitor = Monitor(run.attempt_dir(1) / "nodes/node-0.jsonl", 0, run.path, interval_seconds=0.001)
    monitor.start()
    with path.open("ab") as stream:
        writer = subprocess.Popen(
            ["sh", "-c", '"$0" -c "$1" 20000; true', sys.executable, WRITER], stdin=subprocess.PIPE, stdout=stream
        )
    until(lambda: path.stat().st_size < 200_000 and "019999 " in "".join(map(str, [*read_logs(run, rank=0)][-1:])), Patience.STEP)
    writer.communicate()
    monitor.stop()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "monitor"], Patience.SIGNAL)
    lines = [str(line).split() for line in read_logs(run, rank=0)]
    numbers = [int(line[2]) for line in lines]
    assert numbers == sorted(set(numbers))
    assert {line[3] for line in lines} == {"x" * 92}, "every line is whole, and no gap is filled with zeros"
    assert numbers[-1] == 19_999
    assert len(numbers) < 10_000
    assert not log_rotation.predecessor(other).exists(), "only the machine that writes a log rotates it"
