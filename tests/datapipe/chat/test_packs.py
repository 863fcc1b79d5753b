"""Packing: best fit decreasing, every conversation once an epoch, a pure function of (seed, k)."""

import numpy as np
import pytest

from ropewalk.datapipe.chat.packs import Packs, best_fit_decreasing


def plain_best_fit(sizes: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    left: list[int] = []
    for item, size in enumerate(sizes):
        fitting = [(space, -number) for number, space in enumerate(left) if space >= size]
        if not fitting:
            bins.append([])
            left.append(capacity)
            fitting = [(capacity, -(len(bins) - 1))]
        number = -min(fitting)[1]
        bins[number].append(item)
        left[number] -= size
    return bins


@pytest.mark.parametrize("seed", range(5))
def test_it_is_best_fit_decreasing(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = np.sort(draw.integers(1, 65, size=300))[::-1].tolist()
    result, plain = best_fit_decreasing(sizes, 64), plain_best_fit(sizes, 64)
    assert sorted(item for pack in result for item in pack) == list(range(300))
    assert all(sum(sizes[item] for item in pack) <= 64 for pack in result)
    loads = [sorted(sum(sizes[item] for item in pack) for pack in bins) for bins in (result, plain)]
    assert loads[0] == loads[1], "of two bins with equal space either will do"


def test_every_conversation_comes_once_in_an_epoch_and_epochs_differ() -> None:
    sizes = np.random.default_rng(0).integers(1, 200, size=1000)
    packs, again = Packs(sizes, 1024, seed=3), Packs(sizes, 1024, seed=3)
    epochs = [[packs[position] for position in range(e * len(packs), (e + 1) * len(packs))] for e in range(3)]
    for epoch in epochs:
        assert sorted(item for pack in epoch for item in pack) == list(range(1000))
        assert all(sizes[pack].sum() <= 1024 for pack in epoch)
    assert epochs[0] != epochs[1]
    assert {frozenset(pack) for pack in epochs[0]} != {frozenset(pack) for pack in epochs[1]}, "other neighbours too"
    assert again[2 * len(again) + 5] == epochs[2][5], "asked in any order"
    assert Packs(sizes, 1024, seed=4)[0] != packs[0]


def test_nearly_every_position_is_used() -> None:
    lengths = np.exp(np.random.default_rng(1).normal(5.0, 0.9, size=5000)).astype(int).clip(8, 1024)
    assert Packs(lengths, 1024, seed=0).fill_ratio >= 0.98


def test_unpacked_has_one_a_sample() -> None:
    packs = Packs(np.array([3, 9, 1]), 16, seed=0, packed=False)
    assert sorted(packs[position][0] for position in range(3)) == [0, 1, 2]
    assert all(len(packs[position]) == 1 for position in range(9))
