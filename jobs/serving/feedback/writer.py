"""Writer process of capture: parses, masks and stores what a gateway hands over, and confirms what is durable.

python -m ropewalk.jobs.serving.feedback.writer DESCRIPTOR FOLDER

DESCRIPTOR is a Unix socket opened by the gateway, FOLDER the run's feedback folder.

It runs until the gateway's end of the socket is closed, and still stores everything that was sent before.
"""

import logging
import math
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson

from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.exchange import EXCHANGE, FEEDBACK, SETTINGS, Frame, take_frames
from ropewalk.jobs.serving.feedback.known_answers import KnownAnswers, SearchLimitError
from ropewalk.jobs.serving.feedback.ratings import MAX_RATINGS, error_body, read_feedback
from ropewalk.jobs.serving.feedback.records import ROLL, answers_store, exchange_rows, exchanges_store, rating_row, ratings_store
from ropewalk.jobs.serving.feedback.retention import enforce, enforce_beside
from ropewalk.jobs.serving.feedback.store import Writer

log = logging.getLogger(__name__)
T = TypeVar("T")

RECEIVE_BYTES = 1 << 20
BATCH = 256  # exchanges masked together
ROLL_BYTES = 16 << 20
ROLL_SECONDS = 600.0
IDLE_SECONDS = 1.0  # between syncs to disk
RETENTION_SECONDS = 600.0  # between deletions of old records
RETRY_SECONDS = 1.0  # after a failed write


class CaptureWriter:
    """The three stores of a run's feedback, as far as this process writes them."""

    def __init__(self, folder: Path, config: CaptureConfig | None) -> None:
        self.folder, self.config = folder, config
        self.answers = Writer(answers_store(folder), ROLL_BYTES, ROLL_SECONDS)
        self.exchanges = Writer(exchanges_store(folder), ROLL_BYTES, ROLL_SECONDS)
        self.ratings = Writer(ratings_store(folder), ROLL_BYTES, ROLL_SECONDS)
        self._known = KnownAnswers(self.answers.store, self.ratings.store)
        self._retained, self._clock_offset = -math.inf, time.time() - time.monotonic()

    def write(self, frames: Sequence[Frame]) -> dict[str, Any]:
        """Store exchanges and feedback and return the confirmation for the gateway. Raises OSError: nothing is confirmed then."""
        exchanges = [f for f in frames if f.kind == EXCHANGE]
        ledger, captured = exchange_rows(exchanges, self.config.mask if self.config else ())
        self.exchanges.append(captured)
        self.answers.append(ledger)
        self._known.add(ledger)
        replies = {f.fields["id"]: self._feedback(f) for f in frames if f.kind == FEEDBACK}
        return {"durable": [f.fields["id"] for f in exchanges], "feedback": replies}

    def _feedback(self, frame: Frame) -> tuple[int, dict[str, Any]]:
        if self.config is None:
            return 403, error_body("this endpoint does not store feedback; start it with capture={}", code="capture_is_off")
        body = read_feedback(frame.request)
        if isinstance(body, dict):
            return 400, body
        number, client = frame.fields["id"], frame.fields.get("client")
        try:
            answer = self._known.find(body.answer_id, client)
        except SearchLimitError:
            return 429, error_body("too many ratings of older answers; try again later", code="rate_limit_exceeded")
        if answer is None:
            return 404, error_body(f"this endpoint gave no answer {body.answer_id!r}", "answer_id", code="answer_not_found")
        if answer.num_ratings >= MAX_RATINGS:
            return 429, error_body(f"this answer has {MAX_RATINGS} ratings; no more are stored", code="too_many_ratings")
        row = rating_row(number, body, answer, self.config.mask, client)
        self.ratings.append([row])
        answer.num_ratings += 1
        return 200, {"id": row["id"], "object": "feedback", "answer_id": body.answer_id}

    def maintain(self) -> None:
        """Do what can wait: sync, roll, delete old records, also of earlier runs in the same root."""
        due = (self.folder / ROLL).exists()
        for writer in (self.answers, self.exchanges, self.ratings):
            writer.roll() if due else writer.sync()
        if time.monotonic() - self._retained > RETENTION_SECONDS:
            self._retained = time.monotonic()
            if self.config:  # a clock that was put forward while this process runs deletes nothing
                enforce(self.folder, self.config, min(time.time(), self._clock_offset + time.monotonic()))
            enforce_beside(self.folder)

    def close(self) -> None:
        for writer in (self.answers, self.exchanges, self.ratings):
            writer.roll()


