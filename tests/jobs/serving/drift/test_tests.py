"""The tests of two samples: statistics as others compute them, p-values that are exact, what is planted is found."""

import numpy as np
import pytest
from scipy import stats

from ropewalk.jobs.serving.drift.calibrate import Share, calibrate
from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.embed import embed
from ropewalk.jobs.serving.drift.permutation import ENOUGH, Floats, holm, permutation_p, sides_of
from ropewalk.jobs.serving.drift.two_sample import Features, _Classifier, _Language, _Length, compare_features
from tests.jobs.serving.drift.texts import asked

GERMAN = "der Hund und die Katze gehen heute nicht aus dem Haus weil es regnet und der Wind um die Ecken pfeift"


def compared(current: list[str], reference: list[str], seed: int = 0) -> dict[str, float]:
    features = Features.of([*current, *reference])
    return compare_features(features, len(current), np.random.default_rng(seed), max_permutations=399).adjusted


def test_what_is_planted_is_found_by_the_test_that_is_for_it() -> None:
    reference = asked("ropes", 150, 1)
    same = compared(asked("ropes", 120, 2), reference)
    assert min(same.values()) > 0.05
    mixed = compared(asked("ropes", 60, 2) + asked("bread", 60, 2), reference)
    assert mixed["embedding"] <= 0.05
    assert mixed["classifier"] <= 0.05
    assert mixed["language"] > 0.05
    longer = compared(asked("ropes", 120, 2, num_words=20), reference)
    assert longer["length"] <= 0.05
    german = compared(asked("ropes", 100, 2) + [GERMAN] * 20, reference)
    assert german["language"] <= 0.05


def test_statistics_are_those_of_others() -> None:
    random = np.random.default_rng(0)
    sides = sides_of(40, 60)
    lengths = random.integers(1, 20, 100)  # many are equal
    ks = stats.ks_2samp(lengths[:40], lengths[40:]).statistic
    assert _Length(lengths)(sides[:, None])[0] == pytest.approx(ks, rel=1e-5)
    languages = random.integers(0, 4, 100)
    table = [np.bincount(languages[:40], minlength=4), np.bincount(languages[40:], minlength=4)]
    chi = stats.chi2_contingency(table, correction=False).statistic
    assert _Language(languages, 4)(sides[:, None])[0] * 40 * 60 / 100 == pytest.approx(chi, rel=1e-5)
    classifier = _Classifier(random.standard_normal((100, 5)).astype(np.float32), random)
    scores = classifier.scores(sides[:, None])[:, 0]
    area = stats.mannwhitneyu(scores[:40], scores[40:]).statistic / (40 * 60)
    assert classifier(sides[:, None])[0] == pytest.approx(area)


def test_the_classifier_is_retrained_and_scores_unseen_texts() -> None:
    random = np.random.default_rng(1)
    vectors = random.standard_normal((60, 4)).astype(np.float32)
    classifier = _Classifier(vectors, random)
    sides = sides_of(25, 35)
    arranged = np.stack([sides, random.permutation(sides)], axis=1)
    result = classifier.scores(arranged)
    train, held, *_ = classifier.folds[0]
    assert not (train & held).any()
    for column in range(2):
        mean = vectors[train].mean(axis=0)
        centred, labels = vectors[train] - mean, arranged[train, column]
        squares = centred.T @ centred
        ridge = 10 * np.trace(squares) / 4 * np.eye(4)
        weights = np.linalg.solve(squares + ridge, centred.T @ (labels - labels.mean()))
        assert result[held, column] == pytest.approx((vectors[held] - mean) @ weights, rel=1e-3, abs=1e-7)


def test_p_values_are_uniform_without_a_difference() -> None:
    random = np.random.default_rng(2)
    sides = sides_of(12, 18)

    def p() -> float:
        values = random.standard_normal(30).astype(np.float32)

        def distance(arranged: Floats) -> Floats:
            return np.abs(values @ arranged)

        return permutation_p(distance, sides, random, max_permutations=199).p

    result = np.array([p() for _ in range(600)])
    for level in (0.05, 0.2, 0.5):
        assert (result <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(result))


def test_a_p_value_is_of_all_arrangements_or_of_ten_that_are_as_extreme() -> None:
    random = np.random.default_rng(3)
    sides = sides_of(20, 20)
    clear = permutation_p(
        lambda arranged: (np.arange(40)[::-1, None] * arranged).sum(axis=0), sides, random, max_permutations=500
    )
    assert clear.p == pytest.approx(1 / 501)
    assert clear.permutations == 500
    nothing = permutation_p(lambda arranged: np.zeros(arranged.shape[1]), sides, random, max_permutations=500)
    assert nothing.p == 1
    assert nothing.permutations == ENOUGH


def test_holms_correction() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.6}) == {"b": 1.0, "a": 1.0}


def test_texts_of_any_kind_have_a_vector() -> None:
    vectors = embed(["", "x", "🪢" * 3, "\ud800", "word " * 5000, *asked("ropes", 20, 0)])
    assert vectors.shape == (25, 24)
    assert np.isfinite(vectors).all()
    assert (embed(["a b c d"] * 30) == embed(["a b c d"] * 30)).all()


def test_false_alarms_and_the_smallest_share_are_measured_on_the_reference() -> None:
    features = Features.of(asked("ropes", 200, 1) + asked("bread", 100, 1))
    familiar, strange = features.rows(np.arange(200)), features.rows(np.arange(200, 300))
    created = calibrate(familiar, DriftConfig(rounds=20), sizes=(100, 100), planted=strange, planted_name="bread")
    assert created is not None
    assert created.false_alarms.tries == 20
    assert created.false_alarms.value <= 0.2
    assert created.smallest is not None
    assert 0.05 <= created.smallest <= 0.5
    shares = list(created.power)
    assert created.power[shares[0]].value < created.power[created.smallest].value >= 0.9
    topics = calibrate(features, DriftConfig(rounds=5), sizes=(1000, 1000))
    assert topics is not None
    assert topics.texts == 120  # no more than the reference has
    assert calibrate(familiar.rows(np.arange(60)), DriftConfig(rounds=5), sizes=(100, 100)) is None


def test_an_interval_of_a_share_is_clopper_and_pearsons() -> None:
    assert Share(hits=0, tries=20).interval == pytest.approx((0, 0.1684), abs=1e-4)
