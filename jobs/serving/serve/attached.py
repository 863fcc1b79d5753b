"""Start a program that ends together with the process that requested it, for engines without such a check of their own.

Usage: python -m ropewalk.jobs.serving.serve.attached --parent PID -- PROGRAM [ARGUMENT...]
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys

from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE
from ropewalk.jobs.inference.engines.parent import end_with_parent

TOKEN_FILE = "{token_file}"  # noqa: S105 - replaced in the command by the path of a file with the token
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def main() -> None:
    """Run the program and exit with its code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    command = [part.replace(TOKEN_FILE, _token_file()) if TOKEN_FILE in part else part for part in arguments.command]
    try:
        program = subprocess.Popen(command, preexec_fn=_die_with_starter)  # noqa: PLW1509 - one system call, no lock is taken
    except OSError as error:
        sys.exit(f"engine_command: {arguments.command[0]!r} does not start: {error.strerror}; is it installed on this node?")
    code = program.wait()
    sys.exit(128 - code if code < 0 else code)


def _token_file() -> str:
    """Return the path of a file in memory with the token; this user alone can open it, as long as this process runs."""
    descriptor = os.memfd_create("token", 0)
    os.write(descriptor, os.environ[TOKEN_VARIABLE].encode())
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _die_with_starter() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if os.getppid() == 1:
        os._exit(1)


if __name__ == "__main__":
    main()
