"""The rollouts of a step as a batch: row k of the round is sample k of the run."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.source import Source

# L tokens of the longest row


class Rollout(NamedTuple):
    """One answer as it is learnt from."""

    prompt: list[int]
    tokens: list[int]
    log_probs: list[float]
    truncated: bool
    reward: float  # NaN where it does not count
    rewards: list[float]  # NaN where there is none
    advantage: float
    staleness: int


class RolloutSource(Source):
    """The rollouts of the next step."""

    epoch_samples, prefetchable = None, False

    def __init__(self, *, tokens_per_sample: int, num_rewards: int) -> None:
        self.tokens_per_sample, self._num_rewards = tokens_per_sample, num_rewards
        self._first, self._rollouts = 0, list[Rollout]()

    def put(self, first: int, rollouts: list[Rollout]) -> None:
        """From now on samples `first` and following can be read, and no others."""
        self._first, self._rollouts = first, rollouts

    def read(self, positions: Sequence[int]) -> Batch:
        """The rollouts at these positions, padded to the longest of them."""
        chosen = [self._rollouts[position - self._first] for position in positions]
        return _batch(chosen, self._num_rewards) if chosen else {name: one[:0] for name, one in self.filler().items()}

    def filler(self) -> Batch:
        """A row that counts for nothing."""
        nothing = Rollout([0], [0], [0.0], False, float("nan"), [float("nan")] * self._num_rewards, 0.0, 0)
        return _batch([nothing], self._num_rewards)


def _batch(rollouts: Sequence[Rollout], num_rewards: int) -> Batch:
    length = max(len(one.prompt) + len(one.tokens) - 1 for one in rollouts)
    input_ids = torch.zeros(len(rollouts), length, dtype=torch.int64)
    labels = torch.full((len(rollouts), length), IGNORE)
    log_probs = torch.zeros(len(rollouts), length)
    for row, one in enumerate(rollouts):
        start, stop = len(one.prompt) - 1, len(one.prompt) + len(one.tokens) - 1
        input_ids[row, :stop] = torch.tensor([*one.prompt, *one.tokens[:-1]])
        labels[row, start:stop] = torch.tensor(one.tokens)
        log_probs[row, start:stop] = torch.tensor(one.log_probs)
    rewards = torch.tensor([one.rewards for one in rollouts], dtype=torch.float64).reshape(len(rollouts), num_rewards)
    reward = torch.tensor([one.reward for one in rollouts], dtype=torch.float64)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "old_log_probs": log_probs,
        "advantage": torch.tensor([one.advantage for one in rollouts]),
        "reward": reward,
        "rewards": rewards,
        "learns": ~reward.isnan(),
        "truncated": torch.tensor([one.truncated for one in rollouts]),
        "staleness": torch.tensor([float(one.staleness) for one in rollouts]),
    }
