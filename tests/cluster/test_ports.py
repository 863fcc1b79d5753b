"""Ports of servers that may be started again at the same port."""

import socket
import threading
import time
from pathlib import Path

import pytest

from ropewalk.cluster.process import ports
from ropewalk.cluster.process.ports import await_listener, free_port, listen_on

LOOPBACK = "127.0.0.1"


def test_no_outgoing_connection_takes_the_port_of_a_server() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port(LOOPBACK) < first for _ in range(50))


@pytest.mark.parametrize("text", ["1024 65000", "20000 65000", None])
def test_the_kernel_chooses_where_outgoing_connections_may_take_any_port(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "range"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(ports, "EPHEMERAL_PORTS", path)
    port = free_port(LOOPBACK)
    with socket.create_server((LOOPBACK, port)):
        assert free_port(LOOPBACK) != port


def test_a_listener_is_found_soon_after_it_is_there() -> None:
    port, delay = free_port(LOOPBACK), 0.5
    listeners: list[socket.socket] = []
    began = time.monotonic()
    timer = threading.Timer(delay, lambda: listeners.append(listen_on(LOOPBACK, port)))
    timer.start()
    await_listener(LOOPBACK, port, 30.0)
    waited = time.monotonic() - began
    timer.join()
    listeners[0].close()
    assert delay <= waited < 2 * delay


def test_a_listener_that_never_comes_is_not_waited_for_longer_than_allowed() -> None:
    began = time.monotonic()
    await_listener(LOOPBACK, free_port(LOOPBACK), 0.1)
    assert 0.1 <= time.monotonic() - began < 1.0
