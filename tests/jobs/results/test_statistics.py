"""Standard errors, intervals and comparisons, against scipy and against what is known of null pairs."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from ropewalk.jobs.results.compare import compare_pairs, judge
from ropewalk.jobs.results.score import Score, hash_of, mean_score, statistic_score
from ropewalk.jobs.results.statistics import bootstrap_interval, detectable_difference, mean_error, mean_interval, permutation


def test_mean_error_and_interval_are_scipys() -> None:
    values = list(np.random.default_rng(0).normal(3.0, 2.0, size=40))
    assert mean_error(values) == pytest.approx(float(stats.sem(values)))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((float(low), float(high)))


def test_a_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(1).exponential(size=200)
    low, high = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=5).confidence_interval
    result = bootstrap_interval(list(values), seed=3)
    assert result is not None
    assert result == pytest.approx((float(low), float(high)), abs=0.02 * (high - low) * 3)
    assert result == bootstrap_interval(list(values), seed=3)


def test_few_pairs_are_permuted_in_every_way() -> None:
    differences = [0.3, -0.1, 0.5, 0.2, 0.4, 0.1]
    arrangements = [sum(d if k >> i & 1 else -d for i, d in enumerate(differences)) for k in range(64)]
    exact = sum(abs(a) >= abs(sum(differences)) - 1e-12 for a in arrangements) / 64
    result = permutation(differences, seed=0)
    assert result is not None
    assert result.p == pytest.approx(exact)
    assert result.mid_p == pytest.approx(exact - 2 / 64 / 2 * (exact > 0), abs=2 / 64)
    assert permutation([0.0, 0.0, 1.0], seed=0) == (1.0, 1.0)


def test_items_of_a_group_are_no_evidence_each() -> None:
    """Every item four times over: the error is that of the items, not half of it."""
    values = list(np.random.default_rng(2).normal(size=60))
    four = [value for value in values for _ in range(4)]
    groups = [number for number in range(60) for _ in range(4)]
    assert mean_error(four, groups) == pytest.approx(mean_error(values))
    assert mean_error(four) == pytest.approx(mean_error(values) or 0, rel=0.6)
    assert (mean_error(four) or 0) < 0.6 * (mean_error(values) or 0)


def test_too_few_values_have_no_error() -> None:
    assert mean_error([]) is None
    assert mean_error([1.0]) is None
    assert mean_error([1.0, 2.0], ["a", "a"]) is None
    alone = judge([0.5])
    assert (alone.difference, alone.interval, alone.better, alone.n) == (0.5, None, None, 1)
    none = compare_pairs([], [])
    assert (none.difference, none.better) == (None, None)


def test_a_score_comes_back_as_it_was_written() -> None:
    score = mean_score([0, 1, 1, 1], hash=hash_of({"task": "x"}, ["prompt"]))
    assert score.plain() == {"value": 0.75, "standard_error": pytest.approx(0.25), "n": 4, "hash": score.hash}
    assert Score.of(score.plain()) == score
    nothing = mean_score([], hash="h")
    assert nothing.plain() == {"value": None, "standard_error": None, "n": 0, "hash": "h"}
    assert math.isnan(Score.of(nothing.plain()).value)


def test_a_figure_that_is_no_mean_has_a_bootstrapped_error() -> None:
    values = list(np.random.default_rng(3).normal(size=300))
    score = statistic_score(values, lambda drawn: float(np.mean(drawn)), hash="h")
    assert score.standard_error == pytest.approx(mean_error(values), rel=0.2)


def test_strata_are_drawn_each_by_itself() -> None:
    """A difference of two means, of 4 and of 400 items: its error is that of both, and no stratum is ever empty."""
    random = np.random.default_rng(4)
    few, many = list(random.normal(0, 1.0, 4)), list(random.normal(5, 1.0, 400))
    items = [*((0, value) for value in few), *((1, value) for value in many)]
    strata = [stratum for stratum, _ in items]

    def difference(drawn: Sequence[tuple[int, float]]) -> float:
        sides = [[value for number, value in drawn if number == side] for side in (0, 1)]
        assert (len(sides[0]), len(sides[1])) == (4, 400)
        return float(np.mean(sides[1]) - np.mean(sides[0]))

    error = statistic_score(items, difference, hash="h", strata=strata).standard_error
    assert error == pytest.approx(math.sqrt(np.var(few) / 4 + np.var(many) / 400), rel=0.15)
    alone = statistic_score(items[3:], lambda drawn: 0.0, hash="h", strata=strata[3:])
    assert alone.standard_error is None, "of one item nobody knows the spread"


def false_alarms(number: int, items: int, chance: float) -> int:
    random = np.random.default_rng(7)
    alarms = 0
    for seed in range(number):
        hard = random.normal(size=items)  # both sides meet the same items, some of which are hard
        sides = [(hard + random.normal(size=items) > stats.norm.ppf(chance)).astype(float) for _ in range(2)]
        alarms += compare_pairs(list(sides[0]), list(sides[1]), seed=seed).better is not None
    return alarms


def test_pairs_without_a_difference_have_no_winner_but_for_one_in_twenty() -> None:
    alarms = false_alarms(60, 200, 0.4)
    assert stats.binomtest(alarms, 60, 0.05).pvalue > 0.01, alarms


@pytest.mark.soak("a minute; make test runs 60 pairs")
def test_a_thousand_pairs_without_a_difference() -> None:
    assert 40 <= false_alarms(1000, 400, 0.4) <= 60


@pytest.mark.soak("hundreds of permutation tests; make test runs test_no_winner_below_the_smallest_difference")
def test_a_detectable_difference_is_found_four_times_of_five() -> None:
    random = np.random.default_rng(11)
    true = detectable_difference(1 / math.sqrt(100), 100)
    results = [judge(list(random.normal(true, 1.0, size=100)), seed=k).better for k in range(150)]
    assert "second" not in results
    assert stats.binomtest(results.count("first"), 150, 0.8).pvalue > 0.01, results.count("first")


@pytest.mark.parametrize("seeds", [20, pytest.param(60, marks=pytest.mark.soak("three times as many; make test runs 20"))])
def test_no_winner_below_the_smallest_difference(seeds: int) -> None:
    random = np.random.default_rng(13)
    for seed in range(seeds):
        created = judge(list(random.normal(0.1, 1.0, size=100)), seed=seed)
        assert created.difference is not None
        assert created.smallest_difference is not None
        if abs(created.difference) < created.smallest_difference:
            assert created.better is None


def test_equal_sides_are_equal() -> None:
    same = compare_pairs([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (same.difference, same.p_value, same.better) == (0.0, 1.0, None)


@pytest.mark.parametrize(("count", "better"), [(2, None), (3, None), (4, None), (5, "first"), (200, "first")])
def test_differences_that_are_all_equal_are_as_much_evidence_as_they_are_many(count: int, better: str | None) -> None:
    """No spread is no certainty: all of three signs are equal once in four times."""
    for difference in (1.0, 0.1 + 0.2):
        result = judge([difference] * count)
        assert result.better == better
        assert judge([-difference] * count).better == ("second" if better else None)
    rounded = compare_pairs([3.5 + 0.1 * k for k in range(count)], [3.0 + 0.1 * k for k in range(count)])
    assert rounded.better == better, "a spread of rounding is none"
    clustered = judge([1.0] * 4 * count, groups=[k // 4 for k in range(4 * count)])
    assert clustered.better == better
    spread = judge([1.0, 1.01, 0.99, 1.0])
    assert spread.better == "first", "a spread that is seen is judged by Student's t"
