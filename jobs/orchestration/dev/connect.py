"""Connects standard input and output with the ssh server of a dev run on this node, inside `ropewalk shell`."""

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path

from ropewalk.jobs.orchestration.dev.server import is_own, socket_name
from ropewalk.jobs.runs.program.environment import ATTEMPT_VARIABLE, RUN_VARIABLE

STARTING_SECONDS = 30.0  # between the agent's start and the server's
POLL_SECONDS = 0.2
CHUNK_BYTES = 1 << 18


def main() -> None:
    """Pass on both directions until one of them ends."""
    with socket.socket(socket.AF_UNIX) as connection:
        _connect(connection, socket_name(Path(os.environ[RUN_VARIABLE]).name, int(os.environ[ATTEMPT_VARIABLE])))
        if not is_own(connection):
            sys.exit("the socket of the run's sessions belongs to another user")
        threading.Thread(target=_send, args=[connection], daemon=True).start()
        while content := connection.recv(CHUNK_BYTES):
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(1, rest) :]
    os._exit(0)  # the other direction may wait for input


def _connect(connection: socket.socket, name: str) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            return connection.connect(name)
        except ConnectionRefusedError as error:
            if time.monotonic() > deadline:
                sys.exit(f"the run takes no sessions on this node: {error.strerror}")
            time.sleep(POLL_SECONDS)


def _send(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := os.read(0, CHUNK_BYTES):
            connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
