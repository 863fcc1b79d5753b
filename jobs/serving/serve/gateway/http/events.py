"""Server-sent events: where they end, and what is in them. The bytes of a stream are only ever cut between two events."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

DONE = b"[DONE]"
_BOUND = re.compile(rb"\r?\n\r?\n")


def whole_events(data: bytes) -> int:
    """How many bytes at the beginning of the data are whole events."""
    plain, long = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, long + 4 if long >= 0 else 0)


def datas(body: bytes) -> Iterator[bytes]:
    """The data of each whole event."""
    for block in _BOUND.split(body[: whole_events(body)]):
        lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def objects(found: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Those of the events whose data are JSON objects."""
    for data in found:
        if data != DONE:
            try:
                value = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            if isinstance(value, dict):
                yield value


def as_event(value: dict[str, Any]) -> bytes:
    """An event with an object."""
    return b"data: %b\n\n" % orjson.dumps(value)


DONE_EVENT = b"data: [DONE]\n\n"
