"""An exchange as the gateway hands it over, and the frames in which it travels to the process that writes it down."""

import struct
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import orjson

Outcome = Literal["completed", "cancelled", "deadline", "failed", "refused"]

EXCHANGE, FEEDBACK, SETTINGS = b"E", b"F", b"S"
_HEAD = struct.Struct("<cIII")  # kind; bytes of fields, request, answer


class Exchange(NamedTuple):
    """One request and what was answered to it, raw: only ever in memory.

    `id` is unique, of the gateway's making: an exchange that is handed over twice is kept once. `request` and `answer` are the
    bodies as they were received and as they were sent, JSON or server-sent events. `conversation` is what tells conversations
    apart: all exchanges of one are sampled alike. `completion_tokens` is used where the answer has no `usage`.
    """

    id: str
    time: float  # seconds since the epoch, of the request's arrival
    path: str  # such as /v1/chat/completions
    alias: str  # what the client asked for as `model`
    version: str
    replica: str
    request: bytes
    answer: bytes
    status: int
    outcome: Outcome
    first_token_seconds: float | None
    seconds: float
    moves: int = 0  # to how many other replicas it was handed on its way
    conversation: bytes = b""
    completion_tokens: int | None = None


_BODIES = ("request", "answer", "conversation")
_NAMES = (*(name for name in Exchange._fields if name not in _BODIES), "captured")
_values = itemgetter(*(at for at, name in enumerate(Exchange._fields) if name not in _BODIES))


class Frame(NamedTuple):
    """What was received: fields by name, and two bodies."""

    kind: bytes
    fields: dict[str, Any]
    request: bytes
    answer: bytes


def exchange_frame(exchange: Exchange, *, captured: bool) -> list[bytes]:
    """The pieces of an exchange's frame; without its request where its content is not captured."""
    fields = orjson.dumps((*_values(exchange), captured))  # without their names, which would take as long again
    request = exchange.request if captured else b""
    return [_HEAD.pack(EXCHANGE, len(fields), len(request), len(exchange.answer)), fields, request, exchange.answer]


def frame(kind: bytes, fields: dict[str, Any], body: bytes = b"") -> list[bytes]:
    """The pieces of any other frame."""
    packed = orjson.dumps(fields)
    return [_HEAD.pack(kind, len(packed), len(body), 0), packed, body]


def take_frames(received: bytearray) -> Iterator[Frame]:
    """All whole frames at the beginning of what was received; they are removed from it."""
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
