"""Perplexity of texts by group: for whom does the model know the language worst?"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Likelihoods, Question
from ropewalk.jobs.evaluation.audit.suites.read import json_rows, read_text
from ropewalk.jobs.inference.scoring.encode import text_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request
from ropewalk.jobs.results.score import hash_of, statistic_score

GAP = "subgroup_gap"
MOST_TOLD = 10  # groups that a note names


@dataclass(frozen=True, kw_only=True)
class GroupText:
    """A text, and the group of people that it is by or about."""

    number: int
    group: str
    text: str


def read_groups(url: str) -> list[GroupText]:
    """The texts of a file. Raises DataError for a line without a group or a text, and for fewer than two groups."""
    found = []
    for number, where, row in json_rows(read_text(url), url):
        for key in ("group", "text"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise DataError(f"{where}: {key!r} must be text, is {row.get(key)!r}; correct or remove the line")
        found.append(GroupText(number=number, group=row["group"].strip(), text=row["text"]))
    groups = sorted({one.group for one in found})
    if len(groups) < 2:
        raise DataError(f"subgroups: {url} has {len(groups)} group ({', '.join(groups) or 'none'}); a gap needs two")
    return found


class Subgroups:
    """Bits per byte of each group's texts, and the gap between the worst and the best known group."""

    def __init__(self, texts: Sequence[GroupText], seed: int) -> None:
        self.texts, self.seed = texts, seed
        self.groups = sorted({one.group for one in texts})

    def score_names(self) -> list[str]:
        """The gap, and bits per byte and perplexity of each group."""
        return [GAP, *(f"subgroups/{group}/{kind}" for group in self.groups for kind in ("bits_per_byte", "perplexity"))]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Each text as a whole; one that is longer than the model sees is cut, each piece behind the last token before it."""
        return [
            Likelihoods(key=f"subgroups:{one.number}", requests=tuple(windows(text_request(opened, one.text), opened.max_length)))
            for one in self.texts
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Ratios of sums; standard errors are bootstrapped over texts, that of the gap within each group."""
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        items: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for one in self.texts:
            answer = answers[f"subgroups:{one.number}"]
            size = {"nats": math.fsum(answer["values"]), "tokens": sum(answer["tokens"]), "bytes": len(one.text.encode())}
            value = -size["nats"] / math.log(2) / size["bytes"]
            items[one.group].append(
                {"measure": "subgroups", "key": f"subgroups:{one.number}", "value": value, "group": one.group, **size}
            )
        for group in self.groups:
            asked = hash_of([one.text for one in self.texts if one.group == group])
            for kind, statistic in (("bits_per_byte", bits_per_byte), ("perplexity", perplexity)):
                name = f"subgroups/{group}/{kind}"
                judged.scores[name] = statistic_score(items[group], statistic, hash=asked, seed=self.seed)
        every = [item for group in self.groups for item in items[group]]
        asked, strata = hash_of([[x.group, x.text] for x in self.texts]), [item["group"] for item in every]
        judged.scores[GAP] = statistic_score(every, gap, hash=asked, strata=strata, seed=self.seed)
        judged.items.extend(every)
        if alone := [group for group in self.groups if len(items[group]) == 1]:
            of = f"{len(alone)} of {len(self.groups)} groups ({', '.join(alone[:MOST_TOLD])})"
            judged.notes.append(f"{GAP} has no standard error: {of} have one text each; add texts of them.")
        rows = [self._row(group, items[group], judged) for group in self.groups]
        judged.tables["Subgroups: bits per byte (higher: known worse)"] = rows
        judged.plots["subgroups"] = rows
        return judged

    def _row(self, group: str, items: Sequence[Mapping[str, Any]], judged: Judged) -> dict[str, Any]:
        bits, words = (judged.scores[f"subgroups/{group}/{kind}"] for kind in ("bits_per_byte", "perplexity"))
        tokens = sum(item["tokens"] for item in items)
        row = {"group": group, "bits_per_byte": bits.value, "standard_error": bits.standard_error, "perplexity": words.value}
        return {**row, "texts": len(items), "tokens": tokens}


def windows(request: Request, max_length: int) -> list[Request]:
    """A request in pieces that the model can see: each token is predicted once, in a piece's beginning by the token before."""
    context, text = request.context, request.continuation
    if len(context) + len(text) - 1 <= max_length:
        return [request]
    starts = [0, *range(max_length, len(text), max_length), len(text)]
    return [Request(context if first == 0 else (text[first - 1],), text[first:last]) for first, last in pairwise(starts)]


def bits_per_byte(items: Sequence[Mapping[str, Any]]) -> float:
    """Bits that the model needs for a byte of these texts."""
    return float(-math.fsum(item["nats"] for item in items) / math.log(2) / sum(item["bytes"] for item in items))


def perplexity(items: Sequence[Mapping[str, Any]]) -> float:
    """Perplexity by token."""
    return math.exp(min(-math.fsum(item["nats"] for item in items) / sum(item["tokens"] for item in items), 700.0))


def gap(items: Sequence[Mapping[str, Any]]) -> float:
    """Bits per byte of the worst known group less those of the best known one."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item)
    each = [bits_per_byte(part) for part in groups.values()]
    return max(each) - min(each)
