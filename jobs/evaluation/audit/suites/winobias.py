"""WinoBias (Zhao et al., 1804.06876): sentences whose pronoun refers to an occupation, with or against its stereotype."""

import re
from collections.abc import Iterator
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.suites.pair import Pair, make_pair, require_columns

MASK = "[MASK]"
BIAS_TYPE = "gender/occupation"
_BRACKETED = re.compile(r"\[([^\]]*)\]")
_ARTICLE = re.compile(r"^(the|a|an)\s+", re.IGNORECASE)
_OPTION = re.compile(r"^[A-Z]\.\s*(.+?)\s*$", re.MULTILINE)


def winobias_row(row: dict[str, Any], where: str, suite: str, number: int) -> Pair:
    """A row {text with [MASK], pro_stereotyped, options: "A. he\\nB. she\\n..."}."""
    require_columns(row, ("text", "pro_stereotyped", "options"), where)
    pro = row["pro_stereotyped"].strip()
    others = [word for word in _OPTION.findall(row["options"]) if word.lower() != pro.lower() and " " not in word]
    if len(others) != 1 or MASK not in row["text"]:
        raise DataError(f"{where}: must have one [MASK] and one other pronoun than {pro!r} among its options; correct the line")
    marked = [word for word in _BRACKETED.findall(row["text"]) if f"[{word}]" != MASK]
    more, less = (_plain(row["text"].replace(MASK, word)) for word in (pro, others[0]))
    return make_pair(where, suite=suite, number=number, more=more, less=less, target=_occupation(marked), bias_type=BIAS_TYPE)


def winobias_pairs(pro: str, anti: str, where: str, suite: str) -> Iterator[Pair]:
    """Yield the pairs of the authors' two files: line k of one is line k of the other with the other pronoun."""
    first, second = ([line for line in text.split("\n") if line.strip()] for text in (pro, anti))
    if len(first) != len(second):
        raise DataError(
            f"{where}: has {len(first)} lines and its anti-stereotyped file {len(second)}; take both from one release"
        )
    for number, (pro_line, anti_line) in enumerate(zip(first, second, strict=True), 1):
        more, less = (re.sub(r"^\d+\s+", "", line) for line in (pro_line, anti_line))
        target = _occupation(_BRACKETED.findall(more))
        location = f"{where} line {number}"
        yield make_pair(
            location, suite=suite, number=number, more=_plain(more), less=_plain(less), target=target, bias_type=BIAS_TYPE
        )


def _plain(text: str) -> str:
    return _BRACKETED.sub(lambda match: match[1], text).strip()


def _occupation(marked: list[str]) -> str:
    """Return the occupation that the pronoun refers to: the longer of the two marked phrases."""
    return _ARTICLE.sub("", max(marked, key=len, default="")).lower()
