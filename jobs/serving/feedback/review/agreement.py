"""How far two reviewers agree beyond what chance would make them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ropewalk.jobs.serving.feedback.review.judgements import Judgement
from ropewalk.jobs.serving.feedback.summary import Share, share


@dataclass(frozen=True)
class Agreement:
    """Of two reviewers, over the items that both have judged."""

    reviewers: tuple[str, str]
    equal: Share  # of the items: both said the same
    kappa: float | None  # Cohen (1960): 0 as chance would have it, 1 always; None where chance alone makes them agree


def agreements(standing: Mapping[str, Mapping[str, Judgement]]) -> list[Agreement]:
    """Of every two reviewers who have judged the same pair of answers, skipped ones aside."""
    found = []
    for one, other in combinations(sorted(standing), 2):
        both = [
            (mine.choice, its.choice)
            for item, mine in standing[one].items()
            if (its := standing[other].get(item)) and "skip" not in (mine.choice, its.choice) and mine.second == its.second
        ]
        if both:
            equal = share([float(a == b) for a, b in both], [str(n) for n in range(len(both))])
            found.append(Agreement((one, other), equal, kappa(both)))
    return found


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two raters' words on the same items."""
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(first[word] * second[word] for word in first) / n**2
    return None if chance == 1 else (sum(a == b for a, b in pairs) / n - chance) / (1 - chance)