def serve(connection: socket.socket, folder: Path) -> None:
    """Store what arrives until the other end is closed."""
    received, writer, opened, dropped = bytearray(), None, True, 0
    maintained_at = time.monotonic()
    poll = select.poll()  # unlike select it takes any descriptor: a gateway with a thousand clients passes on a higher one
    poll.register(connection, select.POLLIN)
    while opened:
        if poll.poll(1000 * IDLE_SECONDS):
            try:
                piece = connection.recv(RECEIVE_BYTES)
            except ConnectionResetError:  # the gateway was killed; everything it sent has been read
                piece = b""
            opened = bool(piece)
            received += piece
            frames = list(take_frames(received))
            if writer is None and frames and frames[0].kind == SETTINGS:
                config = frames.pop(0).fields["config"]
                capture = CaptureConfig.model_validate(config) if config is not None else None
                try:
                    writer = _retry(connection, partial(CaptureWriter, folder, capture))
                except OSError as error:
                    log.error("feedback: the gateway ended before anything could be written: %s", error)
                    return
            for start in range(0, len(frames) if writer else 0, BATCH):
                assert writer is not None
                batch = frames[start : start + BATCH]
                try:
                    _tell(connection, _write(connection, writer, batch))
                except OSError:  # the gateway is gone, and the disk is still full
                    dropped += len(batch)
        if writer and time.monotonic() - maintained_at >= IDLE_SECONDS:
            _try(writer.maintain)
            maintained_at = time.monotonic()
    if dropped:
        log.error("feedback: the gateway ended while the disk was full; %d exchanges and ratings were dropped", dropped)
    if writer:
        _try(writer.close)


def _retry(connection: socket.socket, action: Callable[[], T]) -> T:
    """Repeat an action while it fails, because the disk is full; the gateway keeps what is not confirmed.

    Raises OSError if the gateway is gone.
    """
    failed = False
    while True:
        try:
            return action()
        except OSError as error:
            poll = select.poll()
            poll.register(connection, select.POLLRDHUP)
            if poll.poll(RETRY_SECONDS * 1000):
                raise
            if not failed:
                log.warning("feedback: write failed, retrying every %.0f s: %s", RETRY_SECONDS, error)
            failed = True


def _write(connection: socket.socket, writer: CaptureWriter, frames: Sequence[Frame]) -> dict[str, Any]:
    """Store frames. Raises OSError if the disk is full and the gateway is gone.

    A frame that cannot be stored must not block the others: its answer is recorded in the ledger without content.
    """
    while True:
        try:
            return _retry(connection, partial(writer.write, frames))
        except OSError:
            raise
        except Exception as error:
            if len(frames) > 1:
                replies = [_write(connection, writer, [frame]) for frame in frames]
                durable = [number for reply in replies for number in reply["durable"]]
                return {"durable": durable, "feedback": {k: v for reply in replies for k, v in reply["feedback"].items()}}
            (frame,) = frames
            number = frame.fields["id"]
            log.error("feedback: %s cannot be stored: %s", number, type(error).__name__)  # the message could hold content
            if frame.kind == FEEDBACK:
                return {"durable": [], "feedback": {number: (400, error_body("this feedback cannot be stored; send plain text"))}}
            if not frame.request and not frame.answer:
                raise
            # first without the request: the answer still holds its id and token counts
            answer = frame.answer if frame.request else b""
            frames = [frame._replace(fields={**frame.fields, "captured": False}, request=b"", answer=answer)]


def _try(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as error:
        log.warning("feedback: maintenance failed, will be retried: %s", error)


def _tell(connection: socket.socket, reply: dict[str, Any]) -> None:
    with suppress(OSError):  # the gateway died; its successor hands over everything unconfirmed again
        connection.sendall(orjson.dumps(reply) + b"\n")


def main() -> None:
    """Serve the socket and folder given on the command line."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the gateway, after everything received is stored
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    descriptor, folder = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as connection:
        serve(connection, Path(folder))


if __name__ == "__main__":
    main()
