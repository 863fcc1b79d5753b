"""The shuffle is a bijection, differs by seed and epoch, and looks like chance."""

import numpy as np
import pytest

from ropewalk.datapipe.loader.order import WINDOW_RUNS, permute, permute_runs


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 1023, 1024, 1025, 4097, 65_536, 99_991])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (2**32 - 1, 7)])
def test_every_index_goes_to_exactly_one_place(n: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_no_memory_of_the_size_of_the_range() -> None:
    n = 10**15
    order = permute(np.arange(1000) + n // 2, n, 3, 4)
    assert len(np.unique(order)) == 1000
    assert order.min() >= 0
    assert order.max() < n
    assert abs(order.mean() / n - 0.5) < 0.05


def test_an_index_alone_goes_where_it_goes_among_others() -> None:
    together = permute(np.arange(5000), 5000, 11, 2)
    for index in (0, 1, 77, 4999):
        assert permute(np.array([index]), 5000, 11, 2)[0] == together[index]


def test_epochs_may_differ_within_an_array() -> None:
    indices = np.tile(np.arange(300), 3)
    epochs = np.repeat(np.arange(3), 300)
    mixed = permute(indices, 300, 5, epochs)
    for epoch in range(3):
        assert np.array_equal(mixed[epochs == epoch], permute(np.arange(300), 300, 5, epoch))


@pytest.mark.parametrize("n", [50, 1000, 100_000])
def test_seeds_and_epochs_give_other_orders(n: int) -> None:
    orders = [permute(np.arange(n), n, seed, epoch) for seed, epoch in ((0, 0), (1, 0), (0, 1), (1, 1))]
    for i, order in enumerate(orders):
        for other in orders[:i]:
            assert (order == other).mean() < 5 / n + 0.02


@pytest.mark.parametrize("n", [10, 37, 256])
def test_every_place_is_as_likely_as_any_other(n: int) -> None:
    epochs = 20_000
    first = permute(np.zeros(epochs, np.int64), n, 9, np.arange(epochs))
    last = permute(np.full(epochs, n - 1), n, 9, np.arange(epochs))
    for places in (first, last):
        counts = np.bincount(places, minlength=n)
        chi_squared = float(((counts - epochs / n) ** 2 / (epochs / n)).sum())
        assert chi_squared < (n - 1) + 5 * np.sqrt(2 * (n - 1))  # five standard deviations
    steps = (last - first) % n  # no step of its own between neighbours, except that it is not 0
    assert np.bincount(steps, minlength=n)[1:].min() > 0.6 * epochs / (n - 1)


def test_neighbours_are_torn_apart() -> None:
    order = permute(np.arange(50_000), 50_000, 1, 0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(order, np.arange(50_000))[0, 1]) < 0.03


@pytest.mark.parametrize("n", [1, 5, 63, 640, 6400, 6401, 99_991])
@pytest.mark.parametrize("run", [1, 10, 100, 1000])
def test_runs_are_a_permutation_of_which_any_part_may_be_computed(n: int, run: int) -> None:
    order = permute_runs(np.arange(n), n, run, 3, np.full(n, 2))
    assert np.array_equal(np.sort(order), np.arange(n))
    for index in {0, n // 2, n - 1}:
        assert permute_runs(np.array([index]), n, run, 3, np.array([2]))[0] == order[index]
    if n > 63:
        assert (order == permute_runs(np.arange(n), n, run, 3, np.full(n, 1))).mean() < 0.2


def test_a_window_holds_whole_runs_in_an_order_like_chance() -> None:
    n, run = 100_000, 50
    order = permute_runs(np.arange(n), n, run, 1, np.zeros(n, np.int64))
    window = order[: run * WINDOW_RUNS]
    runs, counts = np.unique(window // run, return_counts=True)
    assert (len(runs), set(counts.tolist())) == (WINDOW_RUNS, {run})
    assert abs(np.corrcoef(window[:-1], window[1:])[0, 1]) < 0.06
    firsts = np.array([order[start] // run for start in range(0, n, run * WINDOW_RUNS)])
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.5


def test_the_order_in_runs_needs_no_memory_of_the_size_of_the_range() -> None:
    n = 10**15
    order = permute_runs(np.arange(1000) + n // 2, n, 8192, 3, np.full(1000, 4))
    assert len(np.unique(order)) == 1000
    assert len(np.unique(order // 8192)) <= WINDOW_RUNS + 1


def test_the_order_is_the_same_in_every_release() -> None:
    """A resumed run must go on in the order it began with: a change here is a change of the contract."""
    assert permute(np.arange(8), 1000, 42, 3).tolist() == GOLDEN
    assert permute_runs(np.arange(8), 1000, 10, 42, np.full(8, 3)).tolist() == GOLDEN_RUNS


GOLDEN_RUNS = [905, 173, 918, 407, 512, 881, 970, 560]
GOLDEN = [841, 265, 43, 717, 128, 698, 97, 381]
