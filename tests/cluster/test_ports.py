"""Ports of servers that may be started again at the same port."""

import socket
from pathlib import Path

import pytest

from ropewalk.cluster.process import ports
from ropewalk.cluster.process.ports import free_port

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
