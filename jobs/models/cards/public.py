"""What may leave the machine in a card: names instead of paths, and no secret."""

import re
from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.runs.submit.provenance import masked

NOT_STATED = "not stated"
# a local path, or a URL whose host or bucket is nobody else's business; `a/b`, a name on a hub, is neither
_PATH = re.compile(r"(?<![\w./:-])(?:[a-z0-9+]+://|~?/)(?:[^\s\"'<>|,;:)\]}]*/)?([^\s\"'<>|,;:/)\]}]+)/?")


def public(value: Any) -> Any:
    """Plain values without secrets, each absolute path or URL shortened to its last part."""
    return _shortened(masked(value))


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {public_text(str(key)): _shortened(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(inner) for inner in value]
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """A text in which each absolute path or URL is shortened to its last part."""
    return _PATH.sub(lambda match: match[1], text)


def filled(value: Any) -> str:
    """A value as text; what nobody has stated says so, for a card has no empty field."""
    text = "" if value is None else str(value).strip()
    return public_text(text) or NOT_STATED
