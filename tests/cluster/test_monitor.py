"""Samples of a node, on disks and GPUs that do not do as they should."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from ropewalk.cluster.agent.monitor import Monitor, sample
from ropewalk.cluster.run.files import read_lines
from tests.patience import Patience, until


def test_a_sample_that_cannot_be_written_is_not_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gone" / "node-0.jsonl"
    monitor = Monitor(path, 0, interval_seconds=0.05)
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
