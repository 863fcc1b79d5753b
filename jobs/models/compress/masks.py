"""Which weights become zero: by their magnitude, or by Wanda's score (2306.11695). True: it stays.

O outputs, I inputs of a matrix.
"""

import torch

GROUP, KEPT = 4, 2  # 2:4


def wanda_score(weight_OI: torch.Tensor, input_norm_I: torch.Tensor) -> torch.Tensor:
    """|W| times the L2 norm of each input over the calibration tokens."""
    return weight_OI.abs() * input_norm_I


def of_matrix(score_OI: torch.Tensor, fraction: float) -> torch.Tensor:
    """All but the lowest scores of the whole matrix, as magnitude pruning compares them."""
    count = int(score_OI.numel() * fraction)
    lowest = score_OI.flatten().argsort(stable=True)[:count]
    mask = torch.ones(score_OI.numel(), dtype=torch.bool)
    mask[lowest] = False
    return mask.reshape(score_OI.shape)


def of_rows(score_OI: torch.Tensor, fraction: float) -> torch.Tensor:
    """All but the lowest scores of each row, as Wanda compares them."""
    count = int(score_OI.shape[1] * fraction)
    lowest = score_OI.argsort(dim=1, stable=True)[:, :count]
    return torch.ones_like(score_OI, dtype=torch.bool).scatter_(1, lowest, False)


def two_of_four(score_OI: torch.Tensor) -> torch.Tensor:
    """The two highest of every four neighbours of a row. The number of inputs is a multiple of 4."""
    groups = score_OI.reshape(score_OI.shape[0], -1, GROUP)
    lowest = groups.argsort(dim=2, stable=True)[..., : GROUP - KEPT]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(2, lowest, False).flatten(1)
