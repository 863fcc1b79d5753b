"""Program of `ropewalk shell` on a node of a run: a shell, or a command, with the run's folder and variables.

python -m ropewalk.jobs.runs.program.shell RUN_DIR [-- COMMAND...]
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ropewalk.cluster.process.kill import end, processes_with
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.program.environment import ATTEMPT_VARIABLE, CHECKPOINTS_VARIABLE, RUN_VARIABLE

SHELL_VARIABLE = "ROPEWALK_SHELL"  # the token; the processes of a shell are found by it
PYTHON_VARIABLE = "ROPEWALK_PYTHON"  # this program's


def main() -> None:
    """Start the command in the run's folder, by default the user's shell; or end what was started under a token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--token", default="", help="mark of the shell's processes")
    parser.add_argument("--guard", action="store_true", help="wait for the end of standard input, then kill the marked processes")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    if arguments.guard:
        sys.stdin.buffer.read()
        end(processes_with({SHELL_VARIABLE: arguments.token}))
        return
    run = RunDir(arguments.run_dir)
    command = arguments.command or [login_shell()]
    os.chdir(folder_of(run))
    try:
        os.execvpe(command[0], command, environment_of(run, arguments.token))  # noqa: S606 - signals are the command's own
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


def login_shell() -> str:
    """Return the user's shell if this node has it, else bash or sh."""
    return next(filter(None, map(shutil.which, (os.environ.get("SHELL", ""), "bash", "sh"))), "/bin/sh")


def folder_of(run: RunDir) -> Path:
    """Return the folder in which the run's code lies, or the run's own where that does not exist on this node."""
    return run.project if run.project.is_dir() else run.path


def environment_of(run: RunDir, token: str) -> Mapping[str, str]:
    """Return this process's environment with the variables of the run, and its Python first on the path."""
    variables = {RUN_VARIABLE: str(run.path.absolute()), CHECKPOINTS_VARIABLE: str(run.checkpoints.absolute())}
    variables[PYTHON_VARIABLE] = sys.executable
    attempts = run.attempts()
    if attempts:
        variables[ATTEMPT_VARIABLE] = str(attempts[-1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **variables, "PATH": path, **({SHELL_VARIABLE: token} if token else {})}


if __name__ == "__main__":
    main()
