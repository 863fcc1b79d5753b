"""The Bradley-Terry model of preferences as an objective (1952; as a reward model, 2203.02155)."""

from collections.abc import Callable

import torch
from torch import nn

from ropewalk.jobs.training.align.preferences.objective import mean_terms
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.objective import LossTerms

# P pairs, T tokens

_METRICS = (
    *("rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy", "length_chosen", "length_rejected"),
    *("reward_accuracy_longer", "reward_accuracy_shorter"),  # where the preferred answer is the longer, the shorter one
)


class RewardObjective:
    """The mean loss over pairs. A pair of no length weighs nothing."""

    metric_names = _METRICS

    def __init__(self, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Summed loss of the pairs, and their number."""
        lengths_P2, answers_P2 = batch["lengths"], batch["answers"]
        longest = max(1, int(lengths_P2.max())) if len(lengths_P2) else 1
        scores = model(input_ids=batch["input_ids"][..., :longest].flatten(0, 1), use_cache=False).logits
        scores_P2 = scores.view(lengths_P2.shape).double()
        counted_P = (lengths_P2 > 0).all(-1)
        loss_P = self.loss(scores_P2)
        rewards_P2 = scores_P2.detach()
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        right_P, longer_P = (margin_P > 0).double(), answers_P2[:, 0] - answers_P2[:, 1]
        metrics = {
            "rewards_chosen": mean_terms(rewards_P2[:, 0], counted_P),
            "rewards_rejected": mean_terms(rewards_P2[:, 1], counted_P),
            "reward_margin": mean_terms(margin_P, counted_P),
            "reward_accuracy": mean_terms(right_P, counted_P),
            "length_chosen": mean_terms(answers_P2[:, 0], counted_P),
            "length_rejected": mean_terms(answers_P2[:, 1], counted_P),
            "reward_accuracy_longer": mean_terms(right_P, counted_P & (longer_P > 0)),
            "reward_accuracy_shorter": mean_terms(right_P, counted_P & (longer_P < 0)),
        }
        return LossTerms(torch.where(counted_P, loss_P, 0.0).sum(), counted_P.sum(), metrics)
