"""The four tests whether two samples of texts have one distribution: length, language, embedding, classifier."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.filters.language.model import NO_LANGUAGE, UNKNOWN, identify
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.jobs.serving.drift.embed import embed
from ropewalk.jobs.serving.drift.permutation import Floats, PValue, Statistic, holm, permutation_p, sides_of

TESTS = ("length", "language", "embedding", "classifier")
_FOLDS = 5
_RIDGE = 10.0  # times the mean variance of a direction: samples are few, and what differs is spread over many directions
_LEAST_CONFIDENCE = 0.5  # of a language; a text of less is `und`


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the tests look at of each text, whichever side it is from."""

    lengths: NDArray[np.int64]  # characters
    languages: NDArray[np.int64]  # index in `names`
    names: tuple[str, ...]
    vectors: Floats

    @classmethod
    def of(cls, texts: Sequence[str], model: str | None = None, *, seed: int = 0) -> "Features":
        """The features of texts. Raises ConfigError for an embedding model that cannot be opened."""
        found = identify(TextBatch.of([text.encode("utf-8", "replace").decode() for text in texts]))
        words = [found.of(index) for index in range(len(texts))]
        unknown = (found.confidence < _LEAST_CONFIDENCE) | found.code
        told = [UNKNOWN if out or word == NO_LANGUAGE else word for out, word in zip(unknown.tolist(), words, strict=True)]
        names = tuple(sorted(set(told)))
        return cls(
            lengths=np.array([len(text) for text in texts], np.int64),
            languages=np.array([names.index(word) for word in told], np.int64),
            names=names,
            vectors=embed(texts, model, seed=seed),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, places: NDArray[np.int64]) -> "Features":
        """The features of some texts."""
        return Features(
            lengths=self.lengths[places], languages=self.languages[places], names=self.names, vectors=self.vectors[places]
        )


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What the tests say of two samples: p-values, corrected ones, and how well the classifier tells the texts apart."""

    found: dict[str, PValue]
    adjusted: dict[str, float]
    scores: Floats  # of each text, by a classifier that has not seen it: larger where it looks like the first sample

    @property
    def p(self) -> float:
        """The smallest corrected p-value: that of the question whether the samples differ in anything."""
        return min(self.adjusted.values())


def compare_features(features: Features, first: int, random: np.random.Generator, *, most: int) -> Tested:
    """Test whether the first texts are drawn as the others are, by at most so many arrangements a test."""
    order = random.permutation(len(features))  # so that no tie, and no fold, knows of the sides
    mixed = features.rows(order)
    sides = sides_of(first, len(features) - first)[order]
    classifier = _Classifier(mixed.vectors, random)
    statistics: dict[str, Statistic] = {
        "length": _Length(mixed.lengths),
        "language": _Language(mixed.languages, len(mixed.names)),
        "embedding": lambda arranged: np.square(mixed.vectors.T @ arranged).sum(axis=0),
        "classifier": classifier,
    }
    found = {name: permutation_p(statistics[name], sides, random, most=most) for name in TESTS}
    scores = np.empty(len(features), np.float32)
    scores[order] = classifier.scores(sides[:, None])[:, 0]
    return Tested(found=found, adjusted=holm({name: one.p for name, one in found.items()}), scores=scores)


class _Length:
    """The statistic of Kolmogorov and Smirnov: the largest distance of two distribution functions."""

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        self.order = np.argsort(lengths)
        ordered = lengths[self.order]
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal lengths are one step

    def __call__(self, arranged: Floats) -> NDArray[np.floating]:
        return np.asarray(np.abs(np.cumsum(arranged[self.order], axis=0)[self.ends]).max(axis=0))


class _Language:
    """Pearson's chi-square of the two mixtures, but for a factor that all arrangements share."""

    def __init__(self, languages: NDArray[np.int64], count: int) -> None:
        self.members = np.zeros((count, len(languages)), np.float32)
        self.members[languages, np.arange(len(languages))] = 1
        self.members = self.members[self.members.any(axis=1)]

    def __call__(self, arranged: Floats) -> NDArray[np.floating]:
        return np.asarray((np.square(self.members @ arranged) / self.members.mean(axis=1, keepdims=True)).sum(axis=0))


class _Classifier:
    """The area under the curve of a ridge classifier's cross-validated scores.

    A classifier two-sample test (Lopez-Paz and Oquab, 2017). Least squares are linear in the labels: to train it again for each
    arrangement, so that the p-value is exact, costs two products of matrices.
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
        """Of each text and arrangement, the score by a classifier that was trained without it."""
        found = np.empty_like(arranged)
        for train, held, centred, solved in self.folds:
            labels = arranged[train]
            found[held] = solved @ (centred.T @ (labels - labels.mean(axis=0)))
        return found

    def __call__(self, arranged: Floats) -> NDArray[np.floating]:
        ranks = self.scores(arranged).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
        first = arranged > 0
        count = int(first[:, 0].sum())
        below = (ranks * first).sum(axis=0) - count * (count - 1) / 2
        return np.asarray(below / (count * (len(arranged) - count)))
