"""Convert prompts to questions for a chat endpoint, with keys; rejected records are counted by reason."""

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
    """A request for one answer."""

    key: str  # hash of everything that determines the answer, with its number among equal questions
    messages: list[Message]
    seed: int


def questions(config: AnswersConfig, rejected: Counter[str]) -> Iterator[Question]:
    """Yield every question in the order of the prompts; rejected records are counted by reason."""
    repetitions: Counter[str] = Counter()
    for number, file in enumerate(list_inputs([config.prompts])):
        for _, record, reason in read_records(Unit(index=number, files=(file,)), UnitNotes()):
            try:
                messages = _messages(record, reason, config.system)
            except BadConversationError as error:
                rejected[error.reason] += 1
                continue
            key = hash_of([messages, config.model, config.max_tokens, config.temperature, config.top_p, config.seed])
            for _ in range(config.samples):
                repetitions[key] += 1
                yield Question(
                    key=f"{key}#{repetitions[key]}", messages=messages, seed=(config.seed + repetitions[key] - 1) % 2**31
                )


def _messages(record: Mapping[str, Any] | None, reason: str, system: str | None) -> list[Message]:
    if record is None:
        raise BadConversationError(reason)
    prompt = record.get("prompt", record.get("messages"))
    if prompt is None:
        raise BadConversationError("no_prompt", "neither prompt nor messages")
    messages = messages_of(prompt, "user")
    while messages and messages[-1]["role"] == "assistant":  # drop answers of another model
        messages = messages[:-1]
    if not messages:
        raise BadConversationError("no_prompt", "nothing but answers")
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages
