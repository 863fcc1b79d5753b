"""Output to a reader that leaves early, a full device, and a path that cannot exist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[3]
ROPEWALK = f"{sys.executable} -m ropewalk.jobs.cli"


def bash(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which a pipe fails where any of its commands does."""
    command = ["bash", "-o", "pipefail", "-c", line]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=HANG_SECONDS, check=False)


@pytest.mark.parametrize("command", ["run pretrain --help", "--help"])
def test_a_reader_that_has_seen_enough_is_no_failure(command: str) -> None:
    done = bash(f"{ROPEWALK} {command} | head -1")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", ["run pretrain --help", "ps", "ps --json"])
def test_an_output_that_is_full_is_one_line(command: str, tmp_path: Path) -> None:
    done = bash(f"{ROPEWALK} {command} > /dev/full", ROPEWALK_RUNS=str(tmp_path))
    assert done.returncode == 2
    assert (
        done.stderr == "error: cannot write the output or a file: No space left on device; free some space, or write elsewhere\n"
    )


def test_runs_where_nothing_can_be_are_one_line() -> None:
    done = bash(f"{ROPEWALK} run command launch=once -- true", ROPEWALK_RUNS="/proc/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: /proc/nowhere: No such file or directory")
    assert len(done.stderr.splitlines()) == 1
