"""Connections from agents to their coordinator: the sockets, the clock and the signatures for `Members`."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from ropewalk.cluster.membership.clock import RunningClock
from ropewalk.cluster.membership.handshake import is_answer, new_nonce, sign_answer
from ropewalk.cluster.membership.members import Close, Died, Joined, Member, Members, Output, Received, Send
from ropewalk.cluster.membership.protocol import LONGEST_BYTES, SILENCE_SECONDS, Message, pack, unpack

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05  # at least as often the clock is read
MOST_REFUSED = 1000  # refused callers that are remembered and logged
LONGEST_NAME, LONGEST_REASON = 64, 300  # characters that are kept of a refused caller

Event = Joined | Received | Died
Admit = Callable[[Message, str], Any]  # (hello, address of the caller) -> identification of the agent; raises RefusedError


class RefusedError(Exception):
    """The caller may not join; the message has the reason."""


class _Connection:
    """A connection that was authenticated with `nonce`."""

    def __init__(self, writer: asyncio.StreamWriter, nonce: str) -> None:
        self.writer, self.nonce = writer, nonce


class Server:
    """Serves agents in the event loop of one thread. `handle` is called with the events of members, and after time has passed.

    `admit` is called in another thread, with hellos whose sender has the key.
    """

    def __init__(self, key: str, admit: Admit, handle: Callable[[Event | None], None]) -> None:
        self._key, self._admit, self._handle = key, admit, handle
        self.clock = RunningClock()
        self.members = Members()
        self._refused: dict[str, str] = {}  # reason by session

    async def serve(self, listener: socket.socket) -> None:
        """Serve for ever."""
        async with await asyncio.start_server(self._talk, sock=listener, limit=LONGEST_BYTES):
            while True:
                self._perform(self.members.tick(self.clock()))
                self._handle(None)
                await asyncio.sleep(TICK_SECONDS)

    def send(self, member: Member, message: Message) -> None:
        self._perform(self.members.send(member, message))

    async def close(self) -> None:
        """Close all connections after what was sent has arrived."""
        connections = (member.connection for member in self.members.by_session.values())
        writers = [connection.writer for connection in connections if isinstance(connection, _Connection)]
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)  # some are closed already

    def _perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Joined | Received | Died):
                self._handle(output)
                continue
            connection = output.connection
            assert isinstance(connection, _Connection)
            if isinstance(output, Close):
                connection.writer.close()
            elif isinstance(output, Send) and not connection.writer.is_closing():
                welcome = output.message["say"] == "welcome"
                message = sign_answer(self._key, connection.nonce, output.message) if welcome else output.message
                connection.writer.write(pack(message))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection from the handshake to its end."""
        connection: _Connection | None = None
        try:
            challenge = new_nonce()
            writer.write(pack({"say": "challenge", "nonce": challenge}))
            hello = unpack(await asyncio.wait_for(reader.readline(), SILENCE_SECONDS))
            caller = str(writer.get_extra_info("peername")[0])
            if (peer := await self._verify(hello, challenge, caller)) is None:
                return
            connection = _Connection(writer, str(hello["nonce"]))
            self._perform(self.members.greet(connection, hello, peer, self.clock()))
            while line := await reader.readline():
                self._perform(self.members.hear(connection, unpack(line), self.clock()))
        except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
            log.info("a connection broke: %s: %s", type(error).__name__, error)
        finally:
            writer.close()
            if connection is not None:
                self._perform(self.members.close(connection, self.clock()))

    async def _verify(self, hello: Message, challenge: str, caller: str) -> Any:
        """Return the identification of the caller if it may join, else None."""
        try:
            if not is_answer(self._key, challenge, "hello", hello):
                raise RefusedError("it does not have the run's key")
            return await asyncio.to_thread(self._admit, hello, caller)
        except RefusedError as error:
            # callers choose these texts
            session, name, reason = (str(text) for text in (hello.get("session"), hello.get("name"), error))
            session, name, reason = session[:LONGEST_NAME], name[:LONGEST_NAME], reason[:LONGEST_REASON]
            if reason != self._refused.get(session) and len(self._refused) < MOST_REFUSED:  # log repeated calls once
                log.warning("refused a caller from %s that claims to be %s: %s", caller, name, reason)
                self._refused[session] = reason
            return None
