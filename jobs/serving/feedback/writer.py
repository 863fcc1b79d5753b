"""The process that writes down what a gateway hands over: parses, masks, appends, and says what is durable.

python -m ropewalk.jobs.serving.feedback.writer DESCRIPTOR FOLDER       a Unix socket that the gateway opened, and the run's
folder of feedback

It lives as long as the gateway's end of the socket: what has arrived when the gateway dies is still written down.
"""

import logging
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.exchange import EXCHANGE, FEEDBACK, SETTINGS, Frame, take_frames
from ropewalk.jobs.serving.feedback.ratings import error_body, read_feedback
from ropewalk.jobs.serving.feedback.records import answers_store, exchange_rows, exchanges_store, rating_row, ratings_store
from ropewalk.jobs.serving.feedback.store import DAY_SECONDS, Writer

log = logging.getLogger(__name__)

RECEIVE_BYTES = 1 << 20
MOST_AT_ONCE = 256  # exchanges that are masked together
ROLL_BYTES = 16 << 20
ROLL_SECONDS = 600.0
LOOK_SECONDS = 1.0  # between two waits for the disk
RETENTION_SECONDS = 600.0  # between two looks at what is too old
RETRY_SECONDS = 1.0  # after the disk was full


class CaptureWriter:
    """Three stores, and what of them is written by this process."""

    def __init__(self, folder: Path, config: CaptureConfig | None) -> None:
        self.config = config
        self.answers = Writer(answers_store(folder), ROLL_BYTES, ROLL_SECONDS)
        self.exchanges = Writer(exchanges_store(folder), ROLL_BYTES, ROLL_SECONDS)
        self.ratings = Writer(ratings_store(folder), ROLL_BYTES, ROLL_SECONDS)
        self._retained = 0.0

    def write(self, frames: Sequence[Frame]) -> dict[str, Any]:
        """Write exchanges and feedback down; what the gateway is told of them. Raises OSError: then nothing counts as written."""
        exchanges = [f for f in frames if f.kind == EXCHANGE]
        ledger, captured = exchange_rows(exchanges, self.config.mask if self.config else ())
        self.exchanges.append(captured)
        self.answers.append(ledger)
        said = {f.fields["id"]: self._feedback(f) for f in frames if f.kind == FEEDBACK}
        return {"durable": [f.fields["id"] for f in exchanges], "feedback": said}

    def _feedback(self, frame: Frame) -> tuple[int, dict[str, Any]]:
        if self.config is None:
            return 403, error_body("feedback is not kept by this endpoint; start it with capture={}", code="capture_is_off")
        body = read_feedback(frame.request)
        if isinstance(body, dict):
            return 400, body
        row = rating_row(frame.fields["id"], body, self.config.mask)
        self.ratings.append([row])
        return 200, {"id": row["id"], "object": "feedback", "answer_id": body.answer_id}

    def rest(self) -> None:
        """What can wait: the disk, shards, what is too old."""
        for writer in (self.answers, self.exchanges, self.ratings):
            writer.sync()
        if self.config and time.monotonic() - self._retained > RETENTION_SECONDS:
            self._retained = time.monotonic()
            for writer in (self.exchanges, self.ratings):
                writer.store.delete_before(time.time() - self.config.retention_days * DAY_SECONDS)
            self.exchanges.store.delete_beyond(self.config.max_bytes)

    def close(self) -> None:
        """Roll everything."""
        for writer in (self.answers, self.exchanges, self.ratings):
            writer.roll()


def serve(connection: socket.socket, folder: Path) -> None:
    """Write down what arrives, until the other end is closed."""
    received, writer, opened = bytearray(), None, True
    rested = time.monotonic()
    while opened:
        ready, _, _ = select.select([connection], [], [], LOOK_SECONDS)
        if ready:
            try:
                piece = connection.recv(RECEIVE_BYTES)
            except ConnectionResetError:  # the gateway was killed before it had heard everything: all that it sent is read
                piece = b""
            opened = bool(piece)
            received += piece
            frames = list(take_frames(received))
            if writer is None and frames and frames[0].kind == SETTINGS:
                config = frames.pop(0).fields["config"]
                writer = CaptureWriter(folder, CaptureConfig.model_validate(config) if config is not None else None)
            for start in range(0, len(frames) if writer else 0, MOST_AT_ONCE):
                assert writer is not None
                _tell(connection, _write(writer, frames[start : start + MOST_AT_ONCE]))
        if writer and time.monotonic() - rested >= LOOK_SECONDS:
            _rest(writer)
            rested = time.monotonic()
    if writer:
        writer.close()


def _write(writer: CaptureWriter, frames: Sequence[Frame]) -> dict[str, Any]:
    """Write, and wait where the disk is full: the gateway keeps what it is told nothing about.

    A frame that cannot be written takes no other along, now or after a restart: its answer stands in the ledger without content.
    """
    while True:
        try:
            return writer.write(frames)
        except OSError as error:
            log.warning("feedback: cannot be written, tried again every %.0f s: %s", RETRY_SECONDS, error)
            time.sleep(RETRY_SECONDS)
        except Exception as error:
            if len(frames) > 1:
                told = [_write(writer, [frame]) for frame in frames]
                durable = [number for one in told for number in one["durable"]]
                return {"durable": durable, "feedback": {k: v for one in told for k, v in one["feedback"].items()}}
            (frame,) = frames
            number = frame.fields["id"]
            log.error("feedback: %s cannot be kept: %s", number, type(error).__name__)  # its words could hold content
            if frame.kind == FEEDBACK:
                return {"durable": [], "feedback": {number: (400, error_body("this feedback cannot be kept; send plain text"))}}
            if not frame.request and not frame.answer:
                raise
            # first without the request: the answer tells its own id and its tokens
            answer = frame.answer if frame.request else b""
            frames = [frame._replace(fields={**frame.fields, "captured": False}, request=b"", answer=answer)]


def _rest(writer: CaptureWriter) -> None:
    try:
        writer.rest()
    except OSError as error:
        log.warning("feedback: not rolled now, tried again: %s", error)


def _tell(connection: socket.socket, told: dict[str, Any]) -> None:
    with suppress(OSError):  # the gateway is gone; its successor hands over again what it does not know to be durable
        connection.sendall(orjson.dumps(told) + b"\n")


def main() -> None:
    """Serve the socket whose number and folder stand on the command line."""
    for word in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(word, signal.SIG_IGN)  # it ends when the gateway does, and not before what it was given is written
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    descriptor, folder = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as connection:
        serve(connection, Path(folder))


if __name__ == "__main__":
    main()
