"""Importance scores of layers, channels and heads: pure functions of activations or weights, by the papers' formulas."""

from collections.abc import Sequence

import torch

# B sequences, T tokens, H heads, D dims of a head, C channels, E hidden size, L layers


def block_influence(before_BTE: torch.Tensor, after_BTE: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos(x, y) of a layer's input and output, summed over tokens.

    Its mean is the Block Influence of ShortGPT (2403.03853).
    """
    before, after = before_BTE.double(), after_BTE.double()
    cosine_BT = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1)).clamp(min=torch.finfo(torch.float64).tiny)
    summed: torch.Tensor = (1.0 - cosine_BT).sum()
    return summed


def channel_activation(values_BTC: torch.Tensor) -> torch.Tensor:
    """Return the squared mean over tokens of |activation|, summed over sequences, [C].

    Its root is Minitron's importance of a channel with the aggregation (batch: L2, sequence: mean) (2407.14679).
    """
    return values_BTC.double().abs().mean(1).square().sum(0)


def head_activation(outputs_BTHD: torch.Tensor) -> torch.Tensor:
    """Return the squared mean over tokens of a head's output norm, summed over sequences, [H].

    Its root is Minitron's importance of a head, of its output before the output projection (2407.14679).
    """
    norms_BTH: torch.Tensor = outputs_BTHD.double().norm(dim=-1)
    return norms_BTH.mean(1).square().sum(0)


def weight_magnitude(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm of all weights of a channel: `weights` have the channels as rows, [C]."""
    squares = torch.stack([weight.double().square().sum(1) for weight in weights])
    norms: torch.Tensor = squares.sum(0).sqrt()
    return norms


def random_score(count: int, seed: int, layer: int) -> torch.Tensor:
    """Return random scores, [count]: a baseline for the others."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed * 1_000_003 + layer))


def highest(scores_C: torch.Tensor, keep: int) -> torch.Tensor:
    """Return the indices of the `keep` highest scores, ascending; of equal scores the first."""
    order = torch.sort(scores_C, descending=True, stable=True).indices
    return order[:keep].sort().values
