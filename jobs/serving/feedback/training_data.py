"""Feedback as training data: preference pairs for `align`, conversations for `finetune`, documents."""

import os
import re
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import zstandard

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback.read import CapturedExchange, exchanges

KINDS = ("pairs", "chats", "documents")
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
Record = dict[str, Any]


@dataclass
class TrainingData:
    """Training records, and the number of skipped exchanges by reason."""

    records: list[Record] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, exchange: CapturedExchange, **content: Any) -> None:
        """Add a record of an exchange, with its tools and its id."""
        tools = {"tools": exchange.tools} if exchange.tools else {}
        self.records.append({**content, **tools, "id": exchange.id})


def to_pairs(captured: Iterable[CapturedExchange]) -> TrainingData:
    """Return {prompt, chosen, rejected} from corrected answers, and from liked and disliked answers to the same prompt."""
    data = TrainingData()
    rated: dict[bytes, tuple[list[CapturedExchange], list[CapturedExchange]]] = defaultdict(lambda: ([], []))
    for exchange in captured:
        prompt, answer = prompt_of(exchange), answer_of(exchange)
        if exchange.correction is None and exchange.rating is None:
            continue
        if prompt is None or answer is None:
            data.left_out["not_text" if prompt is None else "no_answer"] += 1
            continue
        if exchange.correction is not None:
            add_pair(data, exchange, correction_of(exchange), answer)
        elif exchange.rating:
            rated[orjson.dumps(prompt)][exchange.rating < 0].append(exchange)
    for liked, disliked in rated.values():
        for good, bad in zip(liked, disliked, strict=False):
            add_pair(data, good, answer_of(good), answer_of(bad))
        data.left_out["rated_without_a_counterpart"] += abs(len(liked) - len(disliked))
    data.left_out = +data.left_out
    return data


def add_pair(data: TrainingData, exchange: CapturedExchange, chosen: Any, rejected: Any) -> None:
    """Add a pair, unless its answers are equal or one is empty."""
    if chosen == rejected:
        data.left_out["equal_answers"] += 1
    elif not chosen or not rejected:
        data.left_out["empty_answer"] += 1
    else:
        data.add(exchange, prompt=prompt_of(exchange), chosen=chosen, rejected=rejected)


def to_conversations(captured: Iterable[CapturedExchange], *, liked: bool = True) -> TrainingData:
    """Return {messages} that end with a corrected answer or, if `liked`, with an answer that was rated well."""
    data = TrainingData()
    for exchange in captured:
        if exchange.correction is None and not (liked and exchange.rating == 1):
            continue
        prompt = prompt_of(exchange)
        answer = correction_of(exchange) if exchange.correction is not None else answer_of(exchange)
        if not isinstance(prompt, list):
            data.left_out["not_a_conversation"] += 1
        elif not answer:
            data.left_out["no_answer"] += 1
        else:
            data.add(exchange, messages=[*prompt, *answer])
    return data


def to_documents(captured: Iterable[CapturedExchange], source: str, left_out: Counter[str]) -> Iterator[Record]:
    """Yield {id, text, source}: each exchange as plain text, prompt and answer, whatever its ratings; count skipped ones."""
    for exchange in captured:
        prompt, answer = prompt_of(exchange), answer_of(exchange)
        if prompt is None or answer is None:
            left_out["not_text" if prompt is None else "no_answer"] += 1
            continue
        texts = [*_texts(prompt), *_texts(answer)]
        yield {"id": exchange.id, "text": "\n\n".join(filter(None, texts)), "source": source}


def prompt_of(exchange: CapturedExchange) -> str | list[Record] | None:
    """Return the prompt: a completion's text, or messages with text content; None if it has other content."""
    if isinstance(exchange.messages, str):
        return exchange.messages or None
    if not isinstance(exchange.messages, list) or not exchange.messages:
        return None
    messages = [_plain(message) for message in exchange.messages]
    return None if None in messages else [message for message in messages if message is not None]


def answer_of(exchange: CapturedExchange) -> str | list[Record] | None:
    """Return the answer in the form of the prompt, or None if it is incomplete."""
    if exchange.outcome != "completed" or not exchange.choices:
        return None
    first = exchange.choices[0]
    if isinstance(exchange.messages, str):
        return first.get("text") or None
    message = _plain({"role": "assistant", **(first.get("message") or {})})
    return [message] if message and (message.get("content") or message.get("tool_calls")) else None


def correction_of(exchange: CapturedExchange) -> str | list[Record]:
    """Return the correction in the form of the prompt."""
    correction = exchange.correction
    if isinstance(exchange.messages, str):
        return correction if isinstance(correction, str) else "\n".join(m.get("content") or "" for m in correction)
    return [{"role": "assistant", "content": correction}] if isinstance(correction, str) else list(correction)


def _texts(content: str | list[Record]) -> list[str]:
    return [content] if isinstance(content, str) else [str(message.get("content") or "") for message in content]


def _plain(message: Any) -> Record | None:
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            return None  # an image, or audio
        content = "\n".join(map(str, texts))
    return {**message, "content": content}


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write a .jsonl or .jsonl.zst file that only this user can read; return the number of records.

    Readers see either the old or the new content. Raises ConfigError for another suffix.
    """
    if not path.name.endswith((".jsonl", ".jsonl.zst")):
        raise ConfigError(f"{path}: the file name must end in .jsonl or .jsonl.zst")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, count = path.with_name(f".{path.name}.{secrets.token_hex(4)}"), 0
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw:
            packed = zstandard.ZstdCompressor().stream_writer(raw, closefd=False) if path.suffix == ".zst" else nullcontext(raw)
            with packed as stream:
                for count, record in enumerate(records, 1):  # noqa: B007
                    stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def parse_time(text: str, now: float | None = None) -> float:
    """Parse a time before now (`7d`, `12h`, `30m`) or a date; returns seconds since the epoch. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match:
        return (now or time.time()) - float(match[1]) * _UNITS[match[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ConfigError(
            f"{text!r} is not a time; write 7d, 12h, 30m, or a date such as 2026-11-27 or 2026-11-27T10:00"
        ) from None


def export_feedback(run: RunDir, since: float | None, kind: str, path: Path) -> dict[str, Any]:
    """Write training data of the exchanges since a time; return {kind, file, records, left_out}. Raises ConfigError."""
    if kind not in KINDS:
        raise ConfigError(f"--export {kind}: unknown kind; choose {', '.join(KINDS)}")
    captured, left_out = exchanges(run.path, since), Counter[str]()
    if kind == "documents":
        records: Iterable[Record] = to_documents(captured, run.id, left_out)
    else:
        data = to_pairs(captured) if kind == "pairs" else to_conversations(captured)
        records, left_out = data.records, data.left_out
    return {"kind": kind, "file": str(path), "records": write_records(path, records), "left_out": dict(left_out)}
