"""Run programs that fail, each in a fork of a process that has imported torch and little else: forks of pytest take long.

Usage: python -m tests.jobs.runs.failing FOLDER, with {name: program} as JSON; prints {name: cause}.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.jobs.runs.program.last_words import last_words
from ropewalk.jobs.runs.program.verdict import how_it_ended


def causes_of(programs: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Run the programs; return what the run of each would give as its cause."""
    command = [sys.executable, "-m", "tests.jobs.runs.failing", str(folder)]
    done = subprocess.run(command, input=json.dumps(programs), capture_output=True, text=True, check=True)
    causes: dict[str, str] = json.loads(done.stdout)
    return causes


def fail(text: str, log: Path) -> str:
    """Run a program in a fork and return its cause."""
    pid = os.fork()
    if pid == 0:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.disable()
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
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != 0, "it was planted to fail"
    return f"the program {how_it_ended(code)}: {last_words(log.read_text(errors='replace'))}"


def main() -> None:
    import torch  # noqa: F401 - the forks have it

    programs: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps({name: fail(text, Path(sys.argv[1]) / name) for name, text in programs.items()}))


if __name__ == "__main__":
    main()
