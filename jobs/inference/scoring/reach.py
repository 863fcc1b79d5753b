"""The address at which an endpoint is reached from this machine: its own, or the end of a tunnel made for the purpose.

A loopback address of another machine names any user's program here, so neither token nor question are sent to it.
"""

import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from urllib.parse import urlsplit

import httpx2
import psutil

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.process.ports import free_port
from ropewalk.jobs.runs.show.endpoint import Endpoint

LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 10.0
TUNNEL_SECONDS = 60.0  # a person may have to type a password
LOOK_SECONDS = 0.05


@contextmanager
def reach(endpoint: Endpoint) -> Iterator[str]:
    """Yield an address of the endpoint, which may be that of a tunnel that ends with the block.

    Raises BackendError if the endpoint cannot be reached from this machine.
    """
    if endpoint.is_here or (not endpoint.is_loopback and _answers(endpoint)):
        yield endpoint.address
    elif endpoint.tunnel is None:
        raise BackendError(
            f"{endpoint.address} on {endpoint.node} cannot be reached from this machine; run the command on {endpoint.node}"
        )
    else:
        port = free_port(LOOPBACK)
        with _tunnel(endpoint.tunnel(port), port):
            yield f"{urlsplit(endpoint.address).scheme}://{LOOPBACK}:{port}"


def _answers(endpoint: Endpoint) -> bool:
    try:
        return httpx2.get(f"{endpoint.address}/healthz", timeout=CONNECT_SECONDS, verify=endpoint.verify()).is_success
    except httpx2.TransportError:
        return False


@contextmanager
def _tunnel(command: str, port: int) -> Iterator[None]:
    """Run a command that listens on a port of this machine. Raises BackendError with its output if it does not."""
    with TemporaryFile() as output:
        try:
            process = subprocess.Popen(shlex.split(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except OSError as error:
            raise BackendError(f"the tunnel cannot be made: {command}: {error.strerror}") from None
        try:
            deadline = time.monotonic() + TUNNEL_SECONDS
            while not _listens(process.pid, port):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    cause = output.read().decode(errors="replace").strip() or f"it does not listen after {TUNNEL_SECONDS:.0f} s"
                    raise BackendError(f"the tunnel cannot be made: {command}: {cause}")
                time.sleep(LOOK_SECONDS)
            yield
        finally:
            end(family(process.pid))
            process.wait()


def _listens(pid: int, port: int) -> bool:
    """Return True if the process or a child of it listens on the port: another user could have taken it first."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        connections = [each for member in (process, *process.children(recursive=True)) for each in member.net_connections("tcp4")]
        return any(each.status == psutil.CONN_LISTEN and each.laddr == (LOOPBACK, port) for each in connections)
    return False
