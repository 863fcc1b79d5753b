"""What a node of a shared machine may use: its own ports, its share of the cores."""

import os
import socket
import time
from contextlib import suppress

LISTENER_SECONDS = 5.0  # to answer
LOOK_SECONDS = 0.02
NODE_CPUS_VARIABLE = "ROPEWALK_NODE_CPUS"  # set by a backend whose nodes share one machine


def free_port(address: str) -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def await_listener(address: str, port: int, seconds: float) -> None:
    """Wait until somebody listens there, or for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((address, port), timeout=LISTENER_SECONDS):
            return
        time.sleep(LOOK_SECONDS)


def node_cpus() -> int | None:
    """This node's cores where the backend said so, else None: all that the machine has."""
    value = os.environ.get(NODE_CPUS_VARIABLE)
    return int(value) if value else None
