"""Free ports, listening sockets, and the number of cores of a node."""

import os
import random
import socket
import time
from contextlib import suppress
from pathlib import Path

LISTENER_SECONDS = 5.0  # for one attempt to connect
POLL_SECONDS = 0.005
BACKLOG = 1024  # nodes that connect at the same time
NODE_CPUS_VARIABLE = "ROPEWALK_NODE_CPUS"  # set by a backend whose nodes share one machine


EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST_PORT = 20_000  # above the ports of most services, and of Ray's workers


def free_port(address: str) -> int:
    """Return a port that is unused at the moment and that no outgoing connection takes, unless there is none.

    A server that is killed and started again at its port could not bind it while a connection of any program has that port.
    """
    for port in (*_lasting_ports(), 0):  # 0: the kernel chooses
        with socket.socket() as probe, suppress(OSError):
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    raise OSError(f"{address}: no port is free")


def _lasting_ports() -> list[int]:
    """Return some ports below those that the kernel gives to outgoing connections, in random order."""
    with suppress(OSError, ValueError):
        ports = range(LOWEST_PORT, int(EPHEMERAL_PORTS.read_text().split()[0]))
        return random.SystemRandom().sample(ports, min(20, len(ports)))  # not the generator that forked processes share
    return []


def listen_on(address: str, port: int) -> socket.socket:
    """Open a listening socket at an address of this machine; with port 0 the kernel chooses a free one.

    Raises OSError if the address belongs to another machine, or if the port is in use.
    """
    family, host = _bind_address(address)
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _bind_address(address: str) -> tuple[socket.AddressFamily, str]:
    """Return the address to bind so that other machines reach this one at `address`, which may be a host name."""
    family, _, _, _, socket_address = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0]
    host = str(socket_address[0])
    if host.startswith("127.") and address not in {host, "localhost"}:
        return family, ""  # many systems resolve their own name to a loopback address, which other machines cannot reach
    return family, host


def await_listener(address: str, port: int, seconds: float) -> None:
    """Wait until a port accepts connections, at most `seconds`; asks less often the longer it takes."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        with suppress(OSError), socket.create_connection((address, port), timeout=LISTENER_SECONDS):
            return
        time.sleep(max(POLL_SECONDS, waited / 20))


def node_cpus() -> int | None:
    """Return the number of cores of this node as set by its backend; None: all cores of the machine."""
    value = os.environ.get(NODE_CPUS_VARIABLE)
    return int(value) if value else None
