"""Random samples of texts."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

POOL_FACTOR = 5  # reference texts kept per compared text, so that calibration can draw disjoint samples


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Texts of one side in their original order, with independent ratings (+1 or -1), at most one per conversation."""

    name: str
    texts: tuple[str, ...]
    total: int  # texts before sampling
    ratings: tuple[int, ...] = ()
    skipped: int = 0  # records without text

    @property
    def most_repeated(self) -> tuple[str, int]:
        return Counter(self.texts).most_common(1)[0] if self.texts else ("", 0)


def draw(items: Iterable[T], limit: int, seed: int) -> tuple[tuple[T, ...], int]:
    """Draw at most `limit` items uniformly, in their original order; also return the number of items.

    Algorithm R of Vitter (1985), in one pass.
    """
    random_ = random.Random(seed)
    reservoir: list[tuple[int, T]] = []
    total = 0
    for number, item in enumerate(items):
        total = number + 1
        if len(reservoir) < limit:
            reservoir.append((number, item))
        elif (slot := random_.randrange(total)) < limit:
            reservoir[slot] = (number, item)
    return tuple(item for _, item in sorted(reservoir, key=lambda entry: entry[0])), total
