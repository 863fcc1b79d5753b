"""An exchange as the gateway hands it over, and the frames that carry it to the writer process."""

import struct
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import orjson

Outcome = Literal["completed", "cancelled", "deadline", "failed", "refused"]

EXCHANGE, FEEDBACK, SETTINGS = b"E", b"F", b"S"
_HEAD = struct.Struct("<cIII")  # kind; sizes of fields, request and answer in bytes


class Exchange(NamedTuple):
    """One request and its answer, unmasked: kept only in memory.

    `id` is unique and made by the gateway: an exchange that is handed over twice is stored once. `request` and `answer` are the
    bodies as received and as sent, JSON or server-sent events. `conversation` identifies a conversation: all its exchanges are
    sampled alike. `completion_tokens` is used if the answer has no `usage`.
    """

    id: str
    time: float  # arrival of the request, seconds since the epoch
    path: str  # such as /v1/chat/completions
    alias: str  # the client's `model`
    version: str
    replica: str
    request: bytes
    answer: bytes
    status: int
    outcome: Outcome
    first_token_seconds: float | None
    seconds: float
    moves: int = 0  # number of times another replica had to continue it
    conversation: bytes = b""
    completion_tokens: int | None = None
    client: str | None = None  # name of its token; None without names
    dropped: bool = False  # its content was dropped because too much was unconfirmed


_BODIES = ("request", "answer", "conversation")
_NAMES = (*(name for name in Exchange._fields if name not in _BODIES), "captured")
_values = itemgetter(*(index for index, name in enumerate(Exchange._fields) if name not in _BODIES))


class Frame(NamedTuple):
    """A received frame: fields by name, and two bodies."""

    kind: bytes
    fields: dict[str, Any]
    request: bytes
    answer: bytes


def exchange_frame(exchange: Exchange, *, captured: bool) -> list[bytes]:
    """Return the pieces of an exchange's frame; without the request if its content is not captured."""
    fields = orjson.dumps((*_values(exchange), captured))  # values only: names would double the time
    request = exchange.request if captured else b""
    return [_HEAD.pack(EXCHANGE, len(fields), len(request), len(exchange.answer)), fields, request, exchange.answer]


def frame(kind: bytes, fields: dict[str, Any], body: bytes = b"") -> list[bytes]:
    """Return the pieces of any other frame."""
    packed = orjson.dumps(fields)
    return [_HEAD.pack(kind, len(packed), len(body), 0), packed, body]


def take_frames(received: bytearray) -> Iterator[Frame]:
    """Yield all complete frames at the start of the buffer, and remove them from it."""
    at = 0
    with memoryview(received) as view:
        while len(view) - at >= _HEAD.size:
            kind, *lengths = _HEAD.unpack_from(view, at)
            if len(view) - at - _HEAD.size < sum(lengths):
                break
            at += _HEAD.size
            parts = []
            for length in lengths:
                parts.append(bytes(view[at : at + length]))
                at += length
            fields = orjson.loads(parts[0])
            yield Frame(kind, dict(zip(_NAMES, fields, strict=True)) if kind == EXCHANGE else fields, parts[1], parts[2])
    del received[:at]
