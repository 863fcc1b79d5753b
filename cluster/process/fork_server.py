"""Fork server that imports the modules of runs once and forks their supervisors, so that these start without imports.

Usage: python -m ropewalk.cluster.process.fork_server SOCKET MODULE... It exits with its parent; the processes that it forked
go on.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import fork_program, import_modules
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import stop_signals_blocked

FORK_SERVER_VARIABLE = "ROPEWALK_FORK_SERVER"  # path of the socket; set for processes that submit local runs
START_SECONDS = 300.0  # importing torch from a cluster's file system may take minutes
POLL_SECONDS = 0.5
REQUEST_BYTES = 1 << 20


def start_fork_server(address: Path, modules: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a fork server at the socket `address`, in a private directory. It answers requests once the modules are imported."""
    with log.open("ab") as stream, stop_signals_blocked():
        command = module_command("ropewalk.cluster.process.fork_server", str(address), *modules)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)


def ask_fork_server(address: str, command: Sequence[str], environment: Mapping[str, str], output: Path) -> int | None:
    """Have the fork server at `address` fork `command`, and return the pid; None if no server listens. Raises BackendError."""
    request = {"command": list(command), "environment": dict(environment), "output": str(output), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(START_SECONDS)
        try:
            client.connect(address)
        except OSError:
            return None
        client.sendall(json.dumps(request).encode())
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
    if not answer:
        raise BackendError(f"{address}: the fork server died before it could start {' '.join(command[:4])}; try again")
    return int(answer)


def serve(listener: socket.socket) -> None:
    """Fork the commands that clients request, until the parent process is gone."""
    parent = os.getppid()
    listener.settimeout(POLL_SECONDS)
    while os.getppid() == parent:
        with suppress(TimeoutError):
            client, _ = listener.accept()
            with client:
                request = json.loads(client.makefile("rb").read(REQUEST_BYTES))
                os.chdir(request["folder"])
                child = fork_program(request["command"], request["environment"], Path(request["output"]))
                client.sendall(str(child.pid).encode())


def main() -> None:
    """Import the modules, then serve requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket")
    parser.add_argument("modules", nargs="*")
    arguments = parser.parse_args()
    configure_logging("fork server")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reaps detached children automatically
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(arguments.socket)
        os.chmod(arguments.socket, 0o600)
        listener.listen(64)
        started = time.monotonic()
        import_modules(arguments.modules)
        sys.stderr.write(f"loaded {len(sys.modules)} modules in {time.monotonic() - started:.1f} s\n")
        serve(listener)


if __name__ == "__main__":
    main()
