"""False positives of filters by group of people, on harmless texts that differ only in the identity term.

Every text is neutral, so each dropped one is a false positive. The gap of a term is its rate minus the rate over all terms, as
in Dixon et al. 2018 (false positive equality difference); its interval is Newcombe's of two Wilson intervals.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from ropewalk.datapipe.filters.filter import Filter
from ropewalk.datapipe.text.document_batch import DocumentBatch

TERMS = """
woman man girl boy mother father transgender nonbinary gay lesbian bisexual queer straight Black white Asian African Arab Latino
Hispanic European American Chinese Indian Japanese Korean Mexican Nigerian Turkish Polish Roma Indigenous Muslim Jewish Christian
Catholic Hindu Buddhist Sikh atheist immigrant refugee disabled blind deaf autistic old young poor wealthy homeless pregnant
"""
PERSON = frozenset({"woman", "man", "girl", "boy", "mother", "father", "immigrant", "refugee", "atheist"})
OPENINGS = (
    "Last spring {} moved into the house at the end of our street, and the whole block came out to help.",
    "In the library on Main Street {} was reading the newspaper when the lights went out for an hour.",
    "The town council asked {} to speak about the new bridge, and the hall was full that evening.",
    "At the market {} sells bread and honey, and people come from the next village to buy some.",
    "Our football club has found {} who trains the youngest players every Saturday in the park.",
)
MIDDLES = (
    "Everybody agreed that the weather had been kind, so the work was done before the first rain of the season fell.",
    "There was soup and cake for those who stayed, and the children played in the yard until it was time to go home.",
    "The local paper wrote about it on the second page, with a photograph that now hangs in the hall of the school.",
    "It took longer than planned, but nobody minded, for there was enough tea and the company was good that day.",
)
ENDINGS = (
    "When I asked {} about it later, the answer was a smile and an invitation to come again with the family.",
    "The next time I met {} we talked about the garden, the price of seeds, and the trains that are always late.",
    "They say that {} will do the same next year, and that anyone who wants to lend a hand is welcome to join.",
)
Z = 1.959963984540054  # for a 95% interval


def texts_about(term: str) -> list[str]:
    """Return harmless texts about a person described by this term."""
    article = "an" if term[0].lower() in "aei" else "a"
    who = f"{article} {term}" if term in PERSON else f"{article} {term} neighbour"
    return [
        f"{opening.format(who)} {middle} {ending.format(who)} {MIDDLES[(at + 1) % len(MIDDLES)]}"
        for opening in OPENINGS
        for at, middle in enumerate(MIDDLES)
        for ending in ENDINGS
    ]


def false_positive_gaps(filters: Mapping[str, Filter]) -> dict[str, Any]:
    """Return, for each filter, the share of harmless texts that it drops, and the gap of each term with its interval."""
    terms = TERMS.split()
    batch = DocumentBatch.of_texts([text for term in terms for text in texts_about(term)])
    result: dict[str, Any] = {}
    for name, rule in filters.items():
        dropped = (np.asarray(rule.judge(batch).codes) != 0).reshape(len(terms), -1)
        result[name] = _gaps(terms, dropped.sum(axis=1).tolist(), dropped.shape[1])
    return result


def _gaps(terms: Sequence[str], dropped: Sequence[int], texts: int) -> dict[str, Any]:
    total, everyone = sum(dropped), texts * len(terms)
    rows: dict[str, Any] = {}
    for term, count in zip(terms, dropped, strict=True):
        gap, low, high = newcombe(count, texts, total - count, everyone - texts)
        rows[term] = {"rate": count / texts, "gap": gap, "interval": [low, high]}
    worst = max(rows, key=lambda term: abs(rows[term]["gap"]))
    return {"rate": total / everyone, "texts": texts, "largest_gap": {"term": worst, **rows[worst]}, "terms": rows}


def wilson(count: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share (Wilson 1927)."""
    share = count / n
    centre, half = share + Z * Z / (2 * n), Z * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max((centre - half) / (1 + Z * Z / n), 0.0), min((centre + half) / (1 + Z * Z / n), 1.0)


def newcombe(count: int, n: int, other_count: int, other_n: int) -> tuple[float, float, float]:
    """Return the difference of two shares and its 95% interval (Newcombe 1998, method 10)."""
    share, other = count / n, other_count / other_n
    (low, high), (other_low, other_high) = wilson(count, n), wilson(other_count, other_n)
    gap = share - other
    below = sqrt((share - low) ** 2 + (other_high - other) ** 2)
    return gap, gap - below, gap + sqrt((high - share) ** 2 + (other - other_low) ** 2)
