"""Masking of personal data in JSON values: in texts, keys, numbers, and JSON inside texts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ropewalk.datapipe.filters.privacy.filter import Kind

MAX_DEPTH = 48  # levels of nesting, JSON inside texts included
LEFT_OUT = "<LEFT_OUT>"
_MIN_DIGITS = 7  # shorter numbers are not personal data
_MAX_KEYED_CHARS = 64  # longer texts are judged without their key
_LONG_NUMBER = re.compile(r"(?<![\d.,])\+?\d(?:[ ./-]?\d){8,}(?![\d.,]\d)")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\([/\"\\nt])")
_PLAIN = {"n": "\n", "t": "\t"}
_PLAIN_KEY = re.compile(r"[^\W\d][\w .-]{0,39}")
_WORD_ENDS = re.compile(r"[_.-]+|(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class _Text:
    """A text to check with the words of its key in front, or a number as its digits."""

    text: str
    lead: str = ""
    number: int | float | None = None


@dataclass(frozen=True)
class _Json:
    """A text that holds JSON."""

    value: Any


def mask(values: Sequence[Any], kinds: Iterable[Kind]) -> tuple[list[Any], list[int]]:
    """Replace personal data in JSON values by placeholders such as <EMAIL>; also return the number of changed texts per value.

    A key can identify its value (`phone: 5551234`), so short values are checked together with their key. Texts that hold JSON,
    such as arguments of tool calls, are masked after decoding. Values nested deeper than `MAX_DEPTH` are left out.
    """
    prepared = [_prepare(value, "", 0) for value in values]
    texts: list[str] = []
    bounds = [0]
    for value_parts in prepared:
        texts.extend(_texts(value_parts))
        bounds.append(len(texts))
    enabled = frozenset(kinds)
    replaced = _replace(texts, enabled) if enabled and texts else texts
    results, num_masked = [], []
    for value_parts, start, end in zip(prepared, bounds, bounds[1:], strict=False):
        results.append(_rebuild(value_parts, iter(replaced[start:end])))
        num_masked.append(sum(a != b for a, b in zip(texts[start:end], replaced[start:end], strict=True)))
    return results, num_masked


def _replace(texts: Sequence[str], kinds: frozenset[Kind]) -> list[str]:
    """Return the texts with placeholders.

    Numbers that the surrounding words identify as personal are replaced even if their check digits are wrong: people mistype
    their own numbers.
    """
    # loading compiled kernels takes two seconds: only if something is masked
    from ropewalk.datapipe.filters.privacy.announce import LOOK_BACK, announces_id, announces_phone
    from ropewalk.datapipe.filters.privacy.replace import placeholder, replace
    from ropewalk.datapipe.text.batch import TextBatch

    def placeholder_for(match: re.Match[str]) -> str:
        before = match.string[max(match.start() - LOOK_BACK, 0) : match.start()]
        if "national_id" in kinds and announces_id(before):
            return placeholder("national_id")
        return placeholder("phone") if "phone" in kinds and announces_phone(before) else match[0]

    changed, _ = replace(TextBatch.of(texts), kinds)
    return [_LONG_NUMBER.sub(placeholder_for, text) for text in changed.arrow().to_pylist()]


def _prepare(value: Any, key: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        return LEFT_OUT
    if isinstance(value, str):
        return _prepare_text(value, key, depth)
    if isinstance(value, dict):
        return {_Text(_without_surrogates(str(k))): _prepare(v, str(k), depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_prepare(v, key, depth + 1) for v in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        digits = str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)
        many = sum(map(str.isdigit, digits)) >= _MIN_DIGITS
        return _Text(digits, _lead(key), value) if many else value
    return value


def _prepare_text(text: str, key: str, depth: int) -> Any:
    text = _without_surrogates(text)
    if text.lstrip()[:1] in ("{", "["):
        try:
            inner = orjson.loads(text)
        except orjson.JSONDecodeError:  # truncated or not JSON; escapes could still hide personal data
            text = _without_surrogates(_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _PLAIN.get(m[2], m[2]), text))
        else:
            return _Json(_prepare(inner, key, depth + 1))
    return _Text(text, _lead(key) if len(text) <= _MAX_KEYED_CHARS else "")


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which are not characters."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _lead(key: str) -> str:
    """Return the words of a key to put before its value; empty if the key itself could be personal data."""
    return _WORD_ENDS.sub(" ", key) + ": " if _PLAIN_KEY.fullmatch(key) else ""


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts to check, in the order in which `_rebuild` consumes them."""
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


def _rebuild(value: Any, masked: Iterator[str]) -> Any:
    if isinstance(value, _Text):
        text = next(masked)
        if text == value.lead + value.text:
            return value.text if value.number is None else value.number
        return text.removeprefix(value.lead) if text.startswith(value.lead) else LEFT_OUT
    if isinstance(value, _Json):
        return orjson.dumps(_rebuild(value.value, masked)).decode()
    if isinstance(value, dict):
        rebuilt: dict[str, Any] = {}
        for key, inner in value.items():
            name = base = _rebuild(key, masked)
            while name in rebuilt:  # two keys that became one placeholder
                name = f"{base}{len(rebuilt)}"
            rebuilt[name] = _rebuild(inner, masked)
        return rebuilt
    if isinstance(value, list):
        return [_rebuild(inner, masked) for inner in value]
    return value
