"""Personal data in JSON values replaced by placeholders: in every text and key, in numbers, and in JSON inside texts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ropewalk.datapipe.filters.privacy.filter import Kind

DEEPEST = 48  # levels of nesting, JSON inside texts included
LEFT_OUT = "<LEFT_OUT>"
_LEAST_DIGITS = 7  # of a number that may be somebody's
_LONGEST_ANNOUNCED = 64  # characters of a text that its key may announce
_LONG_NUMBER = re.compile(r"(?<![\d.,])\+?\d(?:[ ./-]?\d){8,}(?![\d.,]\d)")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\([/\"\\nt])")
_PLAIN = {"n": "\n", "t": "\t"}
_PLAIN_KEY = re.compile(r"[^\W\d][\w .-]{0,39}")
_WORD_ENDS = re.compile(r"[_.-]+|(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class _Text:
    """A text to be looked at, with the words that announce it; or a number as its digits."""

    text: str
    lead: str = ""
    number: int | float | None = None


@dataclass(frozen=True)
class _Json:
    """A text that is JSON."""

    value: Any


def mask(values: Sequence[Any], kinds: Iterable[Kind]) -> tuple[list[Any], list[int]]:
    """JSON values with placeholders such as <EMAIL> in the place of personal data, and in how many texts of each value.

    A key says what a value is (`phone: 5551234`): a short value is looked at together with its key. Texts that are JSON, as the
    arguments of tool calls are, are masked by what they mean, not by how they are spelled. What is nested deeper than `DEEPEST`
    is left out.
    """
    prepared = [_prepared(value, "", 0) for value in values]
    texts: list[str] = []
    bounds = [0]
    for one in prepared:
        texts.extend(_texts(one))
        bounds.append(len(texts))
    wanted = frozenset(kinds)
    found = _replaced(texts, wanted) if wanted and texts else texts
    made, masked = [], []
    for one, start, end in zip(prepared, bounds, bounds[1:], strict=False):
        made.append(_rebuilt(one, iter(found[start:end])))
        masked.append(sum(a != b for a, b in zip(texts[start:end], found[start:end], strict=True)))
    return made, masked


def _replaced(texts: Sequence[str], kinds: frozenset[Kind]) -> list[str]:
    """The texts with placeholders.

    Numbers that their words call somebody's go too where their check digits are wrong: people mistype their own.
    """
    from ropewalk.datapipe.filters.privacy.announce import LOOK_BACK, announces_id, announces_phone
    from ropewalk.datapipe.filters.privacy.replace import placeholder, replace
    from ropewalk.datapipe.text.batch import (
        TextBatch,  # compiled kernels take two seconds, which whoever masks nothing does without
    )

    def judged(match: re.Match[str]) -> str:
        before = match.string[max(match.start() - LOOK_BACK, 0) : match.start()]
        if "national_id" in kinds and announces_id(before):
            return placeholder("national_id")
        return placeholder("phone") if "phone" in kinds and announces_phone(before) else match[0]

    changed, _ = replace(TextBatch.of(texts), kinds)
    return [_LONG_NUMBER.sub(judged, text) for text in changed.arrow().to_pylist()]


def _prepared(value: Any, key: str, depth: int) -> Any:
    if depth > DEEPEST:
        return LEFT_OUT
    if isinstance(value, str):
        return _prepared_text(value, key, depth)
    if isinstance(value, dict):
        return {_Text(_sound(str(k))): _prepared(v, str(k), depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_prepared(v, key, depth + 1) for v in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        digits = str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
        many = sum(map(str.isdigit, digits)) >= _LEAST_DIGITS
        return _Text(digits, _lead(key), value) if many else value
    return value


def _prepared_text(text: str, key: str, depth: int) -> Any:
    text = _sound(text)
    if text.lstrip()[:1] in ("{", "["):
        try:
            inner = orjson.loads(text)
        except orjson.JSONDecodeError:  # cut short, or no JSON at all: escapes could still hide something
            text = _sound(_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _PLAIN.get(m[2], m[2]), text))
        else:
            return _Json(_prepared(inner, key, depth + 1))
    return _Text(text, _lead(key) if len(text) <= _LONGEST_ANNOUNCED else "")


def _sound(text: str) -> str:
    """The text without lone surrogates, which are no characters."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _lead(key: str) -> str:
    """What announces a value of this key; nothing where the key could be personal data itself."""
    return _WORD_ENDS.sub(" ", key) + ": " if _PLAIN_KEY.fullmatch(key) else ""


def _texts(value: Any) -> Iterator[str]:
    """What is to be looked at, in the order in which `_rebuilt` takes it."""
    if isinstance(value, _Text):
        yield value.lead + value.text
    elif isinstance(value, _Json):
        yield from _texts(value.value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _rebuilt(value: Any, found: Iterator[str]) -> Any:
    if isinstance(value, _Text):
        text = next(found)
        if text == value.lead + value.text:
            return value.text if value.number is None else value.number
        return text.removeprefix(value.lead) if text.startswith(value.lead) else LEFT_OUT
    if isinstance(value, _Json):
        return orjson.dumps(_rebuilt(value.value, found)).decode()
    if isinstance(value, dict):
        made: dict[str, Any] = {}
        for key, inner in value.items():
            name = wanted = _rebuilt(key, found)
            while name in made:  # two keys that became one placeholder
                name = f"{wanted}{len(made)}"
            made[name] = _rebuilt(inner, found)
        return made
    if isinstance(value, list):
        return [_rebuilt(inner, found) for inner in value]
    return value
