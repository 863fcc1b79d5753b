"""False-alarm rate and detection power of the drift tests, measured on the reference data."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.two_sample import Features, compare_features

Rows = NDArray[np.int64]  # indices of texts

SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
MAX_TRIES = 40  # per planted share; at most the configured number of rounds
_TOPIC = 0.2  # share of the reference that forms the planted topic, unless other texts are planted
_PERMUTATIONS = 199  # enough to decide whether p is below alpha
_MIN_TEXTS = 30  # per side; with fewer nothing is measured


@dataclass(frozen=True, kw_only=True)
class Share:
    """Detection rate: hits among a number of tries."""

    hits: int
    tries: int

    @property
    def value(self) -> float:
        return self.hits / self.tries

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95% interval of Clopper and Pearson."""
        from scipy import stats

        low, high = stats.binomtest(self.hits, self.tries).proportion_ci(method="exact")
        return float(low), float(high)

    def plain(self) -> dict[str, object]:
        return {"value": self.value, "hits": self.hits, "tries": self.tries, "interval": list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Performance of the tests on data with a known answer."""

    texts: int  # of the smaller side in each try
    false_alarms: Share
    power: dict[float, Share]  # detection rate by planted share
    smallest: float | None  # smallest share detected with the requested power; None if no tested share was
    planted: str  # description of the planted texts


def calibrate(
    reference: Features, config: DriftConfig, *, sizes: tuple[int, int], planted: Features | None = None, planted_name: str = ""
) -> Calibration | None:
    """Measure false alarms and detection power on disjoint subsets of the reference with the given sizes, scaled down if the
    reference is too small for them.

    `planted` are the texts to plant; their features must be computed together with those of `reference`. If None, texts about one
    topic of the reference are planted, and removed from both subsets otherwise. Returns None if the reference is too small.
    """
    random = np.random.default_rng(config.seed)
    halves = _fit_sizes(sizes, len(reference) * (1.0 if planted is not None else 1 - _TOPIC))
    if config.rounds == 0 or min(halves) < _MIN_TEXTS:
        return None
    all_rows = np.arange(len(reference))

    def alarm(rows: Rows, first: int, features: Features = reference) -> bool:
        return compare_features(features.rows(rows), first, random, max_permutations=_PERMUTATIONS).p <= config.alpha

    false_alarms = sum(alarm(random.permutation(all_rows)[: sum(halves)], halves[0]) for _ in range(config.rounds))
    both = reference if planted is None else concatenate(reference, planted)
    plant = _topic_splitter(reference, random) if planted is None else _planted_texts(len(reference), len(planted), random)
    power: dict[float, Share] = {}
    num_tries = min(MAX_TRIES, config.rounds)
    for share in SHARES:
        tries = [_plant(share, halves, *plant(), random) for _ in range(num_tries)]
        if any(rows is None for rows in tries):
            break  # too few texts to plant a share this large
        hits = sum(alarm(rows, halves[0], both) for rows in tries if rows is not None)
        power[share] = Share(hits=hits, tries=num_tries)
        if power[share].value >= config.power:
            break
    return Calibration(
        texts=min(halves),
        false_alarms=Share(hits=false_alarms, tries=config.rounds),
        power=power,
        smallest=next((share for share, tested in power.items() if tested.value >= config.power), None),
        planted=planted_name or "one topic of the reference, removed from both samples otherwise",
    )


def concatenate(first: Features, second: Features) -> Features:
    """Concatenate the features of two sets of texts that were computed together."""
    assert first.names == second.names
    return Features(
        lengths=np.concatenate([first.lengths, second.lengths]),
        languages=np.concatenate([first.languages, second.languages]),
        names=first.names,
        vectors=np.concatenate([first.vectors, second.vectors]),
    )


def _fit_sizes(sizes: tuple[int, int], available: float) -> tuple[int, int]:
    """Return the sizes of two disjoint samples, scaled down by a common factor if fewer texts are available."""
    factor = min(1.0, available / sum(sizes))
    return int(sizes[0] * factor), int(sizes[1] * factor)


def _topic_splitter(reference: Features, random: np.random.Generator) -> Callable[[], tuple[Rows, Rows]]:
    """Return a function that picks a random topic and splits the reference into (all other texts, texts of the topic).

    A topic is a random text and its nearest neighbours.
    """

    def draw() -> tuple[Rows, Rows]:
        anchor = reference.vectors[random.integers(len(reference))]
        order = np.argsort(np.square(reference.vectors - anchor).sum(axis=1))
        count = int(_TOPIC * len(reference))
        return order[count:], order[:count]

    return draw


def _planted_texts(count: int, planted: int, random: np.random.Generator) -> Callable[[], tuple[Rows, Rows]]:
    return lambda: (np.arange(count), count + random.permutation(planted))


def _plant(share: float, halves: tuple[int, int], base: Rows, strange: Rows, random: np.random.Generator) -> Rows | None:
    """Return rows of two samples of `base`, the first with this share of `strange` texts; None if there are too few."""
    count = round(share * halves[0])
    if count > len(strange) or sum(halves) - count > len(base):
        return None
    drawn = random.permutation(base)
    return np.concatenate([random.permutation(strange)[:count], drawn[: sum(halves) - count]])
