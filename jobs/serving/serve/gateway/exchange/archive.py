"""Exchanges that are over, kept in the journal until the capture has them for good: each is recorded, through any kill.

over        an entry of the archive is made, then the exchange is closed: a kill between the two finds the entry by its id
recorded    the capture is told; it keeps each id once
durable     the capture says so, and the entry goes
"""

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import orjson

from ropewalk.jobs.serving.feedback.exchange import Exchange
from ropewalk.jobs.serving.serve.gateway.exchange.record import Clock, Record
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Journal

_HEAD = struct.Struct("<III")


class Sides(NamedTuple):
    """What was asked and answered."""

    request: bytes
    answer: bytes
    conversation: bytes
    num_tokens: int | None


class Recorder(Protocol):
    """Who writes exchanges down."""

    def record(self, exchange: Exchange) -> None:
        """Take an exchange; never waits."""


class Archive:
    """What is over, and not yet for good in the hands of the recorder. Without one nothing is kept."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recorder: Recorder | None = None
        self._entries: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Exchanges that are not yet written down for good."""
        return len(self._entries)

    def recover(self, recorder: Recorder | None) -> None:
        """Begin with a recorder: it is told again what a gateway before this one has kept."""
        self._recorder = recorder
        for entry, raw in self._journal.kept():
            finished = _read(raw)
            self._entries[finished.id] = entry
            if self._recorder is not None:
                self._recorder.record(finished)

    def finish(self, record: Record, clock: Clock, asked: Sides) -> None:
        """An exchange is over. Called twice for one id, it is one."""
        if self._recorder is None or record.id in self._entries:
            return
        finished = Exchange(
            **{key: getattr(record, key) for key in ("id", "path", "alias", "version", "replica", "status", "outcome", "moves")},
            time=clock.arrived,
            request=asked.request,
            answer=asked.answer,
            first_token_seconds=record.first_token_seconds,
            seconds=clock.seconds(),
            conversation=asked.conversation,
            completion_tokens=asked.num_tokens,
        )
        self._entries[record.id] = self._journal.keep(_packed(finished))
        self._recorder.record(finished)

    def durable(self, ids: Iterable[str]) -> None:
        """The recorder has these for good."""
        for one in ids:
            if (entry := self._entries.pop(one, None)) is not None:
                self._journal.forget(entry)


def _packed(finished: Exchange) -> bytes:
    plain: dict[str, Any] = finished._asdict()
    parts = [plain.pop("request"), plain.pop("answer"), plain.pop("conversation")]
    fields = orjson.dumps(plain)
    return b"".join([_HEAD.pack(len(fields), len(parts[0]), len(parts[1])), fields, *parts])


def _read(raw: bytes) -> Exchange:
    num_fields, num_request, num_answer = _HEAD.unpack_from(raw)
    at = _HEAD.size
    fields, request, answer = (
        raw[at : (at := at + num_fields)],
        raw[at : (at := at + num_request)],
        raw[at : (at := at + num_answer)],
    )
    return Exchange(**orjson.loads(fields), request=request, answer=answer, conversation=raw[at:])
