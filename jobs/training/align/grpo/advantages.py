"""What an answer was better by than the others of its group."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.jobs.training.align.grpo_config import RewardConfig, Scale

# N answers, G answers of a group, R rewards

EPSILON = 1e-4  # added to the standard deviation, as elsewhere in the field
Rewards = NDArray[np.float64]


def total(values: Sequence[float | None], outcomes: Sequence[str], rewards: Sequence[RewardConfig], *, zero: bool) -> float:
    """The weighted sum of an answer's rewards; NaN where one of them failed, unless that counts as 0 (`zero`).

    A reward that has nothing to say of the answer is left out of its sum.
    """
    found = 0.0
    for value, outcome, reward in zip(values, outcomes, rewards, strict=True):
        if value is not None:
            found += reward.weight * value
        elif outcome != "nothing" and not zero:
            return math.nan
    return found


def advantages(rewards_N: Rewards, group_size: int, scale: Scale) -> Rewards:
    """The reward of each answer less the mean of its group, and by `scale` over a standard deviation; 0 where it is NaN.

    Answers without a reward count neither in means nor in deviations (which are over N - 1, in the group or in the batch).
    """
    grouped = rewards_N.reshape(-1, group_size)
    there = ~np.isnan(grouped)
    values = np.where(there, grouped, 0.0)
    means = values.sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
    found = np.where(there, values - means, 0.0)
    if scale == "group":
        found /= np.sqrt((found**2).sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True) - 1, 1)) + EPSILON
    elif scale == "batch":
        everywhere = rewards_N[~np.isnan(rewards_N)]
        found /= (everywhere.std(ddof=1) if len(everywhere) > 1 else 0.0) + EPSILON
    return found.reshape(-1)


def without_signal(rewards_N: Rewards, group_size: int) -> NDArray[np.bool_]:
    """For each group whether all its rewards are equal, or it has fewer than two: nothing can be learnt from it."""
    grouped = rewards_N.reshape(-1, group_size)
    low = np.where(np.isnan(grouped), np.inf, grouped).min(1)
    high = np.where(np.isnan(grouped), -np.inf, grouped).max(1)
    found: NDArray[np.bool_] = low >= high
    return found
