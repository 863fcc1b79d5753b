"""Built-in rewards. Each function takes options and returns a reward."""

import re
from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.training.align.reward_functions import Reward


def _text(record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise KeyError(f"the prompt's record has no field {field!r}; it has {', '.join(record) or 'none'}")
    return str(record[field])


def exact_match(*, field: str = "answer", ignore_case: bool = False, contains: bool = False) -> Reward:
    """1 if the answer equals the record's `field`, ignoring surrounding white space; `contains`: if it contains it."""

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        expected, actual = _text(record, field).strip(), answer.strip()
        if ignore_case:
            expected, actual = expected.casefold(), actual.casefold()
        return float(expected in actual if contains else expected == actual)

    return reward


def regex(*, pattern: str, field: str | None = None, flags: str = "") -> Reward:
    """1 if the pattern matches in the answer. With `field` its first group must also equal that field."""
    flag_values = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
    compiled = re.compile(pattern, sum(flag_values[letter] for letter in flags))
    if field is not None and not compiled.groups:
        raise ValueError(f"the pattern {pattern!r} has no group to compare with {field!r}")

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        match = compiled.search(answer)
        if match is None or field is None:
            return float(match is not None)
        return float((match[1] or "").strip() == _text(record, field).strip())

    return reward


def math_verify(*, field: str = "answer") -> Reward:
    """1 if the answer's last formula equals that of the record's `field`, according to the package math-verify."""
    from math_verify import parse, verify

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        # without math-verify's own timeouts, which need SIGALRM and the main thread: the process has a time limit
        expected = parse(_text(record, field), parsing_timeout=None)
        return float(verify(expected, parse(answer, parsing_timeout=None), timeout_seconds=None))

    return reward


def reasoning_gym(*, task: str) -> Reward:
    """Score of a task of the package reasoning-gym, from 0 to 1; the prompt's record is the task's item."""
    from reasoning_gym import get_score_answer_fn

    score = get_score_answer_fn(task)

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        _text(record, "answer")
        return float(score(answer, record))

    return reward


def model(*, of: str) -> Reward:
    """Score of a reward model: a run of `align` with `method: reward`, or a directory of a model with a scalar head.

    An empty answer is scored as well: scores have no zero, so that an answer without one would win or lose its group by chance.
    """
    from ropewalk.jobs.training.align.reward.open import open_reward_model

    opened = open_reward_model(of)

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        return opened.score(record["prompt"], [answer])[0]

    return reward


def length(*, target: int, tolerance: int = 0) -> Reward:
    """1 within `tolerance` characters of `target`, decreasing linearly to 0 at no or twice the characters."""
    if target < 1:
        raise ValueError(f"target: {target} characters; it must be at least 1")

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        return max(0.0, 1.0 - max(0, abs(len(answer) - target) - tolerance) / target)

    return reward
