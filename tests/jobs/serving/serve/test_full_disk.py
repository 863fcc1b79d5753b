"""A full disk ends nothing that serves: status files stay as they were, and are written again once there is room."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, read_lines, write_json
from ropewalk.jobs.serving.serve import progress
from ropewalk.jobs.serving.serve.job import Serving
from tests.fakes.full_disk import full_disk


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serving:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(progress, "UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "METRIC_SECONDS", 0.0)
    record: dict[str, Any] = {"job": "serve", "config": {"model": "m"}, "resources": {}}
    run = RunDir.create("serve", record, tmp_path)
    return Serving(JobContext(run=run, attempt=run.begin_attempt()))


def test_the_supervisor_goes_on_and_recovers(attempt: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    attempt._check_parts()
    metrics = attempt.context.run.metrics
    before = len(read_lines(metrics))
    address = {"address": "http://127.0.0.1:1", "port": 1, "pid": 1}
    write_json(attempt.local.address, address)
    with full_disk():
        for _ in range(5):
            attempt._check_parts()
    assert len([record for record in caplog.records if "progress of" in record.message]) == 1, "said once, not five times"
    assert read_json(attempt.files.address) is None
    attempt._check_parts()
    assert len(read_lines(metrics)) > before
    assert (read_json(attempt.files.address) or {})["address"] == address["address"]
    assert "written again after 5 failures" in caplog.text
    attempt.close()
    assert (read_json(attempt.files.address) or {})["closed"] <= time.time()
