"""The objective of pairs: log-probabilities of both answers, their loss, and metrics."""

from typing import NamedTuple

import torch
from torch import nn

from ropewalk.jobs.training.align.preferences.losses import Answers, PairLoss
from ropewalk.jobs.training.align.preferences.reference import Reference
from ropewalk.jobs.training.loop.batch import IGNORE, Batch
from ropewalk.jobs.training.loop.head import each_token
from ropewalk.jobs.training.loop.losses import log_probability
from ropewalk.jobs.training.loop.objective import LossTerms

# B samples, A answers a sample, S = B*A sequences, T tokens
# P pairs

PAIR_METRICS = (
    *("rewards_chosen", "rewards_rejected", "reward_margin", "reward_accuracy"),
    *("logp_chosen", "logp_rejected", "length_chosen", "length_rejected"),
    *("reward_accuracy_longer", "reward_accuracy_shorter"),  # of pairs whose preferred answer is longer, shorter
)


class LogProbs(NamedTuple):
    """Log-probabilities and lengths of the answers of a batch."""

    sums: torch.Tensor  # [B, A], nats, over the answer's tokens, in float64; 0 for an answer without labels
    lengths: torch.Tensor  # [B, A], tokens that have a label


def sequences(batch: Batch) -> Batch:
    """Return the answers of a batch as sequences, [S, T], without trailing columns of padding."""
    inputs, labels = batch["input_ids"], batch["labels"]
    used_T = (labels != IGNORE).flatten(0, -2).any(0)
    length = max(1, int(used_T.nonzero().max()) + 1) if used_T.any() else 1
    return {"input_ids": inputs[..., :length].flatten(0, -2), "labels": labels[..., :length].flatten(0, -2)}


def answer_log_probs(model: nn.Module, batch: Batch) -> LogProbs:
    """Compute log p(answer | prompt) of each answer, and its length."""
    flat = sequences(batch)
    (log_probs_ST,) = each_token(model, flat, log_probability)
    shape = batch["labels"].shape[:-1]
    return LogProbs(log_probs_ST.double().sum(-1).view(shape), (flat["labels"] != IGNORE).sum(-1).view(shape))


class PairObjective:
    """The mean loss over pairs. A pair without labels has no weight."""

    def __init__(self, loss: PairLoss, reference: Reference | None, *, compared: bool) -> None:
        self.loss, self.reference, self.compared = loss, reference, compared
        self.metric_names = (*PAIR_METRICS, "kl") if compared else PAIR_METRICS

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        base_P2 = reference_log_probs(self.reference, model, batch) if self.compared else None
        log_probs = answer_log_probs(model, batch)
        counted_P = (log_probs.lengths > 0).all(-1)
        lengths_P2 = log_probs.lengths.clamp(min=1)
        answers = Answers(log_probs.sums, torch.zeros_like(log_probs.sums) if base_P2 is None else base_P2, lengths_P2)
        scored = self.loss(answers)
        metrics = pair_metrics(counted_P, scored.rewards.detach(), lengths_P2, logp=log_probs.sums.detach())
        if base_P2 is not None:
            metrics["kl"] = mean_terms((log_probs.sums.detach() - base_P2).mean(-1), counted_P)
        return LossTerms(torch.where(counted_P, scored.loss, 0.0).sum(), counted_P.sum(), metrics)


def reference_log_probs(reference: Reference | None, model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return log-probabilities of a batch's answers under the reference, [B, A]: those in the batch, else computed."""
    if reference is None:
        return batch["reference"]
    return reference(model, lambda other: answer_log_probs(other, batch).sums)


def pair_metrics(
    counted_P: torch.Tensor, rewards_P2: torch.Tensor, lengths_P2: torch.Tensor, **others_P2: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Compute metrics of pairs, as [sum, count]. Rewards are β times the log-ratios, or the method's equivalent."""
    margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    right_P, longer_P = (margin_P > 0).to(margin_P), lengths_P2[:, 0] - lengths_P2[:, 1]
    of_both = {"rewards": rewards_P2, "length": lengths_P2, **others_P2}
    return {
        **{f"{name}_chosen": mean_terms(values_P2[:, 0], counted_P) for name, values_P2 in of_both.items()},
        **{f"{name}_rejected": mean_terms(values_P2[:, 1], counted_P) for name, values_P2 in of_both.items()},
        "reward_margin": mean_terms(margin_P, counted_P),
        "reward_accuracy": mean_terms(right_P, counted_P),
        "reward_accuracy_longer": mean_terms(right_P, counted_P & (longer_P > 0)),
        "reward_accuracy_shorter": mean_terms(right_P, counted_P & (longer_P < 0)),
    }


def mean_terms(values_P: torch.Tensor, counted_P: torch.Tensor) -> torch.Tensor:
    """Return [sum, count] of the values that count, in float64."""
    kept_P = torch.where(counted_P, values_P.double(), 0.0)
    return torch.stack([kept_P.sum(), counted_P.sum().double()])
