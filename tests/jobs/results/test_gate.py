"""Conditions on scores."""

import math

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.results.gate import Condition, check_names, gate
from ropewalk.jobs.results.score import Score

BOOLQ = Score(value=0.6, standard_error=0.02, n=600, hash="h")


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        (">= 0.55 by 2se", True),  # 0.56
        (">= 0.55 by 3se", False),
        (">= 0.6", True),
        ("> 0.6", False),
        ("<= 0.6", True),
        ("<= 0.63 by 2se", False),
        ("<=0.65 by 2 se", True),
        ("< 0.6", False),
        ("== 0.6", True),
        ("== 0", False),
        (">= 1e-3", True),
    ],
)
def test_a_condition_holds_or_not(condition: str, passes: bool) -> None:
    assert gate({"boolq": condition}, {"boolq": BOOLQ}).passed is passes


@pytest.mark.parametrize(
    ("condition", "value", "n", "passes"),
    [
        (">= 0.55 by 2se", 1.0, 2, False),  # 2 / (2 + 4), by Wilson
        (">= 0.55 by 2se", 1.0, 4, False),  # 0.5
        (">= 0.55 by 2se", 1.0, 5, True),  # 0.556
        (">= 0.99 by 2se", 1.0, 100, False),
        (">= 0.99 by 2se", 1.0, 1000, True),
        (">= 0.99 by 3se", 1.0, 1000, True),
        ("<= 0.01 by 2se", 0.0, 2, False),
        ("<= 0.01 by 2se", 0.0, 1000, True),
        ("<= 1.0 by 2se", 1.0, 2, True),
        (">= 0.0 by 2se", 0.0, 2, True),
        (">= 1.0", 1.0, 2, True),  # asks for no evidence
        ("== 0", 0.0, 2, True),
        ("<= 4 by 2se", 3.7, 5, False),  # no share: 1/32 is more than the tail beyond two standard errors
        ("<= 4 by 2se", 3.7, 6, True),
        ("<= 4 by 3se", 3.7, 6, False),
        ("<= 3 by 2se", 3.7, 6, False),
    ],
)
def test_items_that_are_all_alike_are_as_much_evidence_as_they_are_many(
    condition: str, value: float, n: int, passes: bool
) -> None:
    for error in (0.0, 1e-16 * value):  # rounding is no spread
        score = Score(value=value, standard_error=error, n=n, hash="h")
        assert gate({"x": condition}, {"x": score}).passed is passes


def test_a_failed_gate_tells_the_interval_of_items_that_are_all_alike() -> None:
    result = gate({"x": ">= 0.55 by 2se", "y": "<= 4 by 2se"}, {"x": alike(1.0), "y": alike(3.7)})
    assert [each.message for each in result.failed] == [
        "x is 1 (all items equal; 95% interval 0.3424 to 1, n = 2), must be >= 0.55 by 2se",
        "y is 3.7 (all items equal and too few to decide, n = 2), must be <= 4 by 2se",
    ]
    assert [each.interval for each in result.failed] == [pytest.approx((0.3424, 1.0), abs=1e-4), None]


@pytest.mark.parametrize("text", ["", "0.6", "~ 0.6", ">= many", ">= 0.5 by se", ">= 0.5 by 2", "== 0 by 2se", ">= nan"])
def test_what_is_no_condition_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"condition|equal"):
        Condition.parse(text)


def test_a_failed_gate_names_each_condition_with_figure_and_interval() -> None:
    result = gate({"boolq": ">= 0.7", "toxicity": "<= 0.1", "lucky": ">= 0 by 2se"}, {"boolq": BOOLQ, "lucky": one_item()})
    assert not result.passed
    assert [each.name for each in result.failed] == ["boolq", "toxicity", "lucky"]
    assert result.failed[0].message == "boolq is 0.6 ± 0.02 (95% interval 0.5608 to 0.6392, n = 600), must be >= 0.7"
    assert "score missing" in result.failed[1].message
    assert "no standard error" in result.failed[2].message
    assert result.plain()["failed"][0]["interval"] == pytest.approx((0.5608, 0.6392))


def test_what_is_no_number_never_passes() -> None:
    nothing = Score(value=math.nan, standard_error=None, n=0, hash="h")
    assert not gate({"x": "<= 5"}, {"x": nothing}).passed
    assert gate({}, {}).passed


def test_a_condition_on_a_score_that_will_not_be_there() -> None:
    with pytest.raises(ConfigError, match=r"unknown score 'bolq'; scores: boolq"):
        check_names(["bolq"], ["boolq"])


def one_item() -> Score:
    return Score(value=1.0, standard_error=None, n=1, hash="h")


def alike(value: float) -> Score:
    return Score(value=value, standard_error=0.0, n=2, hash="h")
