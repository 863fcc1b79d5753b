"""The gateway's side of capture: hand exchanges to a writer process in microseconds.

    gateway  record(exchange) ──frames──▶  writer (a process): parse → mask → append → roll    FOLDER/{answers,exchanges,ratings}
             confirmed ids  ◀──lines──

The gateway's process neither parses, masks nor writes; raw content travels only through a socket. A writer that dies is replaced,
and receives everything unconfirmed again. What a gateway that dies has sent is still read and stored; each id is stored once.
What still waits for room in the socket dies with the gateway, so an answer's last byte waits for `handed_over`.
"""

import asyncio
import hashlib
import logging
import math
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.exchange import FEEDBACK, SETTINGS, Exchange, exchange_frame, frame
from ropewalk.jobs.serving.feedback.ratings import error_body

log = logging.getLogger(__name__)

RESTART_SECONDS = 2.0  # between two starts of a writer
HAND_OVER_SECONDS = 5.0  # the longest that an answer waits for its record to reach the writer's socket
SOCKET_BYTES = 4 << 20  # the kernel grants what it allows, often 0.2 MiB
FEEDBACK_SECONDS = 30.0  # after which a client is told that its feedback could not be stored
CLOSE_SECONDS, CLOSE_LOOK_SECONDS = 60.0, 0.01
MAX_OPEN_BYTES = 64 << 20  # unconfirmed bytes; beyond them exchanges are stored without content
RECEIVE_BYTES = 1 << 16

__all__ = ["Capture", "CaptureConfig", "Exchange", "is_sampled"]


def is_sampled(conversation: bytes, share: float) -> bool:
    """Return True if a conversation is captured: a fixed share of all, selected by a hash used for nothing else."""
    if share >= 1:
        return True
    digest = hashlib.blake2b(conversation, digest_size=8, person=b"capture").digest()
    return int.from_bytes(digest) < share * 2**64


class Capture:
    """Sends exchanges and feedback to a writer process. All methods must be called in the event loop that ran `start`."""

    def __init__(self, folder: Path, config: CaptureConfig | None, max_open_bytes: int = MAX_OPEN_BYTES) -> None:
        """With `config` None only the ledger of answers is written, which has no content."""
        self.folder, self.config, self.max_open_bytes = folder, config, max_open_bytes
        self.lost = 0  # exchanges stored without content because too much was unconfirmed
        self._open: dict[str, tuple[int, list[bytes]]] = {}  # size and frame pieces of unconfirmed exchanges
        self._open_bytes = 0
        self._replies: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._unsent: list[bytes] = []  # waits, as `_sending` does, for room in the writer's socket; lost with this process
        self._sending = memoryview(b"")
        self._unsent_waiters: list[asyncio.Future[None]] = []  # of `handed_over`
        self._sending_waiters: list[asyncio.Future[None]] = []
        self._stuck = False  # the writer takes nothing, perhaps because its disk is full
        self._started = -math.inf
        self._received = bytearray()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._waiting_for_room = self._closing = False

    @property
    def waiting(self) -> int:
        """Number of exchanges and ratings that are not durable yet."""
        return len(self._open)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._start_writer()

    def record(self, exchange: Exchange) -> None:
        """Hand over a finished exchange. Never blocks or raises; a repeated id is ignored."""
        if exchange.id in self._open:
            return
        captured = self.config is not None and is_sampled(exchange.conversation, self.config.share)
        size = len(exchange.request) + len(exchange.answer)
        if self._open_bytes + size > self.max_open_bytes:
            self._lose(1 if captured else 0)
            exchange, captured = exchange._replace(request=b"", answer=b"", dropped=captured), False
            if self._open_bytes > 2 * self.max_open_bytes:  # the writer is far behind: drop the ledger row too
                return
        self._send(exchange.id, exchange_frame(exchange, captured=captured))

    async def handed_over(self) -> None:
        """Wait until everything recorded is in the writer's socket, where it outlives this process.

        Waits for a writer that takes nothing once, for HAND_OVER_SECONDS; then not until it takes something again.
        """
        if self._stuck or not (self._unsent or self._sending):
            return
        waiter = self._loop.create_future()
        (self._unsent_waiters if self._unsent else self._sending_waiters).append(waiter)
        try:
            await asyncio.wait_for(waiter, HAND_OVER_SECONDS)
        except TimeoutError:
            self._stuck = True

    async def feedback(self, number: str, body: bytes, client: str | None = None) -> tuple[int, bytes]:
        """Handle `POST /v1/feedback` and return status and body; 200 only once the feedback is stored.

        `number` is a unique id made by the gateway: feedback that is handed over twice is stored once. `client` is the name of
        the client's token.
        """
        if self._closing:
            return 503, orjson.dumps(error_body("the endpoint is stopping; try again", kind="server_error"))
        self._replies[number] = self._loop.create_future()
        self._send(number, frame(FEEDBACK, {"id": number, "client": client}, body))
        try:
            status, answer = await asyncio.wait_for(self._replies[number], FEEDBACK_SECONDS)
        except TimeoutError:
            message = f"not stored within {FEEDBACK_SECONDS:.0f} s, perhaps because the disk is full; try again"
            return 503, orjson.dumps(error_body(message, kind="server_error"))
        finally:
            self._replies.pop(number, None)
        return status, orjson.dumps(answer)

    async def close(self) -> None:
        """Wait until everything is stored and rolled, replacing the writer if it dies, then end the writer."""
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._open:
                    self._flush()
                    await asyncio.sleep(CLOSE_LOOK_SECONDS)
        except TimeoutError:
            log.warning("feedback: %d exchanges were not stored within %.0f s", len(self._open), CLOSE_SECONDS)
        if self._restart:
            self._restart.cancel()
        self._disconnect()
        if self._process:
            await asyncio.to_thread(self._process.wait)

    # --- to the writer

    def _send(self, number: str, pieces: list[bytes]) -> None:
        size = sum(map(len, pieces))
        self._open[number] = size, pieces
        self._open_bytes += size
        self._unsent.extend(pieces)
        if not self._waiting_for_room:
            self._flush()

    def _flush(self) -> None:
        while self._socket and (self._sending or self._unsent):
            if not self._sending:
                self._sending = memoryview(b"".join(self._unsent))  # one system call instead of many
                self._unsent.clear()
                self._sending_waiters, self._unsent_waiters = self._unsent_waiters, []
            try:
                self._sending = self._sending[self._socket.send(self._sending) :]
                self._stuck = False
            except BlockingIOError:
                pass
            except OSError:  # the writer died; `_receive` detects the closed socket
                return
            if self._sending:
                if not self._waiting_for_room:
                    self._waiting_for_room = True
                    self._loop.add_writer(self._socket, self._flush)
                return
            for waiter in self._sending_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._sending_waiters.clear()
        if self._waiting_for_room and self._socket:
            self._waiting_for_room = False
            self._loop.remove_writer(self._socket)

    def _lose(self, count: int) -> None:
        if count and not self.lost:
            log.warning(
                "feedback: more than %d bytes are unconfirmed; exchanges are stored without content until there is room",
                self._open_bytes,
            )
        self.lost += count

    # --- from the writer

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            piece = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._replace_writer()
            return
        self._received += piece
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            reply = orjson.loads(line)
            for number, (status, answer) in reply["feedback"].items():
                self._confirm(number)
                if (future := self._replies.get(number)) and not future.done():
                    future.set_result((status, answer))
            for number in reply["durable"]:
                self._confirm(number)

    def _confirm(self, number: str) -> None:
        size, _ = self._open.pop(number, (0, None))
        self._open_bytes -= size

    # --- the writer process

    def _start_writer(self) -> None:
        self._started = self._loop.time()
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        with other:
            self._process = subprocess.Popen(
                module_command("ropewalk.jobs.serving.feedback.writer", str(other.fileno()), str(self.folder)),
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            )
        settings = self.config.model_dump(mode="json") if self.config else None
        self._received.clear()
        self._sending = memoryview(b"")
        self._unsent = frame(SETTINGS, {"config": settings})
        for _, pieces in self._open.values():
            self._unsent.extend(pieces)
        self._unsent_waiters += self._sending_waiters
        self._sending_waiters = []
        self._loop.add_reader(self._socket, self._receive)
        self._flush()

    def _replace_writer(self) -> None:
        self._disconnect()
        process, self._process = self._process, None
        if process:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)  # it closed its end of the socket: its work no longer counts
            log.warning("feedback: the writer ended with %s; its replacement gets the unconfirmed exchanges", process.wait())
        self._restart = self._loop.call_at(self._started + RESTART_SECONDS, self._start_writer)

    def _disconnect(self) -> None:
        if self._socket:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._waiting_for_room = False
            self._socket.close()
            self._socket = None
