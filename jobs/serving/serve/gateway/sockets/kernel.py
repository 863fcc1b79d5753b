"""What the kernel knows of a TCP connection: how many bytes were read from it and written to it, whoever did it.

Layout of `struct tcp_info`: linux/tcp.h; the two counters are there since Linux 4.1.
"""

import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_COUNTERS = struct.Struct("<QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_COUNTERS_AT = 120
_LENGTH = 256
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_INT = struct.Struct("i")


class Progress(NamedTuple):
    """How far a connection is. A FIN of the peer counts as one byte received, which is taken out."""

    read: int  # bytes that processes have taken out of the socket
    written: int  # bytes that processes have put into the socket, acknowledged or not
    alive: bool  # the peer has neither closed nor reset it


def progress(connection: socket.socket) -> Progress:
    """How far a connection is. Raises OSError where the socket is none of TCP."""
    raw = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LENGTH)
    state = raw[0]
    acknowledged, received = _COUNTERS.unpack_from(raw, _COUNTERS_AT)
    unread = _ioctl(connection, termios.FIONREAD)
    unacknowledged = _ioctl(connection, termios.TIOCOUTQ)
    finished = state == _CLOSE_WAIT
    return Progress(received - finished - unread, acknowledged + unacknowledged, state == _ESTABLISHED)


def _ioctl(connection: socket.socket, request: int) -> int:
    return int(_INT.unpack(fcntl.ioctl(connection, request, bytes(4)))[0])
