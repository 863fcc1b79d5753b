"""Server-sent events. The bytes of a stream are only ever cut between two events."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

DONE = b"[DONE]"
_BOUND = re.compile(rb"\r?\n\r?\n")


def whole_events(data: bytes) -> int:
    """Return the number of leading bytes that are complete events."""
    plain, long = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, long + 4 if long >= 0 else 0)


def datas(body: bytes) -> Iterator[bytes]:
    """Yield the data of each complete event."""
    for block in _BOUND.split(body[: whole_events(body)]):
        lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def objects(datas: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the data of events that are JSON objects."""
    for data in datas:
        if data != DONE:
            try:
                value = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            if isinstance(value, dict):
                yield value


def as_event(value: dict[str, Any]) -> bytes:
    """Return an event with a JSON object."""
    return b"data: %b\n\n" % orjson.dumps(value)


DONE_EVENT = b"data: [DONE]\n\n"
