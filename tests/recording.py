"""A pytest plugin: what was collected, begun and found, one JSON object a line, so that nothing is forgotten if pytest dies."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

RECORD_VARIABLE = "ROPEWALK_TEST_RECORD"  # the file to append to


def _write(**line: Any) -> None:
    if place := os.environ.get(RECORD_VARIABLE):
        with Path(place).open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell which tests are to run."""
    _write(collected=[item.nodeid for item in session.items])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Tell of a module that cannot be collected, as of a test that failed."""
    if report.failed:
        _write(id=report.nodeid, when="collect", outcome="failed", seconds=0.0, text=report.longreprtext)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Tell which test begins."""
    _write(begun=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell what became of one phase of a test, with its evidence if that is a failure."""
    text = report.longreprtext if report.failed else ""
    if report.skipped and isinstance(report.longrepr, tuple):
        text = str(report.longrepr[2])
    for title, words in report.sections if report.failed else []:
        text += f"\n--- {title}\n{words}"
    _write(id=report.nodeid, when=report.when, outcome=report.outcome, seconds=round(report.duration, 3), text=text)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Tell which test is over."""
    _write(over=nodeid)
