"""The losses of preference methods, as in the papers: functions of the log-probabilities of answers.

DPO 2305.18290, robust DPO 2403.00409, IPO 2310.12036, KTO 2402.01306, ORPO 2403.07691, SimPO 2405.14734,
length-normalised DPO 2411.15124 (Tulu 3). Conservative label smoothing: Mitchell, a note on DPO with noisy preferences.

The keyword arguments of a loss are keys of the job file; METHODS in `align/methods.py` names them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid, softplus

# P pairs; every tensor is [P] or [P, 2] with the preferred answer first


class Answers(NamedTuple):
    """The arguments of a loss of pairs."""

    log_probs: torch.Tensor  # [P, 2], of each answer, summed over its tokens, in nats
    reference: torch.Tensor  # [P, 2], those of the reference; zeros without one
    lengths: torch.Tensor  # [P, 2], tokens of each answer, at least 1


class Scored(NamedTuple):
    """The loss of each pair, and the implied rewards of its answers."""

    loss: torch.Tensor  # [P]
    rewards: torch.Tensor  # [P, 2]


PairLoss = Callable[[Answers], Scored]


def _difference(values_P2: torch.Tensor) -> torch.Tensor:
    return values_P2[:, 0] - values_P2[:, 1]


def _log_ratios(answers: Answers, *, normalized: bool) -> torch.Tensor:
    ratios_P2 = answers.log_probs - answers.reference
    return ratios_P2 / answers.lengths if normalized else ratios_P2


def dpo(
    answers: Answers, *, beta: float, loss: str = "sigmoid", label_smoothing: float = 0.0, length_normalized: bool = False
) -> Scored:
    """-log sigmoid(h) with h = β (log-ratio chosen - log-ratio rejected); with smoothing ε, that pairs are swapped:
    (1-ε) -log sigmoid(h) + ε -log sigmoid(-h), or the unbiased ((1-ε) -log sigmoid(h) - ε -log sigmoid(-h)) / (1-2ε).
    """
    rewards_P2 = beta * _log_ratios(answers, normalized=length_normalized)
    margin_P = _difference(rewards_P2)
    right_P, wrong_P = -logsigmoid(margin_P), -logsigmoid(-margin_P)
    if loss == "robust":
        return Scored(((1 - label_smoothing) * right_P - label_smoothing * wrong_P) / (1 - 2 * label_smoothing), rewards_P2)
    return Scored((1 - label_smoothing) * right_P + label_smoothing * wrong_P, rewards_P2)


def ipo(answers: Answers, *, beta: float, length_normalized: bool = False) -> Scored:
    """(log-ratio chosen - log-ratio rejected - 1/(2β))²; β is the paper's τ."""
    ratios_P2 = _log_ratios(answers, normalized=length_normalized)
    return Scored((_difference(ratios_P2) - 1 / (2 * beta)).square(), beta * ratios_P2)


def orpo(answers: Answers, *, beta: float) -> Scored:
    """-log p(chosen) - λ log sigmoid(log odds(chosen) - log odds(rejected)), with mean log p per token; β is the paper's λ."""
    means_P2 = answers.log_probs / answers.lengths
    # log odds p/(1-p) = log p - log(1 - p); expm1 keeps the precision that 1 - p would lose, the clamp avoids log(0)
    tiny = torch.finfo(means_P2.dtype).eps
    log_odds_P2 = means_P2 - torch.log(-torch.expm1(means_P2.clamp(max=-tiny)))
    return Scored(-means_P2[:, 0] + beta * softplus(-_difference(log_odds_P2)), beta * means_P2)


def simpo(answers: Answers, *, beta: float, gamma: float | None = None) -> Scored:
    """-log sigmoid(β log p(chosen) - β log p(rejected) - gamma), with mean log p per token; gamma is half of β by default."""
    gamma = 0.5 * beta if gamma is None else gamma
    rewards_P2 = beta * answers.log_probs / answers.lengths
    return Scored(-logsigmoid(_difference(rewards_P2) - gamma), rewards_P2)


def kto(
    log_ratios_P: torch.Tensor,
    desirable_P: torch.Tensor,
    baseline: torch.Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """λ (1 - sigmoid(β (log-ratio - z)) for a desirable answer, λ (1 - sigmoid(β (z - log-ratio)) for another, [P].

    `baseline` z is an estimate of KL(model || reference), at least 0, over the whole global batch and without a gradient;
    the weights are λ of desirable and of undesirable answers.
    """
    signs_P = torch.where(desirable_P, 1.0, -1.0).to(log_ratios_P.dtype)
    good, bad = log_ratios_P.new_tensor((desirable_weight, undesirable_weight))
    weights_P = torch.where(desirable_P, good, bad)
    return weights_P * torch.sigmoid(-signs_P * beta * (log_ratios_P - baseline))


def bradley_terry(scores_P2: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """-log sigmoid(score chosen - score rejected), with probability `label_smoothing` that the pair is swapped, [P]."""
    margin_P = _difference(scores_P2)
    return -(1 - label_smoothing) * logsigmoid(margin_P) - label_smoothing * logsigmoid(-margin_P)
