"""A user's program as the engine of a serving run: its command, and its start so that it ends with its replica.

Usage: python -m ropewalk.jobs.serving.serve.engine_command --parent PID -- PROGRAM [ARGUMENT...]
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, Capabilities, EngineOptions
from ropewalk.jobs.inference.engines.parent import end_with_parent

TOKEN_FILE = "{token_file}"  # noqa: S105 - replaced in the command by the path of a file with the token
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class CommandEngine:
    """An engine started by a command in which {model}, {host}, {port}, {slots}, {context} and {token_file} are filled in."""

    name = "command"
    capabilities = Capabilities(token_ids=False, logprobs=False)
    inherits_socket = False

    def __init__(self, template: Sequence[str]) -> None:
        self.template = tuple(template)

    def unavailable(self, options: EngineOptions) -> str | None:
        """Return None: a missing program is detected when it is started."""
        return None

    def refuses(self, model: Path) -> str | None:
        """Return None: an unsupported model is detected when the program is started."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Return the command with values filled in. Raises ConfigError for an unknown placeholder."""
        values = {"model": model, "host": options.host, "port": options.port, "slots": options.slots}
        values |= {"context": options.context or "", "token_file": TOKEN_FILE}  # the file is made where the program starts
        try:
            arguments = [part.format(**values) for part in self.template]
        except (KeyError, IndexError, ValueError) as error:
            names = ", ".join(f"{{{key}}}" for key in values)
            raise ConfigError(f"engine_command: unknown placeholder {error}; known: {names}") from None
        return module_command("ropewalk.jobs.serving.serve.engine_command", "--parent", str(os.getpid()), "--", *arguments)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Return the token that the program must require from clients."""
        return {TOKEN_VARIABLE: options.token or ""}


def main() -> None:
    """Run the program, end it together with the process that requested it, and exit with its code."""
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
