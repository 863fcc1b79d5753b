"""A full disk ends nothing that serves: status files stay as they were, and are written again once there is room."""

import logging
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, read_lines
from ropewalk.jobs.serving.serve import progress
from ropewalk.jobs.serving.serve.files import LocalFiles
from ropewalk.jobs.serving.serve.job import Serving
from tests.fakes.full_disk import full_disk

ADDRESS = "http://127.0.0.1:1"


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """An attempt whose gateways and controller need nothing."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(progress, "UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "METRIC_SECONDS", 0.0)
    record: dict[str, Any] = {"job": "serve", "config": {"model": "m"}, "resources": {}}
    run = RunDir.create("serve", record, tmp_path)
    serving = Serving(JobContext(run=run, attempt=run.begin_attempt()))
    idle = SimpleNamespace(look=list, restart_if_ended=lambda: None, end=lambda seconds=0.0: None)
    serving.gateways, serving.controller, serving._address = cast(Any, idle), cast(Any, idle), ADDRESS
    return serving


def test_the_supervisor_goes_on_and_recovers(attempt: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with full_disk():
        for _ in range(5):
            attempt._check_parts()
    assert len([record for record in caplog.records if "progress of" in record.message]) == 1, "said once, not five times"
    assert read_json(attempt.files.address) is None
    attempt._check_parts()
    assert read_lines(attempt.context.run.metrics)
    assert (read_json(attempt.files.address) or {})["address"] == ADDRESS
    assert "written again after 5 failures" in caplog.text
    attempt.close()
    assert (read_json(attempt.files.address) or {})["closed"] <= time.time()


def test_a_restarted_part_looks_for_local_files_in_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a new process
    with full_disk():
        assert LocalFiles().folder == tmp_path / "serve"
