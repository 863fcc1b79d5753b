"""A request answered: routed, queued, asked of a replica, handed on; asked of another one when that breaks off."""

import asyncio
import contextlib
import logging
import time
import zlib

import orjson

from ropewalk.jobs.serving.serve.gateway.exchange.archive import Sides
from ropewalk.jobs.serving.serve.gateway.exchange.asked import Asked, read_request
from ropewalk.jobs.serving.serve.gateway.exchange.context import Context
from ropewalk.jobs.serving.serve.gateway.exchange.legs import Leg, NotHereError
from ropewalk.jobs.serving.serve.gateway.exchange.readers import DivergedError
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock, Outcome, Record
from ropewalk.jobs.serving.serve.gateway.exchange.sent import Sent, read_sent
from ropewalk.jobs.serving.serve.gateway.exchange.tokens import Tokens
from ropewalk.jobs.serving.serve.gateway.http.answers import (
    LAST_CHUNK,
    Header,
    RefusalError,
    chunk,
    error_body,
    head_bytes,
    refusal,
    whole,
)
from ropewalk.jobs.serving.serve.gateway.http.connection import MOST_ADOPTIONS, Connection
from ropewalk.jobs.serving.serve.gateway.http.head import Head
from ropewalk.jobs.serving.serve.gateway.http.upstream import BrokenError, Reply, UnreachableError
from ropewalk.jobs.serving.serve.gateway.http.wire import Wire
from ropewalk.jobs.serving.serve.gateway.routing.prefixes import prefix_blocks
from ropewalk.jobs.serving.serve.gateway.routing.queue import Slot
from ropewalk.jobs.serving.serve.gateway.sockets.blocks import JournalFullError
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Field

log = logging.getLogger(__name__)

READ_AHEAD_BYTES = 2**20  # so much of an answer is taken for a slow client, that its replica is free for others
MOST_DEATHS = 4  # replicas that may die of a request without a byte more of its answer


