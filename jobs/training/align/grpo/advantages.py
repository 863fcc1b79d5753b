"""Advantages: the reward of an answer relative to the others of its group."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.jobs.training.align.grpo_config import RewardConfig, Scale

# N answers, G answers of a group, R rewards

EPSILON = 1e-4  # added to the standard deviation, as in other implementations
Rewards = NDArray[np.float64]


def total_reward(
    values: Sequence[float | None], outcomes: Sequence[str], rewards: Sequence[RewardConfig], *, zero: bool
) -> float:
    """Return the weighted sum of an answer's rewards; NaN if one of them failed, unless that counts as 0 (`zero`).

    A reward that returned None is left out of the sum.
    """
    total = 0.0
    for value, outcome, reward in zip(values, outcomes, rewards, strict=True):
        if value is not None:
            total += reward.weight * value
        elif outcome != "nothing" and not zero:
            return math.nan
    return total


def advantages(rewards_N: Rewards, group_size: int, scale: Scale) -> Rewards:
    """Return each reward minus the mean of its group, by `scale` divided by a standard deviation; 0 if the reward is NaN.

    Answers without a reward are in no mean and no deviation (over N - 1, of the group or of the batch).
    """
    grouped = rewards_N.reshape(-1, group_size)
    present = ~np.isnan(grouped)
    values = np.where(present, grouped, 0.0)
    means = values.sum(1, keepdims=True) / np.maximum(present.sum(1, keepdims=True), 1)
    result = np.where(present, values - means, 0.0)
    if scale == "group":
        result /= np.sqrt((result**2).sum(1, keepdims=True) / np.maximum(present.sum(1, keepdims=True) - 1, 1)) + EPSILON
    elif scale == "batch":
        all_rewards = rewards_N[~np.isnan(rewards_N)]
        result /= (all_rewards.std(ddof=1) if len(all_rewards) > 1 else 0.0) + EPSILON
    return result.reshape(-1)


def has_no_signal(rewards_N: Rewards, group_size: int) -> NDArray[np.bool_]:
    """Return for each group True if all its rewards are equal, or fewer than two are there: no gradient comes from it."""
    grouped = rewards_N.reshape(-1, group_size)
    low = np.where(np.isnan(grouped), np.inf, grouped).min(1)
    high = np.where(np.isnan(grouped), -np.inf, grouped).max(1)
    equal: NDArray[np.bool_] = low >= high
    return equal
