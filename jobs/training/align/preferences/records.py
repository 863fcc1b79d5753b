"""Records of preference data → a prompt and its answers, or the reason why a record is none."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ropewalk.datapipe.chat.conversation import BadConversationError, Message, check_roles, messages_of

Text = str | list[Message]  # plain text, or the turns of a conversation

PAIRED = "{prompt, chosen, rejected}"
UNPAIRED = "{prompt, completion, label}"


class Preference(NamedTuple):
    """A prompt with two answers, the preferred one first; or with one answer and what is thought of it."""

    prompt: Text
    answers: tuple[Text, ...]
    label: bool | None = None
    tools: list[Any] | None = None


class Refused(NamedTuple):
    """A record, or a row made of it, that is left out."""

    reason: str


def pair_of(record: Mapping[str, Any]) -> Preference | Refused:
    """The pair of a record. Without a prompt, two conversations share their first turns, which are the prompt."""
    if "prompt" not in record:
        record = {**record, **_shared_turns(record.get("chosen"), record.get("rejected"))}
    found = _checked(record, ("prompt", "chosen", "rejected"))
    if not isinstance(found, Refused) and found.answers[0] == found.answers[1]:
        return Refused("equal_answers")
    return found


def labelled_of(record: Mapping[str, Any]) -> Iterator[Preference | Refused]:
    """The labelled answers of a record: of a pair both, the chosen one desirable."""
    if "completion" not in record and ("chosen" in record or "rejected" in record):
        pair = pair_of(record)
        if isinstance(pair, Refused):
            yield pair
        else:
            yield from (pair._replace(answers=(one,), label=good) for one, good in zip(pair.answers, (True, False), strict=True))
        return
    label = record.get("label")
    if label is None:
        yield Refused("missing_label")
    elif not isinstance(label, bool) and label not in (0, 1):
        yield Refused("label_not_boolean")
    else:
        found = _checked(record, ("prompt", "completion"))
        yield found if isinstance(found, Refused) else found._replace(label=bool(label))


def _checked(record: Mapping[str, Any], keys: tuple[str, ...]) -> Preference | Refused:
    absent = [key for key in keys if record.get(key) is None]
    if absent:
        return Refused(f"missing_{absent[0]}")
    try:
        prompt, *answers = _texts(*(record[key] for key in keys))
    except BadConversationError as error:
        return Refused(error.reason)
    if not prompt:
        return Refused("empty_prompt")
    if not all(map(_says_something, answers)):
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
        shared -= 1  # equal conversations: their last turns are equal answers
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _texts(prompt: Any, *answers: Any) -> list[Any]:
    """All as they are if all are text; else all as turns, which must alternate and end with the assistant's."""
    if all(isinstance(value, str) for value in (prompt, *answers)):
        return [prompt, *answers]
    asked, said = conversations(prompt, *answers)
    return [asked, *said]


def conversations(prompt: Text, *answers: Text) -> tuple[list[Message], list[list[Message]]]:
    """The turns of a prompt and of its answers; text is the user's and the assistant's. Raises BadConversationError."""
    asked = messages_of(prompt, "user") if prompt else []
    said = [messages_of(answer, "assistant") for answer in answers]
    for answer in said:
        if answer[-1]["role"] != "assistant":
            raise BadConversationError("no_assistant_turn")
        check_roles([*asked, *answer])
    return asked, said


def _says_something(answer: Text) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    last = answer[-1]
    return bool(last.get("tool_calls") or (last["content"] or "").strip())
