"""Records of preference data → a prompt and its answers, or the reason why a record is none."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Messages = list[dict[str, Any]]
Text = str | Messages  # plain text, or the turns of a conversation

PAIRED = "{prompt, chosen, rejected}"
UNPAIRED = "{prompt, completion, label}"


class Preference(NamedTuple):
    """A prompt with two answers, the preferred one first; or with one answer and what is thought of it."""

    prompt: Text
    answers: tuple[Text, ...]
    label: bool | None = None


class Refused(NamedTuple):
    """A record, or a row made of it, that is left out."""

    reason: str


def pair_of(record: Mapping[str, Any]) -> Preference | Refused:
    """The pair of a record. Without a prompt, two conversations share their first turns, which are the prompt."""
    if "prompt" not in record:
        record = {**record, **_shared_turns(record.get("chosen"), record.get("rejected"))}
    missing = _missing(record, ("prompt", "chosen", "rejected"))
    if missing is not None:
        return missing
    prompt, chosen, rejected = _texts(record["prompt"], record["chosen"], record["rejected"])
    problem = _problem(prompt, chosen, rejected)
    if problem is None and chosen == rejected:
        problem = "equal_answers"
    return Refused(problem) if problem else Preference(prompt, (chosen, rejected))


def labelled_of(record: Mapping[str, Any]) -> Iterator[Preference | Refused]:
    """The labelled answers of a record: of a pair both, the chosen one desirable."""
    if "completion" not in record and ("chosen" in record or "rejected" in record):
        pair = pair_of(record)
        if isinstance(pair, Refused):
            yield pair
        else:
            yield from (Preference(pair.prompt, (one,), good) for one, good in zip(pair.answers, (True, False), strict=True))
        return
    missing = _missing(record, ("prompt", "completion", "label"))
    if missing is not None:
        yield missing
        return
    prompt, answer = _texts(record["prompt"], record["completion"])
    label = record["label"]
    if not isinstance(label, bool) and label not in (0, 1):
        yield Refused("label_not_boolean")
        return
    problem = _problem(prompt, answer)
    yield Refused(problem) if problem else Preference(prompt, (answer,), bool(label))


def _missing(record: Mapping[str, Any], keys: tuple[str, ...]) -> Refused | None:
    absent = [key for key in keys if record.get(key) is None]
    return Refused(f"missing_{absent[0]}") if absent else None


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
    """All as they are if all are text; else all as turns: a prompt's text is the user's, an answer's the assistant's."""
    if all(isinstance(value, str) for value in (prompt, *answers)):
        return [prompt, *answers]
    turns = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt]
    return turns + [[{"role": "assistant", "content": one}] if isinstance(one, str) else one for one in answers]


def _problem(prompt: Any, *answers: Any) -> str | None:
    if not _is_text(prompt) or not all(map(_is_text, answers)):
        return "not_text_or_messages"
    if not prompt:
        return "empty_prompt"
    if not all(map(_says_something, answers)):
        return "empty_answer"
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        return "prompt_ends_with_an_answer"
    if any(isinstance(one, list) and one[-1]["role"] != "assistant" for one in answers):
        return "no_assistant_turn"
    return None


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in value)


def _says_something(answer: Text) -> bool:
    return bool(answer.strip()) if isinstance(answer, str) else bool(answer) and bool(answer[-1].get("content"))
