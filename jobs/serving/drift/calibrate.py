"""What the tests are worth on this reference: how often they cry wolf, and the smallest share of drift that they find."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.two_sample import Features, compare_features

Places = NDArray[np.int64]

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
MOST_TRIES = 40  # of a share of drift, and no more than there are rounds
_TOPIC = 0.2  # of the reference is the topic of which more is asked, where nothing else is given to plant
_PERMUTATIONS = 199  # a false alarm is a matter of yes or no, for which few do
_LEAST = 30  # texts of a side, below which nothing is measured


@dataclass(frozen=True, kw_only=True)
class Share:
    """How often something was found among so many tries, with the interval of 95% of Clopper and Pearson."""

    found: int
    tries: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.found / self.tries

    @property
    def interval(self) -> tuple[float, float]:
        """The exact interval."""
        from scipy import stats

        low, high = stats.binomtest(self.found, self.tries).proportion_ci(method="exact")
        return float(low), float(high)

    def plain(self) -> dict[str, object]:
        """The share as files hold it."""
        return {"value": self.value, "found": self.found, "tries": self.tries, "interval": list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the tests do where the truth is known."""

    texts: int  # of the smaller side in each try
    false_alarms: Share
    power: dict[float, Share]  # by the share of drift that was planted
    smallest: float | None  # the smallest share that is found with the power asked for; None: none of those tried
    planted: str  # what was planted


def calibrate(
    reference: Features, config: DriftConfig, *, sizes: tuple[int, int], planted: Features | None = None, words: str = ""
) -> Calibration | None:
    """Measure false alarms and power on disjoint halves of a reference, of these sizes as far as it reaches.

    `planted` are texts of which shares are planted, with the directions of `reference`; unset: texts about one topic of the
    reference, which neither half has by itself. None: the reference is too small for halves.
    """
    random = np.random.default_rng(config.seed)
    halves = _fitting(sizes, len(reference) * (1.0 if planted is not None else 1 - _TOPIC))
    if config.rounds == 0 or min(halves) < _LEAST:
        return None
    all_places = np.arange(len(reference))

    def alarm(places: Places, first: int, features: Features = reference) -> bool:
        return compare_features(features.rows(places), first, random, most=_PERMUTATIONS).p <= config.alpha

    false = sum(alarm(random.permutation(all_places)[: sum(halves)], halves[0]) for _ in range(config.rounds))
    both = reference if planted is None else joined(reference, planted)
    plant = _topics(reference, random) if planted is None else _given(len(reference), len(planted), random)
    power: dict[float, Share] = {}
    num_tries = min(MOST_TRIES, config.rounds)
    for share in SHARES:
        tries = [_planted(share, halves, *plant(), random) for _ in range(num_tries)]
        if any(places is None for places in tries):
            break  # there is not so much to plant
        found = sum(alarm(places, halves[0], both) for places in tries if places is not None)
        power[share] = Share(found=found, tries=num_tries)
        if power[share].value >= config.power:
            break
    return Calibration(
        texts=min(halves),
        false_alarms=Share(found=false, tries=config.rounds),
        power=power,
        smallest=next((share for share, one in power.items() if one.value >= config.power), None),
        planted=words or "one topic of the reference, of which neither half has any by itself",
    )


def joined(one: Features, other: Features) -> Features:
    """The features of two sets of texts that were made together."""
    assert one.names == other.names
    return Features(
        lengths=np.concatenate([one.lengths, other.lengths]),
        languages=np.concatenate([one.languages, other.languages]),
        names=one.names,
        vectors=np.concatenate([one.vectors, other.vectors]),
    )


def _fitting(sizes: tuple[int, int], there: float) -> tuple[int, int]:
    """Two disjoint samples of these sizes, both smaller by one factor where there are not so many texts."""
    factor = min(1.0, there / sum(sizes))
    return int(sizes[0] * factor), int(sizes[1] * factor)


def _topics(reference: Features, random: np.random.Generator) -> Callable[[], tuple[Places, Places]]:
    """A function that draws a topic, the texts that are nearest to one of them, and gives all others and those."""

    def draw() -> tuple[Places, Places]:
        anchor = reference.vectors[random.integers(len(reference))]
        order = np.argsort(np.square(reference.vectors - anchor).sum(axis=1))
        count = int(_TOPIC * len(reference))
        return order[count:], order[:count]

    return draw


def _given(count: int, planted: int, random: np.random.Generator) -> Callable[[], tuple[Places, Places]]:
    return lambda: (np.arange(count), count + random.permutation(planted))


def _planted(share: float, halves: tuple[int, int], base: Places, strange: Places, random: np.random.Generator) -> Places | None:
    """Two halves of the base, the first with this share of strange texts; None: there are not so many of them."""
    count = round(share * halves[0])
    if count > len(strange) or sum(halves) - count > len(base):
        return None
    drawn = random.permutation(base)
    return np.concatenate([random.permutation(strange)[:count], drawn[: sum(halves) - count]])
