"""Deterministic kernels are switched on in every rank, and change nothing on CPUs."""

from pathlib import Path

import pytest

from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, launch, losses, make_run, pretrain_config, weights


@pytest.mark.soak("four ranks; test_corruption_in_two_copies_is_blamed_and_leaves_no_trace compares two deterministic runs")
def test_deterministic_training_is_that_of_a_cpu(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    plain, deterministic = (
        make_run(tmp_path, pretrain_config(data, steps=4, layers_every=2, precision={"deterministic": chosen}))
        for chosen in (False, True)
    )
    launch(plain, 2)
    launch(deterministic, 2, TEST_HOOK="expect_determinism")
    assert losses(deterministic) == losses(plain)
    assert equal(weights(deterministic), weights(plain))
