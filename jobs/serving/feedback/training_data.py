"""Feedback as training data: pairs for `align`, conversations for `finetune`, documents; what cannot be used has a reason."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import zstandard

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.serving.feedback.read import Captured

Record = dict[str, Any]


@dataclass
class Made:
    """Records, and why others were left out, by reason."""

    records: list[Record] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def to_pairs(exchanges: Iterable[Captured]) -> Made:
    """{prompt, chosen, rejected} of corrected answers, and of answers to the same prompt of which one was liked and one not."""
    made = Made()
    rated: dict[bytes, tuple[list[Captured], list[Captured]]] = defaultdict(lambda: ([], []))
    for one in exchanges:
        asked, answer = prompt_of(one), answer_of(one)
        if one.correction is None and one.rating is None:
            continue
        if asked is None or answer is None:
            made.left_out["not_text" if asked is None else "no_answer"] += 1
            continue
        if one.correction is not None:
            add_pair(made, one, corrected(one), answer)
        elif one.rating:
            rated[orjson.dumps(asked)][one.rating < 0].append(one)
    for liked, disliked in rated.values():
        for good, bad in zip(liked, disliked, strict=False):
            add_pair(made, good, answer_of(good), answer_of(bad))
        made.left_out["rated_without_a_counterpart"] += abs(len(liked) - len(disliked))
    made.left_out = +made.left_out
    return made


def add_pair(made: Made, one: Captured, chosen: Any, rejected: Any) -> None:
    """Add the pair, unless its answers are equal or empty."""
    if chosen == rejected:
        made.left_out["equal_answers"] += 1
    elif not chosen or not rejected:
        made.left_out["empty_answer"] += 1
    else:
        tools = {"tools": one.tools} if one.tools else {}
        made.records.append({"prompt": prompt_of(one), "chosen": chosen, "rejected": rejected, **tools, "id": one.id})


def to_conversations(exchanges: Iterable[Captured], *, liked: bool = True) -> Made:
    """{messages} that end with the corrected answer or, where `liked`, with an answer that was rated well."""
    made = Made()
    for one in exchanges:
        if one.correction is None and not (liked and one.rating == 1):
            continue
        asked = prompt_of(one)
        answer = corrected(one) if one.correction is not None else answer_of(one)
        if not isinstance(asked, list):
            made.left_out["not_a_conversation"] += 1
        elif not answer:
            made.left_out["no_answer"] += 1
        else:
            tools = {"tools": one.tools} if one.tools else {}
            made.records.append({"messages": [*asked, *answer], **tools, "id": one.id})
    return made


def to_documents(exchanges: Iterable[Captured], source: str) -> Made:
    """{id, text, source}: each exchange as plain text, question and answer, whatever was said of it."""
    made = Made()
    for one in exchanges:
        asked, answer = prompt_of(one), answer_of(one)
        if asked is None or answer is None:
            made.left_out["not_text" if asked is None else "no_answer"] += 1
            continue
        texts = [*_texts(asked), *_texts(answer)]
        made.records.append({"id": one.id, "text": "\n\n".join(filter(None, texts)), "source": source})
    return made


def prompt_of(one: Captured) -> str | list[Record] | None:
    """What was asked: a completion's prompt, or messages whose content is text; None where something else was in it."""
    if isinstance(one.messages, str):
        return one.messages or None
    if not isinstance(one.messages, list) or not one.messages:
        return None
    found = [_plain(message) for message in one.messages]
    return None if None in found else [message for message in found if message is not None]


def answer_of(one: Captured) -> str | list[Record] | None:
    """The answer in the form that fits the prompt; None where there was none to the end."""
    if one.outcome != "completed" or not one.choices:
        return None
    first = one.choices[0]
    if isinstance(one.messages, str):
        return first.get("text") or None
    message = _plain({"role": "assistant", **(first.get("message") or {})})
    return [message] if message and (message.get("content") or message.get("tool_calls")) else None


def corrected(one: Captured) -> str | list[Record]:
    """The correction in the form that fits the prompt."""
    given = one.correction
    if isinstance(one.messages, str):
        return given if isinstance(given, str) else "\n".join(m.get("content") or "" for m in given)
    return [{"role": "assistant", "content": given}] if isinstance(given, str) else list(given)


def _texts(said: str | list[Record]) -> list[str]:
    return [said] if isinstance(said, str) else [str(message.get("content") or "") for message in said]


def _plain(message: Any) -> Record | None:
    if not isinstance(message, dict):
        return None
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(text, str) for text in texts):
            return None  # a picture, or sound
        content = "\n".join(map(str, texts))
    return {**message, "content": content}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a .jsonl or .jsonl.zst file, whole or not at all. Raises ConfigError for another name."""
    raw = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
    if path.name.endswith(".jsonl.zst"):
        raw = zstandard.compress(raw)
    elif not path.name.endswith(".jsonl"):
        raise ConfigError(f"{path}: a file of records is called .jsonl or .jsonl.zst")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, raw)
