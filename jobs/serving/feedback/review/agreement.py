"""Inter-annotator agreement (Cohen's kappa)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ropewalk.jobs.serving.feedback.review.judgements import Judgement
from ropewalk.jobs.serving.feedback.summary import Share, share


@dataclass(frozen=True)
class Agreement:
    """Agreement of two reviewers on the items both have judged."""

    reviewers: tuple[str, str]
    equal: Share  # share of items with equal judgements
    kappa: float | None  # Cohen (1960): 0 is chance, 1 is perfect; None if chance alone gives perfect agreement


def agreements(standing: Mapping[str, Mapping[str, Judgement]]) -> list[Agreement]:
    """Return the agreement of every two reviewers who judged the same pairs of answers, without skipped ones."""
    results = []
    for first, second in combinations(sorted(standing), 2):
        pairs = [
            (judgement.choice, counterpart.choice)
            for item, judgement in standing[first].items()
            if (counterpart := standing[second].get(item))
            and "skip" not in (judgement.choice, counterpart.choice)
            and judgement.second == counterpart.second
        ]
        if pairs:
            equal = share([float(a == b) for a, b in pairs], [str(n) for n in range(len(pairs))])
            results.append(Agreement((first, second), equal, kappa(pairs)))
    return results


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of two raters on the same items."""
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[label] * second[label] for label in first) / n**2
    return None if chance == 1 else (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)
