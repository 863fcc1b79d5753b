"""Messages between the keeper and a gateway, with sockets in them (SCM_RIGHTS)."""

import socket
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

MOST_SOCKETS = 200  # of one message; the kernel takes 253
_RECEIVE_BYTES = 2**16
_HEAD = struct.Struct("<BQ")
_NUMBER = struct.Struct("<Q")


class Kind(IntEnum):
    """What a message says."""

    LEAD = 1  # keeper → gateway: it is the live one now; a socket: the journal. `value`: connections that follow at once
    CONNECTIONS = 2  # keeper → gateway: numbers and sockets of clients' connections
    LEAVE = 3  # keeper → gateway: end what is open, take nothing new, exit
    READY = 4  # gateway → keeper: imported all, waits
    CLOSED = 5  # gateway → keeper: numbers of connections that are over
    ALIVE = 6  # gateway → keeper: its loop turns


class Message(NamedTuple):
    """A message; `sockets` are file descriptors that belong to whoever received them."""

    kind: Kind
    value: int = 0
    numbers: tuple[int, ...] = ()
    sockets: tuple[int, ...] = ()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel: messages keep their bounds, and an end that dies is an end of file."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, kind: Kind, value: int = 0, numbers: Iterable[int] = (), sockets: Sequence[int] = ()) -> None:
    """Send a message. Raises OSError where the other side is gone."""
    raw = _HEAD.pack(kind, value) + b"".join(map(_NUMBER.pack, numbers))
    if sockets:
        socket.send_fds(channel, [raw], sockets)
    else:
        channel.send(raw)


def receive(channel: socket.socket) -> Message | None:
    """The next message; None where the other side is gone. Raises BlockingIOError on a channel that does not block."""
    try:
        raw, sockets, _, _ = socket.recv_fds(channel, _RECEIVE_BYTES, MOST_SOCKETS + 8)
    except ConnectionError:
        return None
    if not raw:
        return None
    kind, value = _HEAD.unpack_from(raw)
    numbers = tuple(number for (number,) in _NUMBER.iter_unpack(raw[_HEAD.size :]))
    return Message(Kind(kind), value, numbers, tuple(sockets))
