"""Each source has its exact share, in an order that depends on the seed alone."""

import numpy as np
import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.loader.mixture import BLOCK, locate, quotas


def test_shares_are_exact_in_every_block() -> None:
    counts = quotas([5.0, 3.0, 2.0])
    assert counts.tolist() == [5000, 3000, 2000]
    for block in (0, 1, 17):
        sources, _ = locate(np.arange(block * BLOCK, (block + 1) * BLOCK), counts, 3)
        assert np.bincount(sources).tolist() == [5000, 3000, 2000]


def test_remainders_are_settled_and_add_up() -> None:
    assert quotas([1.0, 1.0, 1.0]).tolist() == [3334, 3333, 3333]
    assert int(quotas([0.1, 0.7, 1e-3, 3.3]).sum()) == BLOCK


def test_each_source_counts_up_without_gaps() -> None:
    counts = quotas([0.7, 0.2, 0.1])
    sources, within = locate(np.arange(3 * BLOCK), counts, 8)
    for source in range(3):
        mine = within[sources == source]
        assert np.array_equal(np.sort(mine), np.arange(3 * counts[source]))


def test_sources_are_mixed_from_the_first_samples_on() -> None:
    sources, _ = locate(np.arange(400), quotas([0.5, 0.5]), 0)
    assert 150 < int(sources.sum()) < 250


def test_pure_and_by_seed() -> None:
    counts = quotas([0.5, 0.5])
    once, again = locate(np.arange(1000), counts, 4), locate(np.arange(990, 1000), counts, 4)
    assert np.array_equal(once[0][990:], again[0])
    assert np.array_equal(once[1][990:], again[1])
    assert not np.array_equal(once[0], locate(np.arange(1000), counts, 5)[0])


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [float("nan")], [float("inf"), 1.0]])
def test_weights_that_mean_nothing(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        quotas(weights)


def test_a_weight_too_small_to_be_sampled() -> None:
    with pytest.raises(ConfigError, match="source 1 is too small"):
        quotas([1.0, 1e-9])
