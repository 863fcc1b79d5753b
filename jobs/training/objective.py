"""What is learnt: functions from a batch of tokens to a sum of losses and the weight of that sum."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from jobs.training.losses import summed_cross_entropy

# B sequences, T predicted tokens a sequence, V vocabulary


class Objective(Protocol):
    """The loss of a step is the sum of `loss_sum` over all micro-batches of all ranks, over the sum of `weight`."""

    def weight(self, batch: torch.Tensor) -> float:
        """How much a batch counts: its number of predicted tokens."""
        ...

    def loss_sum(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """The summed loss of a batch, in nats."""
        ...


class NextToken:
    """Every token is predicted from those before it."""

    def weight(self, batch: torch.Tensor) -> float:
        """All tokens but the first of each sequence."""
        return float(batch.shape[0] * (batch.shape[1] - 1))

    def loss_sum(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Summed negative log-likelihood in nats."""
        logits_NV, targets_N = self._predict(model, batch)
        return summed_cross_entropy(logits_NV, targets_N)

    def losses(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihoods in nats, one a predicted token (B*T)."""
        logits_NV, targets_N = self._predict(model, batch)
        return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")

    def _predict(self, model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens_BT, targets_BT = batch[:, :-1], batch[:, 1:]
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        return logits_BTV.flatten(0, 1), targets_BT.flatten()
