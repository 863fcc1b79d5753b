"""Rewards, advantages, and the rollouts of a step as a batch: row k of the round is sample k of the run."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ropewalk.jobs.training.align.grpo_config import RewardConfig, Scale
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.source import Source

# N answers, G answers of a group, R rewards, L tokens of the longest row

EPSILON = 1e-4  # added to the standard deviation, as in other implementations
Rewards = NDArray[np.float64]


def total_reward(
    values: Sequence[float | None], outcomes: Sequence[str], rewards: Sequence[RewardConfig], *, zero: bool
) -> float:
    """Return the weighted sum of an answer's rewards that are not None; NaN if one failed, unless that counts as 0 (`zero`)."""
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


class Rollout(NamedTuple):
    """An answer with everything that training needs."""

    prompt: list[int]
    tokens: list[int]
    log_probs: list[float]
    truncated: bool
    reward: float  # NaN if it does not count
    rewards: list[float]  # NaN if there is none
    advantage: float
    staleness: int


class RolloutSource(Source):
    """The rollouts of the next step."""

    epoch_samples, prefetchable = None, False

    def __init__(self, *, tokens_per_sample: int, num_rewards: int) -> None:
        self.tokens_per_sample, self._num_rewards = tokens_per_sample, num_rewards
        self._first, self._rollouts = 0, list[Rollout]()

    def put(self, first: int, rollouts: list[Rollout]) -> None:
        """Replace the samples: from now on only `first` and the following ones can be read."""
        self._first, self._rollouts = first, rollouts

    def read(self, positions: Sequence[int]) -> Batch:
        """Return the rollouts at these positions, padded to the longest of them."""
        chosen = [self._rollouts[position - self._first] for position in positions]
        return _batch(chosen, self._num_rewards) if chosen else {name: tensor[:0] for name, tensor in self.filler().items()}

    def filler(self) -> Batch:
        nothing = Rollout([0], [0], [0.0], False, float("nan"), [float("nan")] * self._num_rewards, 0.0, 0)
        return _batch([nothing], self._num_rewards)


def _batch(rollouts: Sequence[Rollout], num_rewards: int) -> Batch:
    length = max(len(rollout.prompt) + len(rollout.tokens) - 1 for rollout in rollouts)
    input_ids = torch.zeros(len(rollouts), length, dtype=torch.int64)
    labels = torch.full((len(rollouts), length), IGNORE)
    log_probs = torch.zeros(len(rollouts), length)
    for row, rollout in enumerate(rollouts):
        start, stop = len(rollout.prompt) - 1, len(rollout.prompt) + len(rollout.tokens) - 1
        input_ids[row, :stop] = torch.tensor([*rollout.prompt, *rollout.tokens[:-1]])
        labels[row, start:stop] = torch.tensor(rollout.tokens)
        log_probs[row, start:stop] = torch.tensor(rollout.log_probs)
    rewards = torch.tensor([rollout.rewards for rollout in rollouts], dtype=torch.float64).reshape(len(rollouts), num_rewards)
    reward = torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "old_log_probs": log_probs,
        "advantage": torch.tensor([rollout.advantage for rollout in rollouts]),
        "reward": reward,
        "rewards": rewards,
        "learns": ~reward.isnan(),
        "truncated": torch.tensor([rollout.truncated for rollout in rollouts]),
        "staleness": torch.tensor([float(rollout.staleness) for rollout in rollouts]),
    }
