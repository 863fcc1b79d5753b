"""A sample of texts, drawn from more than fit."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MOST_TEXTS = 5  # times those that are compared are kept of a reference, from which halves are drawn


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Texts of one side, in their order, and how many there were; ratings (+1, -1) where people gave any, one a conversation."""

    name: str
    texts: tuple[str, ...]
    total: int
    ratings: tuple[int, ...] = ()
    skipped: int = 0  # records in which there was no text

    @property
    def most_repeated(self) -> tuple[str, int]:
        """The text that is there most often, and how often."""
        return Counter(self.texts).most_common(1)[0] if self.texts else ("", 0)


def draw(items: Iterable[T], limit: int, seed: int) -> tuple[tuple[T, ...], int]:
    """At most `limit` of some items, each as likely as any other, in their order; and how many there were.

    Algorithm R of Vitter (1985), in one pass.
    """
    random_ = random.Random(seed)
    kept: list[tuple[int, T]] = []
    total = 0
    for number, item in enumerate(items):
        total = number + 1
        if len(kept) < limit:
            kept.append((number, item))
        elif (place := random_.randrange(total)) < limit:
            kept[place] = (number, item)
    return tuple(item for _, item in sorted(kept, key=lambda one: one[0])), total
