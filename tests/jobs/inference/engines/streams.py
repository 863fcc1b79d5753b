"""Streams of an engine, read as a client reads them: events with the bytes that they came in."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from ropewalk.jobs.inference.engines.process import EngineProcess

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HTTP = httpx2.Client(timeout=120, verify=False)  # certificates, which no engine has, take longer to read than an answer


@dataclass(frozen=True)
class Event:
    raw: bytes

    @property
    def body(self) -> Any:
        data = self.raw.removeprefix(b"data: ").strip()
        return None if data == b"[DONE]" else json.loads(data)

    @property
    def choices(self) -> list[Any]:
        return (self.body or {}).get("choices", [])

    @property
    def text(self) -> str:
        return "".join(
            event_text["text"] if "text" in event_text else event_text["delta"].get("content") or ""
            for event_text in self.choices
        )

    @property
    def tokens(self) -> list[int]:
        return [token for event_text in self.choices for token in event_text.get("token_ids", [])]


def ask(engine: EngineProcess, path: str, body: Mapping[str, Any] | bytes) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTP.post(f"{engine.url}{path}", content=content, headers=engine.headers)


def events(engine: EngineProcess, path: str, body: Mapping[str, Any]) -> list[Event]:
    answer = ask(engine, path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    return list(split(answer.content))


def split(raw: bytes) -> Iterator[Event]:
    assert raw.endswith(b"\n\n")
    for event_text in raw.split(b"\n\n")[:-1]:
        yield Event(event_text + b"\n\n")


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def continued_as(events: list[Event], sent: int) -> dict[str, Any]:
    """Request with which another engine continues after `sent` events."""
    message = events[:sent]
    head = events[0].body
    tokens = [token for event in message for token in event.tokens]
    return {"id": head["id"], "created": head["created"], "token_ids": tokens, "started": sent > 0}
