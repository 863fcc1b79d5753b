"""What an error of a program means, by the tables beside this file."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ropewalk.cluster.text import CAUSED_BY

# Each subject has a table of narrow rows. Subjects whose words stand in the messages of others come later.
SUBJECTS = ("python", "configuration", "data", "libraries", "tensors", "gpu", "ranks", "network", "scheduler", "machine")
WIDE = "wide"  # kinds of exceptions, signals and exit codes


class KnownError(NamedTuple):
    """A pattern of what a program says, what it means, what to do about it, and a message that has it."""

    pattern: str
    meaning: str
    remedy: str
    example: str = ""


def known_error(*texts: str) -> KnownError | None:
    """The row that tells most of an error; None if there is none. `texts`: what was said of it, the decisive one first.

    A narrow row is looked for in each text, and there in the last exception before those that caused it. Only if there is none a
    wide row is: from the deepest cause outwards, since an exception that wraps another seldom says more.
    """
    parts = [part for text in texts for part in text.split(CAUSED_BY)]
    inwards = [part for text in texts for part in reversed(text.split(CAUSED_BY))]
    return _first(parts, SUBJECTS) or _first(inwards, (WIDE,))


def _first(texts: Iterable[str], subjects: tuple[str, ...]) -> KnownError | None:
    rows = known_errors(subjects)
    return next((row for text in texts for row in rows if _compiled(row.pattern).search(text)), None)


@cache  # that of `re` has room for fewer patterns than there are
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@cache
def known_errors(subjects: tuple[str, ...] = (*SUBJECTS, WIDE)) -> tuple[KnownError, ...]:
    """All rows of some tables, in the order in which they are asked; the first whose pattern is found wins."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tables = (yaml.load((Path(__file__).parent / f"{name}.yaml").read_text(), Loader=loader) for name in subjects)
    return tuple(KnownError(**row) for rows in tables for row in rows)
