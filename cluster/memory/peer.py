"""Connection to the memory of a node: both sides prove that they have the run's key, then one writes and reads files.

Requests are lines of JSON, each answered by one; the content of a file follows its request or its answer.
"""

import socket
from typing import IO, Any

from ropewalk.cluster.membership.handshake import is_answer, new_nonce, sign_answer
from ropewalk.cluster.membership.protocol import LONGEST_BYTES, Message, pack, unpack

WAIT_SECONDS = 10.0  # for the other side to send or take anything


class MemoryPeerError(OSError):
    """The other node has refused a request, or is not a node of the run."""


class MemoryPeer:
    """A connection to another node's memory. Every method raises OSError if it breaks."""

    def __init__(self, address: str, key: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self._socket = socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream: IO[bytes] = self._socket.makefile("rb")
        try:
            self._greet(key)
        except BaseException:
            self.close()
            raise

    def _greet(self, key: str) -> None:
        nonce = new_nonce()
        challenge = read_line(self._stream)
        self._socket.sendall(pack(sign_answer(key, str(challenge.get("nonce")), {"say": "hello", "nonce": nonce})))
        if not is_answer(key, nonce, "welcome", read_line(self._stream)):
            raise MemoryPeerError(f"{self.address}: not a node of this run")

    def put(self, writer: str, name: str, content: Any, keep: str = "") -> None:
        """Write a file of a writer; see `Slots.create`."""
        self._socket.sendall(pack({"say": "put", "writer": writer, "name": name, "size": len(content), "keep": keep}))
        self._answer()
        self._socket.sendall(content)
        self._answer()

    def size(self, name: str) -> int:
        self._socket.sendall(pack({"say": "size", "name": name}))
        return int(self._answer()["size"])

    def get(self, name: str, start: int, end: int) -> bytearray:
        """Read bytes [start, end) of a file."""
        self._socket.sendall(pack({"say": "get", "name": name, "start": start, "end": end}))
        content = bytearray(int(self._answer()["size"]))
        if self._stream.readinto(content) != len(content):  # type: ignore[attr-defined]
            raise MemoryPeerError(f"{self.address}: closed the connection")
        return content

    def _answer(self) -> Message:
        answer = read_line(self._stream)
        if answer["say"] != "done":
            raise MemoryPeerError(f"{self.address}: {answer.get('why')}")
        return answer

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def read_line(stream: IO[bytes]) -> Message:
    """Read a message. Raises OSError if there is none."""
    line = stream.readline(LONGEST_BYTES)
    try:
        return unpack(line)
    except ValueError:
        raise MemoryPeerError("the connection is closed" if not line else f"not a message: {line[:80]!r}") from None