class Exchange:
    """One request for an answer of a model, from its arrival to its record."""

    def __init__(self, context: Context, connection: Connection, head: Head, body: bytes) -> None:
        self.context, self.connection, self.head, self.body = context, connection, head, body
        journal, record = context.journal, connection.record
        self.resumed = connection.resumed and journal.read(record, Field.ADOPTED) > 0
        self.id = f"req-{connection.request_id}"
        self.clock = Clock(arrived=journal.read(record, Field.ARRIVED) / 1e9)
        self.tokens = Tokens(journal, record, context.settings.max_answer_bytes)
        self.asked: Asked | None = None
        self.record = Record(id=self.id, path=head.path)
        self.streaming = False  # the head of a stream was sent
        self.seed = zlib.crc32(self.id.encode()) & 0x7FFFFFFF  # the same, whichever gateway asks
        self.cannot_continue = False  # an engine said so
        self.failures = 0  # engines that answered that they failed
        self.keep_alive = head.keep_alive
        self.answer: Wire | None = None  # what a gateway before this one has sent
        self.upstream: asyncio.Transport | None = None
        self._deaths = 0
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._conclude)  # also where it is cancelled before it has begun

    # --- what the connection calls

    def hang_up(self) -> None:
        """The client is gone: the engine is told by the end of its connection."""
        self.record.outcome = "cancelled"
        self._task.cancel()

    def resume(self) -> None:
        """The client has taken what waited for it."""
        if self.upstream is not None and self.connection.backlog <= READ_AHEAD_BYTES // 2:
            self.upstream.resume_reading()

    # --- the whole of it

    async def _run(self) -> None:
        try:
            self._take_up()
            if self.answer is None or not self.answer.complete:
                async with asyncio.timeout_at(self._deadline()):
                    await self._answer()
        except RefusalError as error:
            self._refuse(error)
        except TimeoutError:
            words = "the deadline of the request is over; send a longer one with the header x-request-timeout"
            self._refuse(RefusalError(504, words, "deadline_exceeded"), "deadline")
        except asyncio.CancelledError:
            self.record.outcome = "cancelled"
            raise
        except JournalFullError:
            self._refuse(RefusalError(503, "too much is open here; come back later", "overloaded", retry_after=5))
        except Exception:
            log.exception("%s: not answered", self.id)
            self._refuse(RefusalError(500, "this gateway has failed; its log says why", "internal_error"), "failed")

    def _take_up(self) -> None:
        """Read the request, and what a gateway before this one has sent. Raises RefusalError."""
        journal, record = self.context.journal, self.connection.record
        if self.resumed:
            note = orjson.loads(journal.read_note(record) or b"{}")
            self.record.take(note)
            output = self.connection.output
            self.answer = Wire(output.read(output.start, output.end)) if len(output) else None
            if self.answer is not None and self.answer.begun:
                self.record.status = self.answer.status
                self.streaming = True
            if journal.read(record, Field.ADOPTED) > MOST_ADOPTIONS:
                raise RefusalError(500, "gateways die of this request", "internal_error")
        self.asked = read_request(self.head.path, self.head.headers, self.body)
        if not self.record.version:
            self.record.alias, self.record.version = self.context.table.version_for(self.asked.model, self.asked.conversation)
            self.note()

    def _deadline(self) -> float:
        """When the request has to be answered, by the loop's clock: the same moment, whichever gateway looks."""
        assert self.asked is not None
        journal, record, settings = self.context.journal, self.connection.record, self.context.settings
        until = journal.read(record, Field.DEADLINE)
        if not until:
            wanted = self.asked.timeout_seconds or settings.deadline_seconds
            until = int((self.clock.arrived + min(wanted, settings.longest_deadline_seconds)) * 1e9)
            journal.write(record, Field.DEADLINE, until)
        self.remaining_seconds = until / 1e9 - time.time()
        return asyncio.get_running_loop().time() + self.remaining_seconds

    async def _answer(self) -> None:
        """Ask replicas until one has answered to the end. Raises RefusalError."""
        assert self.asked is not None
        if not self.streaming and (kept := self.context.cache.find(self.record.version, self.asked)) is not None:
            self._send_whole(200, kept.content_type, kept.body, ((b"x-ropewalk-cache", b"hit"),))
            return
        blocks = prefix_blocks(self.asked.prompt_bytes, self.context.settings.prefix_block)
        began_again = self.resumed
        while True:
            self._follow_alias()
            queue = self.context.table.queue(self.record.version)
            self.clock.queued()
            slot = await queue.take(blocks, remaining_seconds=self.remaining_seconds, again=began_again)
            completed = False
            try:
                self.clock.dispatched()
                self.record.replica = slot.state.replica.id
                self.note()
                before = self.connection.output.end
                replica, most = slot.state.replica, self.context.settings.max_answer_bytes
                leg = Leg(self, self.asked, replica, self.context.upstreams, version=self.record.version, limit_bytes=most)
                await leg.run()
                completed = True
                return
            except (UnreachableError, NotHereError) as error:
                self._lost(slot, str(error))
            except BrokenError as error:
                self._lost(slot, str(error))
                self._count_death(progress=self.connection.output.end > before)
            except DivergedError:
                words = "the replica was lost, and another one answers differently: ask with temperature 0, or with a seed"
                raise RefusalError(502, words, "stream_interrupted") from None
            finally:
                self.upstream = None
                slot.give_back(completed=completed)
            began_again = True

    def _follow_alias(self) -> None:
        """A version that is no longer there, and of whose answer nothing was sent: what the name means now."""
        routes = self.context.table.routes
        if self.asked is not None and not self.streaming and routes is not None and self.record.version not in routes.versions:
            self.record.alias, self.record.version = self.context.table.version_for(self.asked.model, self.asked.conversation)

    def _lost(self, slot: Slot, why: str) -> None:
        log.warning("%s: replica %s: %s; it goes on elsewhere", self.id, slot.state.replica.id, why)
        self.context.table.lose(slot.queue, slot.state)
        self.record.moves += 1
        self.context.metrics.moves.inc()

    def _count_death(self, *, progress: bool) -> None:
        self._deaths = 0 if progress else self._deaths + 1
        if self._deaths >= MOST_DEATHS:
            raise RefusalError(502, f"{self._deaths} replicas died of this request", "replicas_failed")

    def note(self) -> None:
        """Write down what a successor must know."""
        self.context.journal.write_note(self.connection.record, orjson.dumps(self.record.note()))

    # --- bytes for the client

    def _headers(self, content_type: bytes) -> list[Header]:
        """Headers of an answer."""
        return [
            (b"content-type", content_type),
            (b"x-request-id", self.id.encode()),
            (b"x-ropewalk-version", self.record.version.encode("latin-1", "replace")),
            (b"x-ropewalk-replica", self.record.replica.encode("latin-1", "replace")),
        ]

    def begin_stream(self, reply: Reply) -> None:
        """Send the head of a stream."""
        self.streaming, self.record.status = True, reply.status
        self.record.first_token_seconds = self.clock.seconds()
        self.note()
        headers = [*self._headers(reply.content_type), (b"cache-control", b"no-cache"), (b"server-timing", self.clock.timing())]
        if self.head.old:
            self.keep_alive = False
        else:
            headers.append((b"transfer-encoding", b"chunked"))
        self.connection.send(head_bytes(reply.status, headers, keep_alive=self.keep_alive))

    def send_piece(self, data: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> None:
        """Send a piece of a stream; stop reading from the engine where the client does not follow."""
        connection = self.connection
        framed = data if self.head.old else chunk(data)
        if token_ids is not None or prompt_ids:
            self.tokens.add(connection.output.end + len(framed), prompt_ids, token_ids or [])
        connection.send(framed)
        if connection.backlog > READ_AHEAD_BYTES and self.upstream is not None:
            self.upstream.pause_reading()
        if connection.output.full:
            raise RefusalError(502, "the answer is longer than max_answer_bytes", "answer_too_long")

    def sent(self) -> Sent:
        """What of a stream was sent."""
        assert self.asked is not None
        prompt_ids, token_ids = self.tokens.read(self.connection.output.end)
        return read_sent(self.asked, self.sent_answer().body, prompt_ids, token_ids)

    def began_upstream(self, transport: asyncio.Transport) -> None:
        """The engine is asked by this connection."""
        self.upstream = transport

    def end_stream(self) -> None:
        """Send the end of a stream."""
        if not self.head.old:
            self.connection.send(LAST_CHUNK)

    def send_answer(self, status: int, content_type: bytes, body: bytes) -> None:
        """Send an answer of an engine that is no stream."""
        self._send_whole(status, content_type, body)

    def _send_whole(self, status: int, content_type: bytes, body: bytes, extra: tuple[Header, ...] = ()) -> None:
        self.record.status = status
        headers = [*self._headers(content_type), (b"server-timing", self.clock.timing()), *extra]
        self.connection.send(whole(status, body, headers, keep_alive=self.keep_alive))

    def _refuse(self, error: RefusalError, outcome: Outcome | None = None) -> None:
        if self.answer is not None and self.answer.complete:
            return  # a gateway that has died since has answered, and also with a refusal, perhaps
        self.record.outcome = outcome or ("refused" if error.status < 500 or error.status == 503 else "failed")
        try:
            if self.streaming:
                body = error_body(error.status, str(error), error.code, error.param)
                self.send_piece(b"data: " + body + b"\n\n", [], None)
                self.end_stream()
            else:
                self.record.status = error.status
                self.connection.send(refusal(error, [(b"x-request-id", self.id.encode())], keep_alive=self.keep_alive))
        except (JournalFullError, RefusalError):
            self.connection.abort()

    def _conclude(self, task: "asyncio.Task[None]") -> None:
        """Record it, then let go of it: a successor records what was not."""
        try:
            if self.asked is None and task.cancelled():
                with contextlib.suppress(RefusalError):
                    self._take_up()
            answer = self.sent_answer()
            if self.record.first_token_seconds is None and self.clock.pieces:
                self.record.first_token_seconds = self.clock.first_seconds
            self.record.outcome = self._outcome(answer)
            conversation = self.asked.conversation if self.asked is not None else b""
            ids = self.tokens.read(self.connection.output.end)[1]
            sides = Sides(self.body, answer.body, conversation, None if ids is None else len(ids))
            self.context.archive.finish(self.record, self.clock, sides)
            self.context.metrics.count(self.record, self.clock)
            if self.asked is not None and self.record.outcome == "completed" and self.record.status == 200:
                content_type = answer.headers.get(b"content-type", b"")
                self.context.cache.add(self.record.version, self.asked, content_type, answer.body)
        except Exception:
            log.exception("%s: not recorded", self.id)
        self.connection.ended(keep_alive=self.keep_alive)

    def _outcome(self, answer: Wire) -> Outcome:
        if self.record.outcome == "completed" and self.resumed and self.answer is not None and self.answer.complete:
            return "completed" if answer.status < 400 else "refused"
        return "refused" if self.record.outcome == "completed" and 400 <= self.record.status < 500 else self.record.outcome

    def sent_answer(self) -> Wire:
        """Everything that was sent, or will be."""
        output = self.connection.output
        return Wire(output.read(output.start, output.end))
