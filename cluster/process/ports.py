"""What a node of a shared machine may use: ports of its own, and its share of the cores."""

import os
import socket
import time
from contextlib import suppress

LISTENER_SECONDS = 5.0  # to answer
LOOK_SECONDS = 0.02
BACKLOG = 1024  # nodes that call before they are answered
NODE_CPUS_VARIABLE = "ROPEWALK_NODE_CPUS"  # set by a backend whose nodes share one machine


def free_port(address: str) -> int:
    """Find a port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class ReservedPort:
    """A port that no other user can bind before `listen_on` does, as long as this process lives."""

    def __init__(self) -> None:
        self._descriptor = -1

    def take(self, address: str) -> int:
        """Reserve a free port of an address of this machine, and release the one that was reserved before."""
        self.release()
        family, own = _own_address(address)
        with socket.socket(family, socket.SOCK_STREAM) as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # for sockets of the same user alone
            reserved.bind((own, 0))
            port = int(reserved.getsockname()[1])
            self._descriptor = reserved.detach()
        return port

    def release(self) -> None:
        """Release the port."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def listen_on(address: str, port: int, *, reserved: bool = True) -> socket.socket:
    """Open a socket that listens at one address of this machine, at a port that this user may have reserved.

    Raises OSError where the address is another machine's, or, not `reserved`, where anybody else listens at the port.
    """
    family, own = _own_address(address)
    return socket.create_server((own, port), family=family, backlog=BACKLOG, reuse_port=reserved)


def _own_address(address: str) -> tuple[socket.AddressFamily, str]:
    """Return what to bind so that others reach this machine under `address`, which may be its name."""
    family, _, _, _, found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0]
    own = str(found[0])
    if own.startswith("127.") and address not in {own, "localhost"}:
        return family, ""  # many systems give a machine's own name a loopback address, which its peers do not see
    return family, own


def await_listener(address: str, port: int, seconds: float) -> None:
    """Wait until somebody listens at a port, at most so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((address, port), timeout=LISTENER_SECONDS):
            return
        time.sleep(LOOK_SECONDS)


def node_cpus() -> int | None:
    """Return the cores of this node, as its backend counts them; None: all that the machine has."""
    value = os.environ.get(NODE_CPUS_VARIABLE)
    return int(value) if value else None
