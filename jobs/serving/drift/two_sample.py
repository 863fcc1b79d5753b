"""Four two-sample tests for texts: length, language, embedding, classifier."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.filters.language.filter import UNKNOWN
from ropewalk.datapipe.filters.language.model import NO_LANGUAGE, identify
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.jobs.serving.drift.embed import embed
from ropewalk.jobs.serving.drift.permutation import Floats, PValue, Statistic, holm, permutation_p, sides_of

TESTS = ("length", "language", "embedding", "classifier")
_FOLDS = 5
_RIDGE = 10.0  # times the mean variance of a direction: few samples, and differences spread over many directions
_MIN_CONFIDENCE = 0.5  # of language identification; below it a text is `und`


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of texts, computed without knowing their side."""

    lengths: NDArray[np.int64]  # characters
    languages: NDArray[np.int64]  # index in `names`
    names: tuple[str, ...]
    vectors: Floats

    @classmethod
    def of(cls, texts: Sequence[str], model: str | None = None, *, seed: int = 0) -> "Features":
        """Compute the features of texts. Raises ConfigError for an embedding model that cannot be opened."""
        identified = identify(TextBatch.of([text.encode("utf-8", "replace").decode() for text in texts]))
        codes = [identified.of(index) for index in range(len(texts))]
        uncertain = (identified.confidence < _MIN_CONFIDENCE) | identified.code
        labels = [
            UNKNOWN if unclear or code == NO_LANGUAGE else code for unclear, code in zip(uncertain.tolist(), codes, strict=True)
        ]
        names = tuple(sorted(set(labels)))
        return cls(
            lengths=np.array([len(text) for text in texts], np.int64),
            languages=np.array([names.index(code) for code in labels], np.int64),
            names=names,
            vectors=embed(texts, model, seed=seed),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, indices: NDArray[np.int64]) -> "Features":
        return Features(
            lengths=self.lengths[indices], languages=self.languages[indices], names=self.names, vectors=self.vectors[indices]
        )


@dataclass(frozen=True, kw_only=True)
class TestResults:
    """Results of the four tests: raw and corrected p-values, and classifier scores."""

    results: dict[str, PValue]
    adjusted: dict[str, float]
    scores: Floats  # cross-validated, per text; larger for texts like the first sample

    @property
    def p(self) -> float:
        """Smallest corrected p-value: evidence that the samples differ at all."""
        return min(self.adjusted.values())


def compare_features(features: Features, first: int, random: np.random.Generator, *, max_permutations: int) -> TestResults:
    """Test the first `first` texts against the others, with at most `max_permutations` permutations per test."""
    order = random.permutation(len(features))  # ties and folds must not depend on the sides
    mixed = features.rows(order)
    sides = sides_of(first, len(features) - first)[order]
    classifier = _Classifier(mixed.vectors, random)
    statistics: dict[str, Statistic] = {
        "length": _Length(mixed.lengths),
        "language": _Language(mixed.languages, len(mixed.names)),
        "embedding": lambda arranged: np.square(mixed.vectors.T @ arranged).sum(axis=0),
        "classifier": classifier,
    }
    results = {name: permutation_p(statistics[name], sides, random, max_permutations=max_permutations) for name in TESTS}
    scores = np.empty(len(features), np.float32)
    scores[order] = classifier.scores(sides[:, None])[:, 0]
    return TestResults(results=results, adjusted=holm({name: result.p for name, result in results.items()}), scores=scores)


class _Length:
    """Kolmogorov-Smirnov statistic: largest distance between the two distribution functions."""

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        self.order = np.argsort(lengths)
        ordered = lengths[self.order]
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal lengths form one step

    def __call__(self, arranged: Floats) -> NDArray[np.floating]:
        return np.asarray(np.abs(np.cumsum(arranged[self.order], axis=0)[self.ends]).max(axis=0))


class _Language:
    """Pearson's chi-square of the two mixtures, up to a factor common to all permutations."""

    def __init__(self, languages: NDArray[np.int64], count: int) -> None:
        self.members = np.zeros((count, len(languages)), np.float32)
        self.members[languages, np.arange(len(languages))] = 1
        self.members = self.members[self.members.any(axis=1)]

    def __call__(self, arranged: Floats) -> NDArray[np.floating]:
        return np.asarray((np.square(self.members @ arranged) / self.members.mean(axis=1, keepdims=True)).sum(axis=0))


class _Classifier:
    """Area under the curve of a ridge classifier's cross-validated scores.

    A classifier two-sample test (Lopez-Paz and Oquab, 2017). Least squares are linear in the labels: retraining for each
    permutation, which makes the p-value exact, costs two matrix products.
    """

    def __init__(self, vectors: Floats, random: np.random.Generator) -> None:
        self.folds = []
        fold = random.permutation(len(vectors)) % _FOLDS
        for number in range(_FOLDS):
            train, held = vectors[fold != number], vectors[fold == number]
            mean = train.mean(axis=0)
            centred = train - mean
            squares = centred.T @ centred
            ridge = np.float32(max(_RIDGE * np.trace(squares) / len(squares), 1e-6))
            inverse = np.linalg.inv(squares + ridge * np.eye(len(squares), dtype=np.float32))
            self.folds.append((fold != number, fold == number, centred, (held - mean) @ inverse))

    def scores(self, arranged: Floats) -> Floats:
        """Return the score of each text under each permutation, by a classifier trained without that text."""
        scores = np.empty_like(arranged)
        for train, held, centred, solved in self.folds:
            labels = arranged[train]
            scores[held] = solved @ (centred.T @ (labels - labels.mean(axis=0)))
        return scores

    def __call__(self, arranged: Floats) -> NDArray[np.floating]:
        ranks = self.scores(arranged).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
        first = arranged > 0
        count = int(first[:, 0].sum())
        below = (ranks * first).sum(axis=0) - count * (count - 1) / 2
        return np.asarray(below / (count * (len(arranged) - count)))
