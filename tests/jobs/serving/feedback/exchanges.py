"""Exchanges as a gateway hands them over, with personal data planted into prompts, tool arguments and streamed answers."""

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from ropewalk.jobs.serving.feedback.exchange import Exchange
from tests.fakes.personal import LOCALES, Planted, plant

START = 1_790_000_000.0


@cache
def planted(seed: int = 3, count: int = 12) -> tuple[Planted, ...]:
    """Texts of all locales with what was planted into them, in an order by chance."""
    results = [item for locale in LOCALES for item in plant(locale, count, seed)]
    random.Random(seed).shuffle(results)
    return tuple(results)


def items(texts: Sequence[Planted]) -> set[str]:
    """Planted items as they are written."""
    return {text.text[start:end] for text in texts for _, start, end in text.items}


def sse(*events: object) -> bytes:
    """Events of a stream, as they go over the wire."""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def chunk(number: str, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """An event of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "token_ids": [7, 8]}
    return {"id": number, "object": "chat.completion.chunk", "created": 1, "model": "production", "choices": [choice]}


def streamed(number: str, text: str, size: int = 5) -> bytes:
    """An answer of which each event has a few characters, so that personal data are cut anywhere."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return sse(
        chunk(number, {"role": "assistant", "content": ""}),
        *(chunk(number, {"content": piece}) for piece in pieces),
        {**chunk(number, {}, "stop"), "usage": {"prompt_tokens": 11, "completion_tokens": len(pieces)}},
    )


def exchange(number: int, message: str = "Hello", answered: str = "Hello yourself", **other: Any) -> Exchange:
    """A chat of one turn; `said` also stands in the arguments of an earlier tool call."""
    arguments = json.dumps({"text": message, "nested": [{"again": json.dumps({"deep": message})}]})
    call = {"id": "call-1", "type": "function", "function": {"name": "note", "arguments": arguments}}
    messages = [
        {"role": "user", "content": message},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": [{"type": "text", "text": message}]},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "And now?"},
    ]
    request = {"model": "production", "messages": messages, "temperature": 0.5, "user": message, "stream": True}
    fields: dict[str, Any] = {
        "id": f"req-{number:06d}",
        "time": START + number,
        "path": "/v1/chat/completions",
        "alias": "production",
        "version": f"chat@{1 + number % 2}",
        "replica": "replica-0",
        "request": json.dumps(request).encode(),
        "answer": streamed(f"chatcmpl-{number:06d}", answered),
        "status": 200,
        "outcome": "completed",
        "first_token_seconds": 0.02,
        "seconds": 0.25,
        "conversation": message.encode(),
    }
    return Exchange(**{**fields, **other})


def personal_exchange(number: int) -> Exchange:
    """An exchange with planted personal data in the question, in a tool's arguments and in the answer."""
    texts = planted()
    return exchange(number, texts[number % len(texts)].text, texts[(number * 7 + 1) % len(texts)].text)
