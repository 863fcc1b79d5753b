"""Comparison of two samples of texts: evidence of drift, its kind and size, and the detection limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.serving.drift.calibrate import Calibration, Share, calibrate
from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.quality import Proportions, compare_ratings
from ropewalk.jobs.serving.drift.sample import POOL_FACTOR, Sample
from ropewalk.jobs.serving.drift.two_sample import Features, TestResults, compare_features

MIN_TEXTS = 50  # per side
EXAMPLES = 12
_NORMAL_95 = 1.645  # one-sided 95% quantile


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Result of comparing two samples."""

    current: Sample
    reference: Sample
    config: DriftConfig
    features: Features  # of the compared texts, current ones first
    num_current: int
    tests: TestResults
    calibration: Calibration | None
    ratings: Proportions | None
    unlike: tuple[str, ...]  # current texts least similar to the reference

    @property
    def p(self) -> float:
        """P-value of all tests together, corrected for their number."""
        return self.tests.p

    @property
    def alarm(self) -> bool:
        """Return True if this comparison alone shows a difference; repeated comparisons are judged by a Monitor."""
        return self.p <= self.config.alpha

    @property
    def num_reference(self) -> int:
        return len(self.features) - self.num_current

    @property
    def share(self) -> tuple[float, float]:
        """Lower estimate of the share of current texts from another distribution: point estimate and 95% lower bound.

        The hit rate minus the false-alarm rate of a classifier, at any threshold, is at most the total variation distance of the
        two distributions, which is at most the share of texts from elsewhere.
        """
        hit_rate, false_rate = (
            (self.tests.scores[: self.num_current] > 0).mean(),
            (self.tests.scores[self.num_current :] > 0).mean(),
        )
        error = math.sqrt(hit_rate * (1 - hit_rate) / self.num_current + false_rate * (1 - false_rate) / self.num_reference)
        difference = float(hit_rate - false_rate)
        return max(0.0, difference), max(0.0, difference - _NORMAL_95 * error)

    @property
    def languages(self) -> dict[str, tuple[float, float]]:
        """Share of each language as (current, reference), most frequent first."""
        sides = self.features.languages[: self.num_current], self.features.languages[self.num_current :]
        counts = [np.bincount(side, minlength=len(self.features.names)) / len(side) for side in sides]
        shares = {name: (float(counts[0][i]), float(counts[1][i])) for i, name in enumerate(self.features.names)}
        return dict(sorted(shares.items(), key=lambda item: -max(item[1])))

    @property
    def median_lengths(self) -> tuple[float, float]:
        """Median number of characters as (current, reference)."""
        lengths = self.features.lengths
        return float(np.median(lengths[: self.num_current])), float(np.median(lengths[self.num_current :]))

    @property
    def summary(self) -> str:
        """One sentence on the result and one on the detection limit."""
        p = f"(p = {self.p:.2g}, all tests combined)"
        if not self.alarm:
            result = f"no significant difference between {self.current.name} and {self.reference.name} {p}"
        else:
            significant = [name for name, p_value in self.tests.adjusted.items() if p_value <= self.config.alpha]
            result = f"{self.current.name} differs from {self.reference.name} in {_join(significant)} {p}"
            if self.share[1] >= 0.01:
                result += f"; at least {self.share[1]:.0%} of its texts are unlike the reference"
        return f"{result}. {self.detection_limit()}"

    def detection_limit(self) -> str:
        """One sentence on the smallest detectable drift and the rate of false alarms."""
        calibration = self.calibration
        if calibration is None:
            few = f"{len(self.reference.texts)} texts of the reference are too few to split into two samples"
            return f"The smallest detectable drift was not measured: {few if self.config.rounds else 'rounds is 0'}."
        prefix = f"With {calibration.texts} texts per side"
        false_alarms = f"false alarms on random splits of the reference: {_percent(calibration.false_alarms)}"
        if calibration.smallest is None:
            return f"{prefix}, no tested share of drift is detected reliably; {false_alarms}."
        smallest = f"{calibration.smallest:.0%} (detected: {_percent(calibration.power[calibration.smallest])})"
        return f"{prefix}, the smallest detectable share of drift is {smallest}; {false_alarms}."

    def plain(self) -> dict[str, Any]:
        tests = {name: {**vars(result), "adjusted": self.tests.adjusted[name]} for name, result in self.tests.results.items()}
        estimate, least = self.share
        calibration = self.calibration
        return {
            "alarm": self.alarm,
            "p": self.p,
            "alpha": self.config.alpha,
            "summary": self.summary,
            "tests": tests,
            "share": {"estimate": estimate, "at_least": least},
            "current": _side(self.current, self.num_current),
            "reference": _side(self.reference, self.num_reference),
            "median_lengths": list(self.median_lengths),
            "languages": {name: list(shares) for name, shares in self.languages.items()},
            "calibration": None
            if calibration is None
            else {
                "texts": calibration.texts,
                "false_alarms": calibration.false_alarms.plain(),
                "power": {f"{share:g}": rate.plain() for share, rate in calibration.power.items()},
                "smallest": calibration.smallest,
                "planted": calibration.planted,
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

    `planted` are texts used to measure the smallest detectable share of drift. `permutations` replaces the configured number; a
    Monitor requires more.
    """
    config = config or DriftConfig()
    for side in (current, reference):
        if len(side.texts) < MIN_TEXTS:
            raise DataError(f"{side.name}: {len(side.texts)} texts are too few to compare; at least {MIN_TEXTS} are needed")
    random = np.random.default_rng(config.seed)
    current_texts, reference_texts = (
        _subsample(current.texts, config.texts, random),
        _subsample(reference.texts, config.texts, random),
    )
    features = Features.of([*current_texts, *reference_texts], config.embedding, seed=config.seed)
    tests = compare_features(features, len(current_texts), random, max_permutations=permutations or config.permutations)
    order = np.argsort(-tests.scores[: len(current_texts)])[:EXAMPLES]
    return Drift(
        current=current,
        reference=reference,
        config=config,
        features=features,
        num_current=len(current_texts),
        tests=tests,
        calibration=_calibrate(reference, config, (len(current_texts), len(reference_texts)), planted),
        ratings=compare_ratings(current.ratings, reference.ratings),
        unlike=tuple(current_texts[row] for row in order),
    )


def _subsample(texts: Sequence[str], limit: int, random: np.random.Generator) -> Sequence[str]:
    if len(texts) <= limit:
        return texts
    return [texts[row] for row in sorted(random.permutation(len(texts))[:limit].tolist())]


def _calibrate(reference: Sample, config: DriftConfig, sizes: tuple[int, int], planted: Sample | None) -> Calibration | None:
    if config.rounds == 0:
        return None
    pool = list(reference.texts[: POOL_FACTOR * config.texts])
    strange = list(planted.texts[: config.texts]) if planted else []
    both = Features.of([*pool, *strange], config.embedding, seed=config.seed)
    reference_features = both.rows(np.arange(len(pool)))
    if planted is None:
        return calibrate(reference_features, config, sizes=sizes)
    planted_features = both.rows(np.arange(len(pool), len(both)))
    return calibrate(reference_features, config, sizes=sizes, planted=planted_features, planted_name=f"texts of {planted.name}")


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
    return f"{share.value:.0%}, {share.hits} of {share.tries}"


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
