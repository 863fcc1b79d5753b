"""What is learnt: functions from a batch of tokens to a sum of losses and the weight of that sum."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

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
        return self.losses(model, batch, "sum")

    def losses(self, model: nn.Module, batch: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        """Negative log-likelihoods in nats, one a predicted token (B*T), or their sum."""
        tokens_BT, targets_BT = batch[:, :-1], batch[:, 1:]
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction=reduction)
