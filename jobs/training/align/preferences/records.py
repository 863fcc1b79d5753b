"""Records of preference data, read from files and parsed as a prompt and its answers, or the reason of a rejection."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import xxhash

from ropewalk.datapipe.chat.conversation import BadConversationError, Message, check_roles, messages_of
from ropewalk.datapipe.chat.records import UnitNotes
from ropewalk.datapipe.chat.records import read_records as read_unit
from ropewalk.datapipe.inputs.files import InputFile, Unit

Text = str | list[Message]  # plain text, or the turns of a conversation

PAIRED = "{prompt, chosen, rejected}"
UNPAIRED = "{prompt, completion, label}"


class Record(NamedTuple):
    """A line of a file: an object, or the reason of a rejection."""

    file: str
    line: int  # from 1; a row of a parquet file counts as one
    values: dict[str, Any] | None
    reason: str = ""


def read_records(files: Sequence[InputFile], checksums: dict[str, str] | None = None) -> Iterator[Record]:
    """Yield every record in the order of files and lines. Damage yields a record too, and ends its file.

    The checksum of each file is stored in `checksums`, by its URL, once it is read.
    """
    for number, file in enumerate(files):
        notes = UnitNotes()
        for line, values, reason in read_unit(Unit(index=number, files=(file,)), notes):
            yield Record(file.name, line, values, reason)
        if checksums is not None:
            checksums[file.url] = notes.checksum


def is_held_out(prompt: Any, fraction: float) -> bool:
    """Return True if a prompt is in the held-out fraction, by a hash: all records of a prompt are held out together."""
    return xxhash.xxh3_64_intdigest(orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS)) < fraction * 2.0**64


class Preference(NamedTuple):
    """A prompt with two answers, the preferred one first; or with one labelled answer."""

    prompt: Text
    answers: tuple[Text, ...]
    label: bool | None = None
    tools: list[Any] | None = None


class Refused(NamedTuple):
    """A rejected record, or a rejected row of a record."""

    reason: str


def pair_of(record: Mapping[str, Any]) -> Preference | Refused:
    """Parse a pair. Without a prompt the first turns that both conversations share are the prompt."""
    if "prompt" not in record:
        record = {**record, **_shared_turns(record.get("chosen"), record.get("rejected"))}
    preference = _parse(record, ("prompt", "chosen", "rejected"))
    if not isinstance(preference, Refused) and preference.answers[0] == preference.answers[1]:
        return Refused("equal_answers")
    return preference


def labelled_of(record: Mapping[str, Any]) -> Iterator[Preference | Refused]:
    """Parse labelled answers; both answers of a pair, the chosen one desirable."""
    if "completion" not in record and ("chosen" in record or "rejected" in record):
        pair = pair_of(record)
        if isinstance(pair, Refused):
            yield pair
        else:
            yield from (
                pair._replace(answers=(answer,), label=good) for answer, good in zip(pair.answers, (True, False), strict=True)
            )
        return
    label = record.get("label")
    if label is None:
        yield Refused("missing_label")
    elif not isinstance(label, bool) and label not in (0, 1):
        yield Refused("label_not_boolean")
    else:
        preference = _parse(record, ("prompt", "completion"))
        yield preference if isinstance(preference, Refused) else preference._replace(label=bool(label))


def _parse(record: Mapping[str, Any], keys: tuple[str, ...]) -> Preference | Refused:
    absent = [key for key in keys if record.get(key) is None]
    if absent:
        return Refused(f"missing_{absent[0]}")
    try:
        prompt, *answers = _texts(*(record[key] for key in keys))
    except BadConversationError as error:
        return Refused(error.reason)
    if not prompt:
        return Refused("empty_prompt")
    if not all(map(_has_content, answers)):
        return Refused("empty_answer")
    tools = record.get("tools")
    return Preference(prompt, tuple(answers), tools=tools if isinstance(tools, list) and tools else None)


def _shared_turns(chosen: Any, rejected: Any) -> dict[str, Any]:
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        return {}
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        shared -= 1  # equal conversations: the last turns are the answers
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _texts(prompt: Any, *answers: Any) -> list[Any]:
    """Return plain texts unchanged; else convert all to turns, which must alternate and end with the assistant's."""
    if all(isinstance(value, str) for value in (prompt, *answers)):
        return [prompt, *answers]
    turns, answer_turns = conversations(prompt, *answers)
    return [turns, *answer_turns]


def conversations(prompt: Text, *answers: Text) -> tuple[list[Message], list[list[Message]]]:
    """Return the turns of a prompt and of its answers; text becomes a user's or assistant's turn. Raises BadConversationError."""
    prompt_turns = messages_of(prompt, "user") if prompt else []
    answer_turns = [messages_of(answer, "assistant") for answer in answers]
    for answer in answer_turns:
        if answer[-1]["role"] != "assistant":
            raise BadConversationError("no_assistant_turn")
        check_roles([*prompt_turns, *answer])
    return prompt_turns, answer_turns


def _has_content(answer: Text) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    last = answer[-1]
    return bool(last.get("tool_calls") or (last["content"] or "").strip())
