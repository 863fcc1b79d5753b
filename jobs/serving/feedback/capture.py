"""The gateway's side of capturing: hand an exchange over in microseconds, and learn when it is durable.

    gateway  record(exchange) ──frames──▶  writer (a process): parse → mask → append → roll    FOLDER/{answers,exchanges,ratings}
             on_durable(ids)  ◀──lines───

Nothing is parsed, masked or written to a disk in the gateway's process, and raw content goes nowhere but through a socket. A
writer that is killed is replaced and given again what it had not confirmed. A gateway that is killed has a successor, which
records again what nobody confirmed; each id is kept once, however often it is recorded.
"""

import asyncio
import hashlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.exchange import FEEDBACK, SETTINGS, Exchange, exchange_frame, frame
from ropewalk.jobs.serving.feedback.ratings import error_body

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.2  # for so long exchanges are collected before they are sent
RESTART_SECONDS = 0.5
FEEDBACK_SECONDS = 30.0  # until a client hears that its feedback is not written down yet
CLOSE_SECONDS, CLOSE_LOOK_SECONDS = 60.0, 0.01
MOST_OPEN_BYTES = 64 << 20  # that are not confirmed; what comes then is kept without its content
RECEIVE_BYTES = 1 << 16

__all__ = ["Capture", "CaptureConfig", "Exchange", "is_sampled"]


def is_sampled(conversation: bytes, share: float) -> bool:
    """Whether a conversation is captured: a share of all, drawn by a hash that nothing else draws by."""
    if share >= 1:
        return True
    drawn = hashlib.blake2b(conversation, digest_size=8, person=b"capture").digest()
    return int.from_bytes(drawn) < share * 2**64


class Capture:
    """Hands exchanges and feedback to a writer process of its own. All methods are called in the event loop that ran `start`."""

    def __init__(
        self,
        folder: Path,
        config: CaptureConfig | None,
        on_durable: Callable[[Sequence[str]], None] = lambda ids: None,
        most_open_bytes: int = MOST_OPEN_BYTES,
    ) -> None:
        """`config` None: only the ledger of answers is written, which has no content.

        `on_durable` gets the ids of exchanges that no kill can lose any more, and of those that were given up (`lost`).
        """
        self.folder, self.config, self.most_open_bytes = folder, config, most_open_bytes
        self.lost = 0  # exchanges whose content was not kept, because more was waiting than may
        self._on_durable = on_durable
        self._open: dict[str, tuple[int, list[bytes]]] = {}  # bytes and pieces, sent or not, until it is confirmed
        self._open_bytes = 0
        self._said: dict[str, asyncio.Future[tuple[int, Any]]] = {}
        self._unsent: list[bytes] = []
        self._sending = memoryview(b"")
        self._heard = bytearray()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._waits_for_room = self._closing = False

    @property
    def writer_pid(self) -> int | None:
        """The process that writes; None while there is none."""
        return self._process.pid if self._process else None

    @property
    def waiting(self) -> int:
        """Exchanges and feedback that are not durable yet."""
        return len(self._open)

    async def start(self) -> None:
        """Start the writer."""
        self._loop = asyncio.get_running_loop()
        self._start_writer()

    def record(self, exchange: Exchange) -> None:
        """Hand over an exchange that is over. Never blocks, never raises; a second time with the same id changes nothing."""
        if exchange.id in self._open:
            return
        captured = self.config is not None and is_sampled(exchange.conversation, self.config.share)
        size = len(exchange.request) + len(exchange.answer)
        if self._open_bytes + size > self.most_open_bytes:
            self._lose(1 if captured else 0)
            exchange, captured = exchange._replace(request=b"", answer=b""), False
            if self._open_bytes > 2 * self.most_open_bytes:  # not even a line more: nothing has been confirmed for very long
                self._on_durable([exchange.id])
                return
        self._send(exchange.id, exchange_frame(exchange, captured=captured))

    async def feedback(self, number: str, body: bytes) -> tuple[int, bytes]:
        """Answer `POST /v1/feedback`: a status and a body; 200 only when it is written down.

        `number` is unique, of the gateway's making: feedback that is handed over twice is kept once.
        """
        if self._closing:
            return 503, orjson.dumps(error_body("the endpoint is stopping; try again", kind="server_error"))
        self._said[number] = self._loop.create_future()
        self._send(number, frame(FEEDBACK, {"id": number}, body))
        self._flush()  # its client waits
        try:
            status, answer = await asyncio.wait_for(self._said[number], FEEDBACK_SECONDS)
        except TimeoutError:
            message = f"not written down within {FEEDBACK_SECONDS:.0f} s: is the disk full? Try again"
            return 503, orjson.dumps(error_body(message, kind="server_error"))
        finally:
            self._said.pop(number, None)
        return status, orjson.dumps(answer)

    async def close(self) -> None:
        """Have everything written down and rolled, by another writer where this one dies, and let the writer end."""
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._open:
                    self._flush()
                    await asyncio.sleep(CLOSE_LOOK_SECONDS)
        except TimeoutError:
            log.warning("feedback: %d exchanges were not written down within %.0f s", len(self._open), CLOSE_SECONDS)
        if self._restart:
            self._restart.cancel()
        self._disconnect()
        if self._process:
            await asyncio.to_thread(self._process.wait)

    # --- towards the writer

    def _send(self, number: str, pieces: list[bytes]) -> None:
        size = sum(map(len, pieces))
        self._open[number] = size, pieces
        self._open_bytes += size
        self._unsent.extend(pieces)
        if self._timer is None and not self._waits_for_room:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        """Send as much as the socket takes."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._socket and (self._sending or self._unsent):
            if not self._sending:
                self._sending = memoryview(b"".join(self._unsent))  # one piece costs a system call less than many
                self._unsent.clear()
            try:
                self._sending = self._sending[self._socket.send(self._sending) :]
            except BlockingIOError:
                pass
            except OSError:  # the writer is gone, which its end of the socket tells too
                return
            if self._sending:
                if not self._waits_for_room:
                    self._waits_for_room = True
                    self._loop.add_writer(self._socket, self._flush)
                return
        if self._waits_for_room and self._socket:
            self._waits_for_room = False
            self._loop.remove_writer(self._socket)

    def _lose(self, count: int) -> None:
        if count and not self.lost:
            log.warning(
                "feedback: more than %d bytes wait to be written; contents are not kept until there is room", self._open_bytes
            )
        self.lost += count

    # --- from the writer

    def _hear(self) -> None:
        assert self._socket is not None
        try:
            piece = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._writer_is_gone()
            return
        self._heard += piece
        *lines, rest = self._heard.split(b"\n")
        self._heard = bytearray(rest)
        for line in lines:
            told = orjson.loads(line)
            for number, (status, answer) in told["feedback"].items():
                self._close_one(number)
                if (future := self._said.get(number)) and not future.done():
                    future.set_result((status, answer))
            for number in told["durable"]:
                self._close_one(number)
            if told["durable"]:
                self._on_durable(told["durable"])

    def _close_one(self, number: str) -> None:
        size, _ = self._open.pop(number, (0, None))
        self._open_bytes -= size

    # --- the writer's life

    def _start_writer(self) -> None:
        self._socket, other = socket.socketpair()
        self._socket.setblocking(False)
        with other:
            self._process = subprocess.Popen(
                module_command("ropewalk.jobs.serving.feedback.writer", str(other.fileno()), str(self.folder)),
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            )
        settings = self.config.model_dump(mode="json") if self.config else None
        self._heard.clear()
        self._sending = memoryview(b"")
        self._unsent = frame(SETTINGS, {"config": settings})
        for _, pieces in self._open.values():
            self._unsent.extend(pieces)
        self._loop.add_reader(self._socket, self._hear)
        self._flush()

    def _writer_is_gone(self) -> None:
        self._disconnect()
        process, self._process = self._process, None
        if process:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)  # it has closed its end: nothing that it does counts any more
            log.warning("feedback: the writer ended with %s; a new one gets what was not confirmed", process.wait())
        self._restart = self._loop.call_later(RESTART_SECONDS, self._start_writer)

    def _disconnect(self) -> None:
        if self._socket:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._waits_for_room = False
            self._socket.close()
            self._socket = None
