"""The rewards that come with the program. Each function takes options and returns a reward."""

import re
from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.training.align.reward_functions import Reward


def _text(record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise KeyError(f"the prompt's record has no field {field!r}; it has {', '.join(record) or 'none'}")
    return str(record[field])


def exact_match(*, field: str = "answer", ignore_case: bool = False, contains: bool = False) -> Reward:
    """1 where the answer is the text of the record's `field`, white space around it apart; `contains`: where it holds it."""

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        wanted, given = _text(record, field).strip(), answer.strip()
        if ignore_case:
            wanted, given = wanted.casefold(), given.casefold()
        return float(wanted in given if contains else wanted == given)

    return reward


def regex(*, pattern: str, field: str | None = None, flags: str = "") -> Reward:
    """1 where the pattern is found in the answer. With `field` its first group must also be the text of that field."""
    known = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}
    compiled = re.compile(pattern, sum(known[letter] for letter in flags))
    if field is not None and not compiled.groups:
        raise ValueError(f"the pattern {pattern!r} has no group to compare with {field!r}")

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        found = compiled.search(answer)
        if found is None or field is None:
            return float(found is not None)
        return float((found[1] or "").strip() == _text(record, field).strip())

    return reward


def math_verify(*, field: str = "answer") -> Reward:
    """1 where the answer's last formula equals that of the record's `field`, by the package math-verify."""
    from math_verify import parse, verify

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        # without timeouts of its own, which need SIGALRM and the main thread: the process of a reward has a time limit
        wanted = parse(_text(record, field), parsing_timeout=None)
        return float(verify(wanted, parse(answer, parsing_timeout=None), timeout_seconds=None))

    return reward


def reasoning_gym(*, task: str) -> Reward:
    """What the scorer of a task of the package reasoning-gym says, from 0 to 1; the prompt's record is the task's item."""
    from reasoning_gym import get_score_answer_fn

    score = get_score_answer_fn(task)

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        _text(record, "answer")
        return float(score(answer, record))

    return reward


def model(*, of: str) -> Reward:
    """What a reward model says of the answer: a run of `align` with `method: reward`, or a directory with one number as head.

    An empty answer is scored as well: scores have no zero, so that one without a score would win or lose its group by chance.
    """
    from ropewalk.jobs.training.align.reward.open import open_reward_model

    opened = open_reward_model(of)

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        return opened.score(record["prompt"], [answer])[0]

    return reward


def length(*, target: int, tolerance: int = 0) -> Reward:
    """1 within `tolerance` characters of `target`, and less the farther away, down to 0 at none or twice the target."""
    if target < 1:
        raise ValueError(f"target: {target} characters; it must be at least 1")

    def reward(answer: str, record: Mapping[str, Any]) -> float:
        return max(0.0, 1.0 - max(0, abs(len(answer) - target) - tolerance) / target)

    return reward
