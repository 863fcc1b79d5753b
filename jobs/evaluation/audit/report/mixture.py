"""Weights of a mixture, moved towards the groups that the model knows worst: the key `data` of pretrain."""

import math
from collections.abc import Mapping

from ropewalk.jobs.evaluation.audit.config import MixtureConfig
from ropewalk.jobs.results.score import Score


def rebalanced(config: MixtureConfig, scores: Mapping[str, Score]) -> list[dict[str, object]]:
    """[{path, weight}]: each weight times e^(strength x excess), its factor bounded, the sum as before.

    The excess of a group is its bits per byte less the mean of all groups. It is one step of the multiplicative weights of
    DoReMi (Xie et al., 2305.10429) with the audit's figures instead of a proxy model's. Raises KeyError for an unknown group.
    """
    bits = [scores[f"subgroups/{group}/bits_per_byte"].value for group in config.groups]
    mean = sum(bits) / len(bits)
    factors = [min(max(math.exp(config.strength * (value - mean)), 1 / config.most), config.most) for value in bits]
    moved = [one.weight * factor for one, factor in zip(config.data, factors, strict=True)]
    scale = sum(one.weight for one in config.data) / sum(moved)
    return [{"path": one.path, "weight": round(weight * scale, 6)} for one, weight in zip(config.data, moved, strict=True)]
