"""Finished exchanges, kept in the journal until their capture is durable, so that each is recorded despite crashes.

finish      adds an entry to the journal before the exchange is closed: after a crash in between, its id is found in the journal
record      hands the exchange to the capture, which stores each id once
durable     the capture confirms, and the entry is removed
"""

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import orjson

from ropewalk.jobs.serving.feedback.exchange import Exchange
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock, Record
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Journal

_HEAD = struct.Struct("<III")


class Bodies(NamedTuple):
    """Request and answer of an exchange."""

    request: bytes
    answer: bytes
    conversation: bytes
    num_tokens: int | None


class Recorder(Protocol):
    """Destination of finished exchanges."""

    def record(self, exchange: Exchange) -> None:
        """Take an exchange; never blocks."""


class Archive:
    """Finished exchanges that are not yet durable. Without a recorder nothing is kept."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recorder: Recorder | None = None
        self._entries: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Number of exchanges that are not yet durable."""
        return len(self._entries)

    def recover(self, recorder: Recorder | None) -> None:
        """Set the recorder, and hand it the exchanges kept by an earlier gateway."""
        self._recorder = recorder
        for entry, raw in self._journal.kept():
            finished = _unpack(raw)
            self._entries[finished.id] = entry
            if self._recorder is not None:
                self._recorder.record(finished)

    def finish(self, record: Record, clock: Clock, bodies: Bodies) -> None:
        """Record a finished exchange; a repeated id is ignored."""
        if self._recorder is None or record.id in self._entries:
            return
        finished = Exchange(
            **{key: getattr(record, key) for key in ("id", "path", "alias", "version", "replica", "status", "outcome", "moves")},
            time=clock.arrived,
            request=bodies.request,
            answer=bodies.answer,
            first_token_seconds=record.first_token_seconds,
            seconds=clock.seconds(),
            conversation=bodies.conversation,
            completion_tokens=bodies.num_tokens,
        )
        self._entries[record.id] = self._journal.keep(_pack(finished))
        self._recorder.record(finished)

    def durable(self, ids: Iterable[str]) -> None:
        """Remove exchanges that the recorder has confirmed."""
        for number in ids:
            if (entry := self._entries.pop(number, None)) is not None:
                self._journal.forget(entry)


def _pack(finished: Exchange) -> bytes:
    fields: dict[str, Any] = finished._asdict()
    parts = [fields.pop("request"), fields.pop("answer"), fields.pop("conversation")]
    packed_fields = orjson.dumps(fields)
    return b"".join([_HEAD.pack(len(packed_fields), len(parts[0]), len(parts[1])), packed_fields, *parts])


def _unpack(raw: bytes) -> Exchange:
    num_fields, num_request, num_answer = _HEAD.unpack_from(raw)
    offset = _HEAD.size
    fields, request, answer = (
        raw[offset : (offset := offset + num_fields)],
        raw[offset : (offset := offset + num_request)],
        raw[offset : (offset := offset + num_answer)],
    )
    return Exchange(**orjson.loads(fields), request=request, answer=answer, conversation=raw[offset:])
