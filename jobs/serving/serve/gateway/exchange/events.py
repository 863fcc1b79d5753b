"""Server-sent events, whose streams are only ever cut between two events, and the part of a stream that a client has received."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, ModelRequest

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
_BOUND = re.compile(rb"\r?\n\r?\n")
_PLAIN_DELTA = frozenset({"role", "content"})
_EMPTY: tuple[Any, ...] = (None, "", [], {})


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


@dataclass
class SentStream:
    """The sent part of a stream."""

    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] | None = None  # None if the engine did not report them
    events: list[dict[str, Any]] = field(default_factory=list)
    first: dict[str, Any] | None = None  # first event with choices, the template of further ones
    text: bool = False
    finished: bool = False  # an event had a finish reason
    usage_sent: bool = False
    done: bool = False  # the end of the stream was sent
    failed: bool = False  # an error was sent
    plain: bool = True  # only text of one choice


def read_sent(request: ModelRequest, body: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> SentStream:
    """Parse the body of a stream, as far as it was sent."""
    lines = list(datas(body))
    sent = SentStream(prompt_ids, token_ids, done=bool(lines) and lines[-1] == DONE)
    for event in objects(lines):
        sent.events.append(event)
        sent.failed = sent.failed or "error" in event
        sent.usage_sent = sent.usage_sent or (event.get("usage") is not None and not event.get("choices"))
        choices = event.get("choices")
        if isinstance(choices, list) and choices:
            sent.first = sent.first or event
            _read_choices(sent, choices, chat=request.path == CHAT)
    return sent


def _read_choices(sent: SentStream, choices: Sequence[Any], *, chat: bool) -> None:
    choice = choices[0]
    if len(choices) > 1 or not isinstance(choice, dict) or choice.get("index") not in (0, None):
        sent.plain = False
        return
    sent.finished = sent.finished or choice.get("finish_reason") is not None
    if chat:
        delta = choice.get("delta") or {}
        sent.plain = sent.plain and all(key in _PLAIN_DELTA or value in _EMPTY for key, value in delta.items())
    sent.plain = sent.plain and choice.get("logprobs") is None
    sent.text = sent.text or bool(piece_of(choice, chat=chat))


def piece_of(choice: dict[str, Any], *, chat: bool) -> str:
    """Return the text of a choice in an event."""
    text = (choice.get("delta") or {}).get("content") if chat else choice.get("text")
    return text if isinstance(text, str) else ""


def payload(event: dict[str, Any]) -> Any:
    """Return the parts of an event that are the same in equal answers: without ids and times."""
    choices = event.get("choices")
    return [
        {key: value for key, value in choice.items() if key in ("index", "delta", "text", "finish_reason")}
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
