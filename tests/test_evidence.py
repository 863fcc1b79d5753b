"""Diagnostics of runs in a failed test's report."""

import time
from pathlib import Path

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from tests.evidence import sections


def test_the_report_says_how_every_attempt_ended_and_its_last_words(tmp_path: Path) -> None:
    run = RunDir.create("toy", {"config": {}}, tmp_path / "runs")
    run.make_folders(run.begin_attempt())
    run.event("group_formed", nodes=2)
    (run.log_dir(1) / "rank-0.log").write_text("first\nRuntimeError: out of luck\n")
    run.write_outcome(1, Outcome(state=RunState.FAILED, exit_code=1, cause="bad luck", ended=time.time()))
    run.begin_attempt()
    (title, text), *others = sections({"tmp_path": tmp_path})
    assert (title, others) == ("its runs", [])
    for message in (run.id, "FAILED 1: bad luck", "attempt 2 not over", 'group_formed {"nodes": 2}', "rank-0.log | RuntimeError"):
        assert message in text


def test_what_cannot_be_read_is_no_error_of_its_own(tmp_path: Path) -> None:
    run = RunDir.create("toy", {"config": {}}, tmp_path)
    run.metrics.write_text('{"step": 1}\n')
    run.begin_attempt()
    assert [title for title, _ in sections({"tmp_path": tmp_path})] == ["what its runs say could not be read"]
