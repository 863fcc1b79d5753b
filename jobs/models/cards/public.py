"""Sanitize values for publication in cards: names instead of paths, no secrets."""

import re
from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.runs.submit.provenance import mask_secrets

NOT_STATED = "not stated"
_NOT_IN_CODE = str.maketrans("`|", "'¦")  # neither can be escaped in a code span
_MARKDOWN = re.compile(r"[\\`\[\]<>|]|(?<=www)\.", re.IGNORECASE)  # a bare www.host becomes a link
# a local path, or a URL whose host or bucket is private; `a/b`, a name on a hub, is not matched
_PATH = re.compile(r"(?<![\w./:-])(?:[a-z0-9+]+://|~?/)(?:[^\s\"'<>|,;:)\]}]*/)?([^\s\"'<>|,;:/)\]}]+)/?")


def public(value: Any) -> Any:
    """Return plain values without secrets, with absolute paths and URLs shortened to their last part."""
    return _shorten(mask_secrets(value))


def _shorten(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {public_text(str(key)): _shorten(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shorten(inner) for inner in value]
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """Return a text with absolute paths and URLs shortened to their last part."""
    return _PATH.sub(lambda match: match[1], text)


def plain(value: Any) -> str:
    """Return a foreign text for Markdown as it is: on one line, without effect on tables, and without links and HTML."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(public_text(str(value)).split()))


def code(value: Any) -> str:
    """Return a foreign text as a Markdown code span, also in a table."""
    text = " ".join(public_text(str(value)).split()).translate(_NOT_IN_CODE)
    return f"`{text}`"


def filled(value: Any) -> str:
    """Return a value as text, or `not stated` if it is empty: a card has no empty field."""
    text = "" if value is None else str(value).strip()
    return public_text(text) or NOT_STATED
