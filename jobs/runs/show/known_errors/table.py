"""Look-up of errors of programs in the tables of this folder."""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ropewalk.cluster.text import CAUSED_BY

# Each subject has a table of specific patterns. A subject whose terms occur in messages of others comes after these.
SUBJECTS = ("python", "configuration", "data", "libraries", "tensors", "gpu", "ranks", "network", "scheduler", "machine")
WIDE = "wide"  # generic patterns: types of exceptions, signals, exit codes


class KnownError(NamedTuple):
    """A regular expression of an error message, its meaning, a remedy, and an example that it matches."""

    pattern: str
    meaning: str
    remedy: str
    example: str = ""


def known_error(*texts: str) -> KnownError | None:
    """Return the most specific row for an error, or None. `texts`: its messages, the decisive one first.

    Specific patterns are tried first, in each text from the last exception to its causes. Generic patterns are tried after that,
    from the innermost cause outwards, since a wrapping exception is seldom more specific.
    """
    parts = [part for text in texts for part in text.split(CAUSED_BY)]
    inwards = [part for text in texts for part in reversed(text.split(CAUSED_BY))]
    return _first(parts, SUBJECTS) or _first(inwards, (WIDE,))


def _first(texts: Iterable[str], subjects: tuple[str, ...]) -> KnownError | None:
    rows = known_errors(subjects)
    return next((row for text in texts for row in rows if _compiled(row.pattern).search(text)), None)


@cache  # the cache of `re` is too small for all patterns
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@cache
def known_errors(subjects: tuple[str, ...] = (*SUBJECTS, WIDE)) -> tuple[KnownError, ...]:
    """Return all rows of some tables in order; the first matching row wins."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tables = (yaml.load((Path(__file__).parent / f"{name}.yaml").read_text(), Loader=loader) for name in subjects)
    return tuple(KnownError(**row) for rows in tables for row in rows)
