"""A client's connection: bytes in by way of the journal, one request after the other, and bytes out that outlive a gateway."""

import asyncio
import logging
import socket
import time
from contextlib import suppress
from typing import Protocol, cast

from ropewalk.jobs.serving.serve.gateway.http.answers import CONTINUE, RefusalError, refusal
from ropewalk.jobs.serving.serve.gateway.http.head import MOST_HEAD_BYTES, BadRequestError, Head
from ropewalk.jobs.serving.serve.gateway.http.incoming import Incoming, Request
from ropewalk.jobs.serving.serve.gateway.http.wire import Wire
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.sockets.blocks import JournalFullError
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Field, Header, Journal
from ropewalk.jobs.serving.serve.gateway.sockets.kernel import Progress
from ropewalk.jobs.serving.serve.gateway.sockets.tape import Tape

log = logging.getLogger(__name__)

MOST_ADOPTIONS = 5  # an exchange that so many gateways have taken over is what kills them
_READ_BYTES = 2**12
_WRITE_BYTES = 2**16
_LINGER_SECONDS = 2.0
_FLUSH_SECONDS = 0.01
_MOST_POSITION = 2**33  # of a connection's bytes; then it is closed, which its client takes for an idle time that is over
_scratch = bytearray(2**16)


class OpenExchange(Protocol):
    """What answers the request that is open on a connection."""

    def hang_up(self) -> None:
        """The client is gone."""

    def resume(self) -> None:
        """The client has taken what was waiting for it."""


class Owner(Protocol):
    """What a connection belongs to."""

    settings: GatewaySettings
    journal: Journal

    def begin(self, connection: "Connection", head: Head, body: bytes) -> OpenExchange:
        """A request is whole; or it was open already, and what was sent so far is on the connection's output."""

    def closed(self, connection: "Connection") -> None:
        """A connection is over."""


