"""Prompts as questions for a chat endpoint, each with a key of its own; and what is none, with its reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ropewalk.datapipe.chat.conversation import BadConversationError, Message, messages_of
from ropewalk.datapipe.chat.records import UnitNotes, read_records
from ropewalk.datapipe.inputs.files import Unit, list_inputs
from ropewalk.datapipe.manifest import hash_of
from ropewalk.jobs.training.distill.answers.config import AnswersConfig


@dataclass(frozen=True, kw_only=True)
class Question:
    """One answer that is asked for."""

    key: str  # a hash of all that decides the answer, with its number among equal ones
    messages: list[Message]
    seed: int


def questions(config: AnswersConfig, rejected: Counter[str]) -> Iterator[Question]:
    """Every question in the order of the prompts; records that are none are counted by reason."""
    seen: Counter[str] = Counter()
    for number, file in enumerate(list_inputs([config.prompts])):
        for _, record, reason in read_records(Unit(index=number, files=(file,)), UnitNotes()):
            try:
                messages = _messages(record, reason, config.system)
            except BadConversationError as error:
                rejected[error.reason] += 1
                continue
            word = hash_of([messages, config.model, config.max_tokens, config.temperature, config.top_p, config.seed])
            for _ in range(config.samples):
                seen[word] += 1
                yield Question(key=f"{word}#{seen[word]}", messages=messages, seed=(config.seed + seen[word] - 1) % 2**31)


def _messages(record: Mapping[str, Any] | None, reason: str, system: str | None) -> list[Message]:
    if record is None:
        raise BadConversationError(reason)
    found = record.get("prompt", record.get("messages"))
    if found is None:
        raise BadConversationError("no_prompt", "neither prompt nor messages")
    messages = messages_of(found, "user")
    while messages and messages[-1]["role"] == "assistant":  # what somebody else answered
        messages = messages[:-1]
    if not messages:
        raise BadConversationError("no_prompt", "nothing but answers")
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages
