"""The output of a user's program is shown while its run is followed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.follow import follow
from tests.readme import ropewalk

PROGRAM = """
import os, sys
print("step 1 of rank", os.environ["RANK"])
print("a warning", file=sys.stderr)
print("no end of line", end="", flush=True)
"""


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.soak(
    "two commands; make test runs test_its_traceback_is_shown_once_and_without_that_of_ropewalk, and follows a program in"
    " test_a_run_from_submission_to_its_end"
)
def test_rank_0_is_shown_as_torchrun_does(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(PROGRAM)
    command = ("command", "resources.ranks_per_node=2", "--", "python", "train.py")
    out, err = ropewalk(tmp_path, "run", *command)
    shown = ["step 1 of rank 0", "a warning", "no end of line"]
    assert out.splitlines()[:3] == shown
    assert "rank 1" not in out
    assert "ropewalk." not in out, "its own log is not the program's output"
    assert "step 1" not in err
    out, err = ropewalk(tmp_path, "run", "--json", *command)
    assert json.loads(out)["state"] == "SUCCEEDED"
    assert [line for line in err.splitlines() if line in shown] == shown


def test_its_traceback_is_shown_once_and_without_that_of_ropewalk(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("1 / 0\n")
    out, err = ropewalk(tmp_path, "run", "command", "retries.bugs=0", "--", "python", "train.py", expect=1)
    assert out.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert out.count("Traceback") == 1
    assert err.count("ZeroDivisionError") == 1
    assert "\nnext\n  ropewalk why train-" in err


@pytest.mark.parametrize("resumed", [False, True])
def test_it_scrolls_above_the_bar_of_a_terminal(resumed: bool, tmp_path: Path) -> None:
    run = RunDir.create("train", {"job": "command", "config": {}, "cluster": "local"}, tmp_path)
    for _ in range(2 if resumed else 1):
        attempt = run.begin_attempt()
    log = run.log_dir(attempt) / "rank-0.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("earlier\n2026-11-29 05:38:00,123 rank 0 INFO ropewalk.cluster.engines.ranks: mine\n")

    def go_on(_: float) -> None:
        log.write_text(f"{log.read_text()}\x1b[32mgreen\x1b[0m\n")
        run.write_outcome(attempt, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))

    screen, stream = io.StringIO(), Terminal()
    follow(run, Console(file=screen, force_terminal=True), sleep=go_on, program_output=stream)
    assert stream.getvalue() == "", "written by the console, which draws the bar anew below it"
    assert ("earlier" in screen.getvalue()) is not resumed
    assert "\x1b[32mgreen" in screen.getvalue()
    assert "mine" not in screen.getvalue()