class Connection(asyncio.BufferedProtocol):
    """One client. `adopted`: how far it is, where a gateway before this one has begun with it."""

    def __init__(self, owner: Owner, number: int, sock: socket.socket, record: int, reached: Progress) -> None:
        self.owner, self.number, self.sock, self.record = owner, number, sock, record
        journal, settings = owner.journal, owner.settings
        longest = settings.max_body_bytes * 2 + MOST_HEAD_BYTES  # chunks of one byte are longer than what they carry
        self.input = Tape(journal, record, Field.INPUT, reached.read, longest)
        sent_until = max(journal.read(record, Field.OUTPUT_END), reached.written)
        self.output = Tape(journal, record, Field.OUTPUT, sent_until, settings.max_answer_bytes)
        self.flushed = reached.written
        self._incoming = Incoming(self.input, settings.max_body_bytes)
        self.exchange: OpenExchange | None = None
        self.gone = False
        self._request_end = 0
        self._blocked = self._closing = self._ending = False
        self._since = self._taken_at = time.monotonic()
        self._loop = asyncio.get_running_loop()

    @property
    def resumed(self) -> bool:
        """Whether the request at hand was open already when this gateway took over."""
        return self._read(Field.OPEN_AT) == self.input.start + 1

    @property
    def request_id(self) -> str:
        """What names the request at hand, and no other, whichever gateway answers it."""
        return f"{self.owner.journal.nonce:016x}{self._read(Field.EXCHANGE):08x}"

    @property
    def answered(self) -> bool:
        """Whether an answer was begun, by a gateway before this one: all but streams are in the journal whole, or not at all."""
        return len(self.output) > 0 and Wire(self.output.read(self.output.start, self.output.end)).begun

    @property
    def backlog(self) -> int:
        """Bytes that the client has still to take."""
        return self.output.end - self.flushed

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or go on where a gateway before this one was."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclasses
        self._pump()
        if not self.resumed:
            self.output.drop(self.output.end)
            self._drop_tokens()
        self._go_on()

    def cancel_open(self) -> None:
        """Its client left while no gateway looked: what was open is cancelled."""
        self.gone = True
        found = self._incoming.next() if self.resumed else None
        if found is None:
            self._forget()
        else:
            self._begin(found).hang_up()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the kernel puts what the client sends: straight into the journal."""
        if self._closing:
            return memoryview(_scratch)
        try:
            return self.input.room(_READ_BYTES)
        except JournalFullError:
            log.warning("the journal is full: a connection is closed")
            self._closing = True
            asyncio.get_running_loop().call_soon(self.abort)  # uvloop crashes where its transport ends while it asks for room
            return memoryview(_scratch)

    def buffer_updated(self, num_bytes: int) -> None:
        """So many bytes have come."""
        if self._closing or self.gone:
            return
        if not len(self.input):
            self._since = time.monotonic()
        self.input.end += num_bytes
        if self.exchange is None:
            self._go_on()
        elif self.input.end - self._request_end > MOST_HEAD_BYTES:
            self.transport.pause_reading()  # it sends ahead of its answers

    def eof_received(self) -> bool:
        """The client has closed its side."""
        return False  # who closes its side does not wait for an answer

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is over."""
        self.gone = True
        if self.exchange is not None:
            self.exchange.hang_up()
        else:
            self._forget()

    def pause_writing(self) -> None:
        """The client is slow."""
        self._blocked = True

    def resume_writing(self) -> None:
        """The client has taken what waited in the transport."""
        self._blocked = False
        self._taken_at = time.monotonic()
        self._pump()
        if self.exchange is not None:
            self.exchange.resume()

    # --- requests

    def _go_on(self) -> None:
        """Begin with the next request, if it is whole."""
        if self.gone or self._closing or self.exchange is not None:
            return
        try:
            found = self._incoming.next()
        except BadRequestError as error:
            self._refuse(error)
            return
        if found is None and self._incoming.asks_to_go_on:
            self._incoming.asks_to_go_on = False
            self.send(CONTINUE)
        if found is not None:
            self._begin(found)
        elif len(self.input) == 0:
            self.input.drop(self.input.end)

    def _begin(self, request: Request) -> OpenExchange:
        self._request_end = request.end
        self._open()
        self.exchange = self.owner.begin(self, request.head, request.body)
        return self.exchange

    def _open(self) -> None:
        if self.resumed:
            self._write(Field.ADOPTED, self._read(Field.ADOPTED) + 1)
            return
        self._write(Field.ARRIVED, time.time_ns())
        self._write(Field.DEADLINE, 0)
        self._write(Field.ADOPTED, 0)
        self._write(Field.NOTE_BYTES, 0)
        self._write(Field.EXCHANGE, self.owner.journal.add_to_header(Header.EXCHANGES))
        self._write(Field.OPEN_AT, self.input.start + 1)

    def _refuse(self, error: BadRequestError) -> None:
        """What is no request, or too large a one: an answer, and the end of the connection."""
        self._request_end = self.input.end
        self.send(refusal(RefusalError(error.status, str(error), error.code), keep_alive=False))
        self.close(linger=True)

    # --- answers

    def send(self, data: bytes) -> None:
        """Send bytes, which are in the journal before they are on their way. Raises JournalFullError."""
        if self.gone:
            return
        self.output.append(data)
        self._write(Field.OUTPUT_END, self.output.end)
        if not self._blocked and self.flushed == self.output.end - len(data):
            self.flushed = self.output.end
            self._taken_at = time.monotonic()
            self.transport.write(data)

    def _pump(self) -> None:
        while not self._blocked and not self.gone and self.flushed < self.output.end:
            until = min(self.output.end, self.flushed + _WRITE_BYTES)
            data = bytes(self.output.read(self.flushed, until))
            self.flushed = until
            self.transport.write(data)

    def ended(self, *, keep_alive: bool) -> None:
        """The exchange is over, and recorded; its bytes may still be on their way."""
        self._ending = True
        if self.output.end > _MOST_POSITION or self.input.end > _MOST_POSITION:
            keep_alive = False
        self._loop.call_soon(self._finish, keep_alive)

    def _finish(self, keep_alive: bool) -> None:
        """Forget the exchange, once the kernel has all of its answer."""
        if not self.gone and (self.backlog or self.transport.get_write_buffer_size()):
            self._loop.call_later(_FLUSH_SECONDS, self._finish, keep_alive)
            return
        self.exchange, self._ending = None, False
        if self.gone:
            self._forget()
            return
        self.input.drop(self._request_end)  # first: from here on the exchange is not open any more
        self.output.drop(self.output.end)
        self._drop_tokens()
        self._since = time.monotonic()
        if keep_alive:
            self.transport.resume_reading()
            self._go_on()
        else:
            self.close(linger=len(self.input) > 0)

    # --- the end

    def close(self, *, linger: bool = False) -> None:
        """Close after what was sent. `linger`: the client may still be sending; a reset would take the answer from it."""
        self._closing = True
        self._close(linger)

    def _close(self, linger: bool) -> None:
        if self.gone:
            return
        if self.backlog or self.transport.get_write_buffer_size():
            self._loop.call_later(_FLUSH_SECONDS, self._close, linger)
            return
        self._shut(socket.SHUT_WR)
        if linger:
            self._loop.call_later(_LINGER_SECONDS, self.transport.abort)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Reset the connection as far as it can be: the client sees it break."""
        self._closing = True
        self._shut(socket.SHUT_RDWR)
        self.transport.abort()

    def expire(self, now: float) -> None:
        """Look whether the client has taken too long for its request, or for its answer."""
        settings = self.owner.settings
        if self.gone or self._closing:
            return
        if self.exchange is not None or self._ending:
            waits = self.backlog or self.transport.get_write_buffer_size()
            if waits and now - self._taken_at > settings.stalled_seconds:
                self.abort()
        elif len(self.input) and now - self._since > settings.header_seconds:
            self._refuse(BadRequestError(408, "the request did not arrive in time", "request_timeout"))
        elif not len(self.input) and now - self._since > settings.idle_seconds:
            self.close()

    def leave(self) -> None:
        """Close it now if nothing is open on it."""
        if self.exchange is None and not len(self.input) and not self._closing:
            self.close()

    def _drop_tokens(self) -> None:
        end = self._read(Field.TOKENS_END)
        Tape(self.owner.journal, self.record, Field.TOKENS, end).drop(end)

    def _shut(self, how: int) -> None:
        with suppress(OSError):  # the client was faster
            self.sock.shutdown(how)

    def _forget(self) -> None:
        self.owner.journal.free_record(self.record)
        self.owner.closed(self)

    def _read(self, field: Field) -> int:
        return self.owner.journal.read(self.record, field)

    def _write(self, field: Field, value: int) -> None:
        self.owner.journal.write(self.record, field, value)
