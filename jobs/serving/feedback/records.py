"""Stored rows of exchanges and feedback, and their construction from raw data, masked."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.jobs.serving.feedback.exchange import Frame
from ropewalk.jobs.serving.feedback.known_answers import KnownAnswer
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.parse import answer_of, request_of
from ropewalk.jobs.serving.feedback.ratings import FeedbackBody
from ropewalk.jobs.serving.feedback.store import Row, Store

FOLDER = "feedback"  # in a run's directory
ROLL = "roll"  # file in it: the writer must roll its spools, so that records can be erased
_TEXT, _NUMBER = pa.string(), pa.float64()
_KEY_FIELDS = [("id", _TEXT), ("time", _NUMBER)]
_ANSWER_FIELDS = [
    *(("answer_id", _TEXT), ("alias", _TEXT), ("version", _TEXT), ("replica", _TEXT)),
    *(("path", _TEXT), ("status", pa.int32()), ("outcome", _TEXT), ("client", _TEXT)),  # client: name of its token
    *(("prompt_tokens", pa.int32()), ("completion_tokens", pa.int32())),
    *(("first_token_seconds", _NUMBER), ("seconds", _NUMBER), ("moves", pa.int32())),
]
ANSWERS = pa.schema([*_KEY_FIELDS, *_ANSWER_FIELDS, ("dropped", pa.bool_())])  # dropped: stored without its content
EXCHANGES = pa.schema(
    [
        *_KEY_FIELDS,
        *_ANSWER_FIELDS,
        ("conversation", _TEXT),  # hash of the masked first user message
        ("prompt", _TEXT),  # the user's last message, or the prompt of a completion
        ("answer", _TEXT),  # the text of the first choice
        ("finish_reason", _TEXT),
        ("messages", _TEXT),  # JSON: all messages of the request, or its prompt as text
        ("choices", _TEXT),  # JSON: all answers
        ("tools", _TEXT),  # JSON
        ("sampling", _TEXT),  # JSON: the other parameters of the request
        ("masked", pa.int32()),  # number of texts with masked personal data
    ]
)
RATINGS = pa.schema(
    [
        *_KEY_FIELDS,
        *(("exchange", _TEXT), ("exchange_time", _NUMBER)),  # the rated exchange; its retention is that of its feedback
        *(("rating", _TEXT), ("score", _NUMBER)),
        ("correction", _TEXT),  # JSON: a text, or messages
        ("comment", _TEXT),
        *(("user", _TEXT), ("client", _TEXT)),  # hash of the user's tag; name of the client's token
    ]
)
SAMPLES = pa.schema([*_KEY_FIELDS, ("exchange", _TEXT), ("exchange_time", _NUMBER), ("version", _TEXT), ("answer", _TEXT)])
JUDGEMENTS = pa.schema(
    [
        *(*_KEY_FIELDS, ("reviewer", _TEXT)),
        *(("item", _TEXT), ("exchange_time", _NUMBER), ("first", _TEXT), ("second", _TEXT), ("choice", _TEXT)),
        *(("corrected", _TEXT), ("correction", _TEXT)),  # id of the corrected answer, and the correction
        ("undone", _TEXT),  # id of the judgement that an undo reverts
    ]
)


def _store(name: str, schema: pa.Schema) -> Callable[[Path], Store]:
    """Return the function that returns this store of a feedback folder."""
    return lambda folder: Store(folder / name, schema)


answers_store = _store("answers", ANSWERS)  # the ledger: all answers, without content
exchanges_store = _store("exchanges", EXCHANGES)  # captured exchanges, masked
ratings_store = _store("ratings", RATINGS)  # ratings and corrections, masked
samples_store = _store("samples", SAMPLES)  # second answers to captured prompts, masked
judgements_store = _store("judgements", JUDGEMENTS)  # of reviewers


def ledger_row(fields: Mapping[str, Any], answer: Mapping[str, Any]) -> Row:
    """Return the ledger row of an answer: everything but content."""
    raw_usage = answer.get("usage")
    usage = raw_usage if isinstance(raw_usage, dict) else {}
    row = {name: fields.get(name) for name in ANSWERS.names if name in fields}
    return {
        **row,
        "answer_id": _short(answer.get("id")),
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")) or _count(fields.get("completion_tokens")),
    }


def exchange_rows(frames: Sequence[Frame], kinds: Sequence[Kind]) -> tuple[list[Row], list[Row]]:
    """Return the ledger rows of all frames, and the masked content rows of captured ones."""
    ledger: list[Row] = []
    contents: list[Any] = []
    captured_rows: list[Row] = []
    for frame in frames:
        answer = answer_of(frame.answer)
        row = ledger_row(frame.fields, answer)
        ledger.append(row)
        if frame.fields["captured"] and (request := request_of(frame.request)).get("store") is not False:
            contents.append({**request, "choices": answer.get("choices") or []})
            captured_rows.append(row)
    masked, counts = mask(contents, kinds)
    return ledger, [_content_row(row, content, count) for row, content, count in zip(captured_rows, masked, counts, strict=True)]


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


def rating_row(number: str, body: FeedbackBody, answer: KnownAnswer, kinds: Sequence[Kind], client: str | None = None) -> Row:
    """Return the masked row of a rating."""
    values = body.model_dump(exclude_none=True)
    (masked,), _ = mask([{key: values.get(key) for key in ("correction", "comment")}], kinds)
    return {
        "id": number,
        "time": time.time(),
        "exchange": answer.id,
        "exchange_time": answer.time,
        "rating": body.rating,
        "score": body.score,
        "correction": _json(masked["correction"]),
        "comment": masked["comment"],
        "user": user_hash(body.user) if body.user else None,
        "client": client,
    }


def user_hash(user: str) -> str:
    """Hash a user's tag: enough to distinguish users."""
    return hashlib.blake2b(user.encode(), digest_size=8, person=b"ropewalk").hexdigest()


def _text(content: Any) -> str:
    """Return the text of a message, of its content, or of a prompt."""
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
    except TypeError:  # an integer of more than 64 bits, possible in a refused request
        return json.dumps(value)


def _short(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**31 else None
