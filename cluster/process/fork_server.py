"""A process that has imported what runs on this machine need, and forks their supervisors: their first step comes at once.

Usage: python -m cluster.process.fork_server SOCKET MODULE... Ends with its parent; what it has forked goes on.
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

from cluster.engines.entry import configure_logging
from cluster.errors import BackendError
from cluster.process.forking import fork_program, load
from cluster.process.signals import deaf_children

TEMPLATE_VARIABLE = "ROPEWALK_TEMPLATE"  # the socket; in the environment of whoever submits runs to this machine
START_SECONDS = 300.0  # a file system of a cluster may take minutes to give out torch
POLL_SECONDS = 0.5
REQUEST_BYTES = 1 << 20


def start_template(place: Path, modules: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start one that listens at `place`, a path in a private directory; returns at once, it answers when it has loaded."""
    with log.open("ab") as stream, deaf_children():
        command = [sys.executable, "-m", "cluster.process.fork_server", str(place), *modules]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)


def ask_template(place: str, command: Sequence[str], environment: Mapping[str, str], output: Path) -> int | None:
    """Let a template fork `command`; its pid, or None where no template listens (any more)."""
    request = {"command": list(command), "environment": dict(environment), "output": str(output), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(START_SECONDS)
        try:
            client.connect(place)
        except OSError:
            return None
        client.sendall(json.dumps(request).encode())
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
    if not answer:
        raise BackendError(f"{place}: the template process ended while it was asked for {' '.join(command[:4])}; try again")
    return int(answer)


def serve(listener: socket.socket) -> None:
    """Fork what is asked for, until the parent is gone."""
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
    """Load, and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket")
    parser.add_argument("modules", nargs="*")
    arguments = parser.parse_args()
    configure_logging("template")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is detached
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(arguments.socket)
        os.chmod(arguments.socket, 0o600)
        listener.listen(64)
        started = time.monotonic()
        load(arguments.modules)
        sys.stderr.write(f"loaded {len(sys.modules)} modules in {time.monotonic() - started:.1f} s\n")
        serve(listener)


if __name__ == "__main__":
    main()
