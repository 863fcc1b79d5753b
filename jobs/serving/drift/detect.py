"""Two samples of texts compared: whether they differ, in what, by how much, and what the answer is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.serving.drift.calibrate import Calibration, Share, calibrate
from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.quality import Proportions, compare_ratings
from ropewalk.jobs.serving.drift.sample import MOST_TEXTS, Sample
from ropewalk.jobs.serving.drift.two_sample import Features, Tested, compare_features

LEAST_TEXTS = 50  # of a side
EXAMPLES = 12
_NORMAL_95 = 1.645  # one-sided


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What a comparison found."""

    current: Sample
    reference: Sample
    alpha: float
    features: Features  # of the texts that were compared, the current ones first
    num_current: int
    tested: Tested
    calibration: Calibration | None
    ratings: Proportions | None
    unlike: tuple[str, ...]  # current texts that look least like the reference

    @property
    def p(self) -> float:
        """The p-value of all tests together, corrected for their number."""
        return self.tested.p

    @property
    def alarm(self) -> bool:
        """Whether the samples are shown to differ, by this comparison alone; a series of them is judged by a Monitor."""
        return self.p <= self.alpha

    @property
    def num_reference(self) -> int:
        """How many texts of the reference were compared."""
        return len(self.features) - self.num_current

    @property
    def share(self) -> tuple[float, float]:
        """The least share of current texts that must come from elsewhere: estimate and lower bound (95%).

        Hits less false alarms of a classifier at any threshold are at most the total variation between two distributions, and
        that is at most the share of texts that come from elsewhere.
        """
        hit, false = (self.tested.scores[: self.num_current] > 0).mean(), (self.tested.scores[self.num_current :] > 0).mean()
        error = math.sqrt(hit * (1 - hit) / self.num_current + false * (1 - false) / self.num_reference)
        seen = float(hit - false)
        return max(0.0, seen), max(0.0, seen - _NORMAL_95 * error)

    @property
    def languages(self) -> dict[str, tuple[float, float]]:
        """The share of each language on both sides, the most frequent first."""
        sides = self.features.languages[: self.num_current], self.features.languages[self.num_current :]
        counts = [np.bincount(side, minlength=len(self.features.names)) / len(side) for side in sides]
        found = {name: (float(counts[0][i]), float(counts[1][i])) for i, name in enumerate(self.features.names)}
        return dict(sorted(found.items(), key=lambda one: -max(one[1])))

    @property
    def median_lengths(self) -> tuple[float, float]:
        """The median number of characters of both sides."""
        lengths = self.features.lengths
        return float(np.median(lengths[: self.num_current])), float(np.median(lengths[self.num_current :]))

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        p = f"(p {self.p:.2g} for all tests together)"
        if not self.alarm:
            found = f"{self.current.name} is not shown to differ from {self.reference.name} {p}"
        else:
            which = [name for name, p in self.tested.adjusted.items() if p <= self.alpha]
            found = f"{self.current.name} differs from {self.reference.name} in {_listed(which)} {p}"
            if self.share[1] >= 0.01:
                found += f"; at least {self.share[1]:.0%} of it is unlike the reference"
        return f"{found}. {self.reach()}"

    def reach(self) -> str:
        """What the answer is worth, in a sentence."""
        made = self.calibration
        if made is None:
            return "How small a drift would be found was not measured."
        n = f"At {made.texts} texts a side"
        false = f"false alarms on disjoint halves of the reference are {_percent(made.false_alarms)}"
        if made.smallest is None:
            return f"{n} no share of drift that was tried is found reliably; {false}."
        found = f"{made.smallest:.0%} ({_percent(made.power[made.smallest])})"
        return f"{n} the smallest share of drift that is found is {found}; {false}."

    def plain(self) -> dict[str, Any]:
        """The comparison as results and files hold it."""
        tests = {name: {**vars(found), "adjusted": self.tested.adjusted[name]} for name, found in self.tested.found.items()}
        estimate, least = self.share
        made = self.calibration
        return {
            "alarm": self.alarm,
            "p": self.p,
            "alpha": self.alpha,
            "words": self.words,
            "tests": tests,
            "share": {"estimate": estimate, "at_least": least},
            "current": _side(self.current, self.num_current),
            "reference": _side(self.reference, self.num_reference),
            "median_lengths": list(self.median_lengths),
            "languages": {name: list(shares) for name, shares in self.languages.items()},
            "calibration": None
            if made is None
            else {
                "texts": made.texts,
                "false_alarms": made.false_alarms.plain(),
                "power": {f"{share:g}": one.plain() for share, one in made.power.items()},
                "smallest": made.smallest,
                "planted": made.planted,
            },
            "ratings": self.ratings.plain() if self.ratings else None,
        }


def detect(
    current: Sample,
    reference: Sample,
    config: DriftConfig | None = None,
    *,
    planted: Sample | None = None,
    permutations: int | None = None,
) -> Drift:
    """Compare two samples. Raises DataError for one that is too small, ConfigError for an embedding that cannot be opened.

    `planted` are texts by which the smallest share of drift is measured; `permutations` replaces the configuration's, which a
    Monitor asks for.
    """
    config = config or DriftConfig()
    for side in (current, reference):
        if len(side.texts) < LEAST_TEXTS:
            raise DataError(f"{side.name}: {len(side.texts)} texts are too few to compare; at least {LEAST_TEXTS} are needed")
    random = np.random.default_rng(config.seed)
    now, before = _some(current.texts, config.texts, random), _some(reference.texts, config.texts, random)
    features = Features.of([*now, *before], config.embedding, seed=config.seed)
    tested = compare_features(features, len(now), random, most=permutations or config.permutations)
    order = np.argsort(-tested.scores[: len(now)])[:EXAMPLES]
    return Drift(
        current=current,
        reference=reference,
        alpha=config.alpha,
        features=features,
        num_current=len(now),
        tested=tested,
        calibration=_calibrated(reference, config, (len(now), len(before)), planted),
        ratings=compare_ratings(current.ratings, reference.ratings),
        unlike=tuple(now[place] for place in order),
    )


def _some(texts: Sequence[str], limit: int, random: np.random.Generator) -> Sequence[str]:
    if len(texts) <= limit:
        return texts
    return [texts[place] for place in sorted(random.permutation(len(texts))[:limit].tolist())]


def _calibrated(reference: Sample, config: DriftConfig, sizes: tuple[int, int], planted: Sample | None) -> Calibration | None:
    if config.rounds == 0:
        return None
    pool = list(reference.texts[: MOST_TEXTS * config.texts])
    strange = list(planted.texts[: config.texts]) if planted else []
    both = Features.of([*pool, *strange], config.embedding, seed=config.seed)
    known = both.rows(np.arange(len(pool)))
    if planted is None:
        return calibrate(known, config, sizes=sizes)
    more = both.rows(np.arange(len(pool), len(both)))
    return calibrate(known, config, sizes=sizes, planted=more, words=f"texts of {planted.name}")


def _side(sample: Sample, compared: int) -> dict[str, Any]:
    text, times = sample.most_repeated
    return {
        "name": sample.name,
        "texts": compared,
        "total": sample.total,
        "skipped": sample.skipped,
        "most_repeated": {"text": text[:200], "times": times, "among": len(sample.texts)},
    }


def _percent(share: Share) -> str:
    return f"{share.value:.0%}, {share.found} of {share.tries}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
