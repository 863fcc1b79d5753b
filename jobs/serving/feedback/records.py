"""The rows that are kept of exchanges and feedback, and how raw ones become such rows, masked."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.exchange import Frame
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.parse import answer_of, request_of
from ropewalk.jobs.serving.feedback.ratings import FeedbackBody
from ropewalk.jobs.serving.feedback.store import Row, Store

FOLDER = "feedback"  # of a run
_TEXT, _NUMBER = pa.string(), pa.float64()
_WHO = [("id", _TEXT), ("time", _NUMBER)]
_OF_ANSWER = [
    *(("answer_id", _TEXT), ("alias", _TEXT), ("version", _TEXT), ("replica", _TEXT)),
    *(("path", _TEXT), ("status", pa.int32()), ("outcome", _TEXT)),
    *(("prompt_tokens", pa.int32()), ("completion_tokens", pa.int32())),
    *(("first_token_seconds", _NUMBER), ("seconds", _NUMBER), ("moves", pa.int32())),
]
ANSWERS = pa.schema([*_WHO, *_OF_ANSWER])
EXCHANGES = pa.schema(
    [
        *_WHO,
        *_OF_ANSWER,
        ("conversation", _TEXT),  # a hash of the masked first message of the user
        ("prompt", _TEXT),  # the user's last message, or the prompt of a completion
        ("answer", _TEXT),  # the text of the first choice
        ("finish_reason", _TEXT),
        ("messages", _TEXT),  # JSON: all messages of the request, or its prompt as text
        ("choices", _TEXT),  # JSON: all answers
        ("tools", _TEXT),  # JSON
        ("sampling", _TEXT),  # JSON: what else the request asked for
        ("masked", pa.int32()),  # texts in which personal data were replaced
    ]
)
RATINGS = pa.schema(
    [
        *_WHO,
        *(("answer_id", _TEXT), ("rating", _TEXT), ("score", _NUMBER)),
        ("correction", _TEXT),  # JSON: a text, or messages
        ("comment", _TEXT),
        ("user", _TEXT),  # a hash
        ("source", _TEXT),  # api, or review
    ]
)


def answers_store(folder: Path) -> Store:
    """Who answered what and when, without content: kept always."""
    return Store(folder / "answers", ANSWERS)


def exchanges_store(folder: Path) -> Store:
    """Captured exchanges, masked."""
    return Store(folder / "exchanges", EXCHANGES)


def ratings_store(folder: Path) -> Store:
    """What people say of answers, masked."""
    return Store(folder / "ratings", RATINGS)


def ledger_row(fields: Mapping[str, Any], answer: Mapping[str, Any]) -> Row:
    """The line of the ledger: everything but content."""
    told = answer.get("usage")
    usage = told if isinstance(told, dict) else {}
    row = {name: fields.get(name) for name in ANSWERS.names if name in fields}
    return {
        **row,
        "answer_id": _short(answer.get("id")),
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")) or _count(fields.get("completion_tokens")),
    }


def exchange_rows(frames: Sequence[Frame], kinds: Sequence[Kind]) -> tuple[list[Row], list[Row]]:
    """The ledger's rows of all frames, and the masked rows of those whose content is captured."""
    ledger: list[Row] = []
    contents: list[Any] = []
    of: list[Row] = []
    for frame in frames:
        answer = answer_of(frame.answer)
        row = ledger_row(frame.fields, answer)
        ledger.append(row)
        if frame.fields["captured"] and (asked := request_of(frame.request)).get("store") is not False:
            contents.append({**asked, "choices": answer.get("choices") or []})
            of.append(row)
    masked, counts = mask(contents, kinds)
    return ledger, [_content_row(row, content, count) for row, content, count in zip(of, masked, counts, strict=True)]


def _content_row(row: Row, content: dict[str, Any], masked: int) -> Row:
    messages = content.get("messages") or content.get("prompt")
    users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"] if isinstance(messages, list) else []
    first, last = (_text(users[0]), _text(users[-1])) if users else (_text(messages), _text(messages))
    choices = content["choices"]
    return {
        **row,
        "conversation": hashlib.blake2b(first.encode(), digest_size=8).hexdigest(),
        "prompt": last,
        "answer": _text(choices[0].get("message") or choices[0].get("text")) if choices else None,
        "finish_reason": _short(choices[0].get("finish_reason")) if choices else None,
        "messages": _json(messages),
        "choices": _json(choices),
        "tools": _json(content.get("tools")),
        "sampling": _json(content.get("sampling")),
        "masked": masked,
    }


def rating_row(number: str, body: FeedbackBody, kinds: Sequence[Kind], *, source: str = "api") -> Row:
    """A masked row of feedback."""
    said = body.model_dump(exclude_none=True)
    (kept,), _ = mask([{key: said.get(key) for key in ("correction", "comment")}], kinds)
    return {
        "id": number,
        "time": time.time(),
        "answer_id": body.answer_id,
        "rating": body.rating,
        "score": body.score,
        "correction": _json(kept["correction"]),
        "comment": kept["comment"],
        "user": user_hash(body.user) if body.user else None,
        "source": source,
    }


def user_hash(user: str) -> str:
    """What is kept of a user's tag: enough to tell one from another."""
    return hashlib.blake2b(user.encode(), digest_size=8, person=b"ropewalk").hexdigest()


def _text(content: Any) -> str:
    """The text of a message, of its content, or of a prompt."""
    if isinstance(content, dict):
        content = content.get("text") if "text" in content else content.get("content")
    if isinstance(content, list):
        return "\n".join(filter(None, map(_text, content)))
    return content if isinstance(content, str) else ""


def _json(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer of more than 64 bits, which a request can hold that is refused
        return json.dumps(value)


def _short(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**31 else None
