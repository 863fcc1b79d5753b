"""What `why` says of 60 and more programs that fail, each run for real."""

import faulthandler
import os
import signal
import sys
import traceback
from pathlib import Path

import pytest
import yaml

from jobs.programs.verdict import how_it_ended, last_words
from jobs.runs.known_errors import known_error, known_errors

PLANTED = yaml.safe_load((Path(__file__).parents[2] / "fakes/programs/planted.yaml").read_text())


def fail(text: str, log: Path) -> str:
    """Run a program that fails, in a fork that has torch imported; what its run would give as the cause."""
    pid = os.fork()
    if pid == 0:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(descriptor, "w", closefd=False)  # pytest's own go elsewhere
        faulthandler.disable()  # it would write into the output of pytest
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        code = 0
        try:
            exec(compile(text, "program.py", "exec"), {"__name__": "__main__"})
        except SystemExit as leave:
            code = int(leave.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != 0, "it was planted to fail"
    return f"the program {how_it_ended(code)}: {last_words(log.read_text(errors='replace'))}"


def test_the_planted_failures_are_told(tmp_path: Path) -> None:
    import torch  # noqa: F401 - the forks have it

    wrong = []
    for planted in PLANTED:
        cause = fail(planted["program"], tmp_path / planted["name"])
        known = known_error(cause)
        if known is None or planted["says"] not in known.meaning:
            wrong.append(f"{planted['name']}: {cause[:150]} -> {known.meaning if known else None}")
    assert len(PLANTED) >= 60
    assert wrong == []


@pytest.mark.parametrize("known", known_errors(), ids=lambda known: known.meaning[:40])
def test_a_remedy_says_what_to_do(known: object) -> None:
    assert all(known)  # type: ignore[call-overload]
