"""What an error of a program means, by the table in known_errors.yaml."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class KnownError(NamedTuple):
    """A pattern of what a program says, what it means, and what to do about it."""

    pattern: str
    meaning: str
    remedy: str


def known_error(text: str) -> KnownError | None:
    """The first row of the table whose pattern is found in `text`; None if there is none."""
    return next((known for known in known_errors() if re.search(known.pattern, text)), None)


@cache
def known_errors() -> tuple[KnownError, ...]:
    """All rows of the table, in their order."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = yaml.load(Path(__file__).with_suffix(".yaml").read_text(), Loader=loader)
    return tuple(KnownError(**row) for row in rows)
