"""What a client has of a stream so far: text, tokens, and what every event of it looks like."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ropewalk.jobs.serving.serve.gateway.exchange.asked import CHAT, Asked
from ropewalk.jobs.serving.serve.gateway.http.events import DONE, datas, objects

_PLAIN_DELTA = frozenset({"role", "content"})
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass
class Sent:
    """The part of a stream that was sent."""

    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] | None = None  # None: the engine did not tell them
    events: list[dict[str, Any]] = field(default_factory=list)
    first: dict[str, Any] | None = None  # the first event with choices: what the others look like
    text: bool = False
    finished: bool = False  # an event said why it ended
    usage_sent: bool = False
    done: bool = False  # the end of the stream was sent
    failed: bool = False  # an error was sent
    plain: bool = True  # nothing but text of one choice


def read_sent(asked: Asked, body: bytes, prompt_ids: list[int], token_ids: list[int] | None) -> Sent:
    """What the body of a stream, as far as it was sent, says."""
    found = list(datas(body))
    sent = Sent(prompt_ids, token_ids, done=bool(found) and found[-1] == DONE)
    for event in objects(found):
        sent.events.append(event)
        sent.failed = sent.failed or "error" in event
        sent.usage_sent = sent.usage_sent or (event.get("usage") is not None and not event.get("choices"))
        choices = event.get("choices")
        if isinstance(choices, list) and choices:
            sent.first = sent.first or event
            _read_choices(sent, choices, chat=asked.path == CHAT)
    return sent


def _read_choices(sent: Sent, choices: Sequence[Any], *, chat: bool) -> None:
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
    """The text of a choice in an event."""
    text = (choice.get("delta") or {}).get("content") if chat else choice.get("text")
    return text if isinstance(text, str) else ""


def payload(event: dict[str, Any]) -> Any:
    """What two equal answers have in common in an event: not its id, nor when it was made."""
    choices = event.get("choices")
    return [
        {key: value for key, value in choice.items() if key in ("index", "delta", "text", "finish_reason")}
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
