"""The agent's side of its node's memory: the folder of its ranks, and a server through which other nodes read and write it."""

import logging
import os
import re
import socket
import threading
from collections import defaultdict
from pathlib import Path
from typing import IO

from ropewalk.cluster.membership.handshake import is_answer, new_nonce, sign_answer
from ropewalk.cluster.membership.protocol import Message, pack
from ropewalk.cluster.memory.peer import WAIT_SECONDS, MemoryPeerError, read_line
from ropewalk.cluster.memory.slots import MOST_BYTES, NAME, CopyName, Slots, files_of
from ropewalk.cluster.process.ports import listen_on
from ropewalk.cluster.run.node_memory import NodeMemory

log = logging.getLogger(__name__)

WRITER = re.compile(r"[a-z0-9-]{1,40}")


class MemoryServer:
    """Serves the memory of a node, a folder of its agent, to the ranks of other nodes that have the run's key."""

    def __init__(self, folder: Path, host: str, key: str) -> None:
        self.folder = folder
        self.fence = (0, 0)  # newest attempt and group with ranks on this node: earlier ones may not write any more
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._listener = listen_on(host, 0)
        port = self._listener.getsockname()[1]
        self.access = NodeMemory(folder=self.folder, address=f"{host}:{port}", key=key)
        threading.Thread(target=self._serve, name="memory", daemon=True).start()

    def lock(self, writer: str) -> threading.Lock:
        """Return the lock of a writer's files, which ranks of two groups must not write at the same time."""
        return self._locks[writer]

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it is closed
                return
            threading.Thread(target=self._talk, args=(connection,), name="memory-peer", daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        """Serve a connection from the handshake to its end."""
        with connection, connection.makefile("rb") as stream:
            connection.settimeout(WAIT_SECONDS)
            try:
                self._greet(connection, stream)
                connection.settimeout(None)  # ranks are silent between two copies
                session = _Session(self, connection, stream)
                while True:
                    session.serve(read_line(stream))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.debug("a connection to this node's memory has ended: %s", error)

    def _greet(self, connection: socket.socket, stream: IO[bytes]) -> None:
        challenge = new_nonce()
        connection.sendall(pack({"say": "challenge", "nonce": challenge}))
        hello = read_line(stream)
        if not is_answer(self.access.key, challenge, "hello", hello):
            raise MemoryPeerError("a caller without the run's key")
        connection.sendall(pack(sign_answer(self.access.key, str(hello["nonce"]), {"say": "welcome"})))


class _Session:
    """The requests over one connection that was authenticated."""

    def __init__(self, server: MemoryServer, connection: socket.socket, stream: IO[bytes]) -> None:
        self._server, self._connection, self._stream = server, connection, stream
        self._slots: dict[str, Slots] = {}  # by writer

    def serve(self, request: Message) -> None:
        name = str(request["name"])
        if not NAME.fullmatch(name):
            raise MemoryPeerError(f"not a file of a copy: {name[:80]!r}")
        match request["say"]:
            case "put":
                self._put(str(request["writer"]), name, int(request["size"]), str(request["keep"]))
            case "size":
                path = self._find(name)
                self._answer({"say": "done", "size": path.stat().st_size} if path is not None else _missing(name))
            case "get":
                self._get(name, int(request["start"]), int(request["end"]))

    def _answer(self, message: Message) -> None:
        self._connection.sendall(pack(message))

    def _find(self, name: str) -> Path | None:
        return files_of(self._server.folder).get(name)

    def _put(self, writer: str, name: str, size: int, keep: str) -> None:
        if not WRITER.fullmatch(writer) or not 0 < size < MOST_BYTES:
            raise MemoryPeerError(f"not a writer with a file: {writer[:40]!r}, {size} bytes")
        with self._server.lock(writer):
            if CopyName.of(name).fence < self._server.fence:
                self._answer({"say": "refused", "why": f"{name} is of a group that has a successor"})
                return
            try:
                slots = self._slots.setdefault(writer, Slots(self._server.folder / writer))
                content = slots.create(name, size, keep)
            except OSError as error:
                self._answer({"say": "refused", "why": f"no memory for {name}: {error}"})
                return
            self._answer({"say": "done"})
            self._connection.settimeout(WAIT_SECONDS)
            if self._stream.readinto(content) != size:  # type: ignore[attr-defined]
                raise MemoryPeerError("the connection is closed")
            self._connection.settimeout(None)
            slots.finish(name)
        self._answer({"say": "done"})

    def _get(self, name: str, start: int, end: int) -> None:
        path = self._find(name)
        if path is None:
            self._answer(_missing(name))
            return
        with path.open("rb") as file:
            size = max(0, min(end, os.fstat(file.fileno()).st_size) - start)
            self._answer({"say": "done", "size": size})
            if size:
                self._connection.sendfile(file, start, size)


def _missing(name: str) -> Message:
    return {"say": "refused", "why": f"{name} is missing"}
