"""A loss that is not a number, or jumps: recorded, and answered by the policy; never a silent NaN run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.run.directory import RunDir
from jobs.training.config import AnomalyConfig
from jobs.training.spike import LossSpikeDetector
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import events, launch, log_of, losses, make_run, pretrain_config, start, weights

BAD_STEP = 5  # of 8 samples each
BAD_SAMPLE = str((BAD_STEP - 1) * 8 + 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


def run_with(data: Path, root: Path, policy: str, **changes: Any) -> RunDir:
    config = pretrain_config(data, steps=8, checkpoint={"every_steps": 2}, anomaly={"policy": policy}, **changes)
    return make_run(root, config)


def test_stop_ends_the_run_for_good(data: Path, tmp_path: Path) -> None:
    run = run_with(data, tmp_path, "stop")
    assert start(run, 2, TEST_HOOK="bad_sample", BAD_SAMPLE=BAD_SAMPLE, BAD_LOSS="nan").wait() == [42, 42]
    assert events(run, "anomaly")[0]["step"] == BAD_STEP
    assert "step 5 (samples 32..39): the loss is nan" in log_of(run)
    assert max(losses(run)) == BAD_STEP - 1


def test_skip_leaves_the_batch_out(data: Path, tmp_path: Path) -> None:
    run = run_with(data, tmp_path, "skip")
    results = launch(run, 2, TEST_HOOK="bad_sample", BAD_SAMPLE=BAD_SAMPLE, BAD_LOSS="nan")
    assert results["step"] == 8
    assert sorted(losses(run)) == [1, 2, 3, 4, 6, 7, 8]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())


def test_rollback_goes_back_and_past_the_bad_batch(data: Path, tmp_path: Path) -> None:
    run = run_with(data, tmp_path, "rollback")
    results = launch(run, 2, TEST_HOOK="bad_sample", BAD_SAMPLE=BAD_SAMPLE, BAD_LOSS="inf")
    assert [event["step"] for event in events(run, "resumed")] == [4]
    assert results["step"] == 8
    positions = [line["train/position"] for line in run.read_metrics() if "train/position" in line]
    assert positions == [8, 16, 24, 32, 48, 56, 64, 72]
    assert all(map(math.isfinite, losses(run).values()))


def test_rollback_without_an_earlier_checkpoint_goes_to_the_beginning(data: Path, tmp_path: Path) -> None:
    run = run_with(data, tmp_path, "rollback")
    launch(run, 1, TEST_HOOK="bad_sample", BAD_SAMPLE="9", BAD_LOSS="nan")
    assert [event["step"] for event in events(run, "resumed")] == [0]


def test_a_spike_is_an_anomaly_too() -> None:
    detector, config = LossSpikeDetector(), AnomalyConfig(spike_factor=2.0)
    assert detector.check(1e9, 1.0, config) is None  # the mean says nothing yet
    for _ in range(30):
        detector.update(4.0)
    assert detector.check(7.9, 1.0, config) is None
    assert "2.1 times its running mean" in str(detector.check(8.4, 1.0, config))
    assert detector.check(8.4, 1.0, AnomalyConfig(spike_factor=None)) is None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_number_is_an_anomaly_at_once(loss: float, norm: float) -> None:
    assert LossSpikeDetector().check(loss, norm, AnomalyConfig()) is not None
