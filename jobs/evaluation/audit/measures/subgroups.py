"""Perplexity of texts by group of people, and the gap between groups."""

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
    """Return the texts of a file. Raises DataError for a line without a group or text, and for fewer than two groups."""
    texts = []
    for number, where, row in json_rows(read_text(url), url):
        for key in ("group", "text"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise DataError(f"{where}: {key!r} must be text, is {row.get(key)!r}; correct or remove the line")
        texts.append(GroupText(number=number, group=row["group"].strip(), text=row["text"]))
    groups = sorted({text.group for text in texts})
    if len(groups) < 2:
        raise DataError(f"subgroups: {url} has {len(groups)} group ({', '.join(groups) or 'none'}); a gap needs two")
    return texts


class Subgroups:
    """Bits per byte of each group's texts, and the gap between the worst and the best predicted group."""

    def __init__(self, texts: Sequence[GroupText], seed: int) -> None:
        self.texts, self.seed = texts, seed
        self.groups = sorted({text.group for text in texts})

    def score_names(self) -> list[str]:
        """Return the names of the gap, and of bits per byte and perplexity of each group."""
        return [GAP, *(f"subgroups/{group}/{kind}" for group in self.groups for kind in ("bits_per_byte", "perplexity"))]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return one question per text; a text longer than the context is split, each piece after the last token before it."""
        return [
            Likelihoods(
                key=f"subgroups:{text.number}", requests=tuple(windows(text_request(opened, text.text), opened.max_length))
            )
            for text in self.texts
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return ratios of sums; standard errors are bootstrapped over texts, that of the gap within each group."""
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        items: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for text in self.texts:
            answer = answers[f"subgroups:{text.number}"]
            size = {"nats": math.fsum(answer["values"]), "tokens": sum(answer["tokens"]), "bytes": len(text.text.encode())}
            value = -size["nats"] / math.log(2) / size["bytes"]
            items[text.group].append(
                {"measure": "subgroups", "key": f"subgroups:{text.number}", "value": value, "group": text.group, **size}
            )
        for group in self.groups:
            content_hash = hash_of([text.text for text in self.texts if text.group == group])
            for kind, statistic in (("bits_per_byte", bits_per_byte), ("perplexity", perplexity)):
                name = f"subgroups/{group}/{kind}"
                judged.scores[name] = statistic_score(items[group], statistic, hash=content_hash, seed=self.seed)
        every = [item for group in self.groups for item in items[group]]
        content_hash, strata = hash_of([[x.group, x.text] for x in self.texts]), [item["group"] for item in every]
        judged.scores[GAP] = statistic_score(every, gap, hash=content_hash, strata=strata, seed=self.seed)
        judged.items.extend(every)
        if alone := [group for group in self.groups if len(items[group]) == 1]:
            of = f"{len(alone)} of {len(self.groups)} groups ({', '.join(alone[:MOST_TOLD])})"
            judged.notes.append(f"{GAP} has no standard error: {of} have only one text; add more.")
        rows = [self._row(group, items[group], judged) for group in self.groups]
        judged.tables["Subgroups: bits per byte (higher: predicted worse)"] = rows
        judged.plots["subgroups"] = rows
        return judged

    def _row(self, group: str, items: Sequence[Mapping[str, Any]], judged: Judged) -> dict[str, Any]:
        bits, perplexity = (judged.scores[f"subgroups/{group}/{kind}"] for kind in ("bits_per_byte", "perplexity"))
        tokens = sum(item["tokens"] for item in items)
        row = {"group": group, "bits_per_byte": bits.value, "standard_error": bits.standard_error, "perplexity": perplexity.value}
        return {**row, "texts": len(items), "tokens": tokens}


def windows(request: Request, max_length: int) -> list[Request]:
    """Split a request into pieces that fit the model: each token is predicted once, a piece begins after its previous token."""
    context, text = request.context, request.continuation
    if len(context) + len(text) - 1 <= max_length:
        return [request]
    starts = [0, *range(max_length, len(text), max_length), len(text)]
    return [Request(context if first == 0 else (text[first - 1],), text[first:last]) for first, last in pairwise(starts)]


def bits_per_byte(items: Sequence[Mapping[str, Any]]) -> float:
    """Return the bits per byte of these texts."""
    return float(-math.fsum(item["nats"] for item in items) / math.log(2) / sum(item["bytes"] for item in items))


def perplexity(items: Sequence[Mapping[str, Any]]) -> float:
    """Return the perplexity per token."""
    return math.exp(min(-math.fsum(item["nats"] for item in items) / sum(item["tokens"] for item in items), 700.0))


def gap(items: Sequence[Mapping[str, Any]]) -> float:
    """Return bits per byte of the worst predicted group less those of the best."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item)
    each = [bits_per_byte(part) for part in groups.values()]
    return max(each) - min(each)
