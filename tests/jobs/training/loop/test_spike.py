"""A loss that is not a number, or jumps: recorded, and answered by the policy; never a silent NaN run."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.anomalies import problem_of
from ropewalk.jobs.training.loop.config import AnomalyConfig
from ropewalk.jobs.training.loop.update.spikes import LossStatistics, SpikeDetector
from ropewalk.jobs.training.loop.update.step import StepStats
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


@pytest.mark.soak("make test runs test_rollback_goes_back_and_past_the_bad_batch")
def test_rollback_without_an_earlier_checkpoint_goes_to_the_beginning(data: Path, tmp_path: Path) -> None:
    run = run_with(data, tmp_path, "rollback")
    launch(run, 1, TEST_HOOK="bad_sample", BAD_SAMPLE="9", BAD_LOSS="nan")
    assert [event["step"] for event in events(run, "resumed")] == [0]


@pytest.mark.soak("20 rollbacks; make test plants one bad batch")
@pytest.mark.timeout(3600)
def test_twenty_bad_batches_do_not_change_what_is_learnt(data: Path, tmp_path: Path) -> None:
    steps, bad = 150, [step * 8 + step % 8 for step in range(24, 144, 6)]
    keys = {"steps": steps, "checkpoint": {"every_steps": 3}, "anomaly": {"policy": "rollback", "max_anomalies": len(bad)}}
    clean, spoilt = (make_run(tmp_path / name, pretrain_config(data, **keys)) for name in ("clean", "spoilt"))
    expected = launch(clean, 1)["validation/loss"]
    hook = {"BAD_SAMPLE": ",".join(map(str, bad)), "BAD_LOSS": "nan,inf,1000"}
    results = launch(spoilt, 1, TEST_HOOK="bad_sample", **hook)
    assert results["step"] == steps
    assert [event["position"] for event in events(spoilt, "anomaly")] == [sample // 8 * 8 for sample in bad]
    assert len(events(spoilt, "resumed")) == len(bad) == 20
    print(f"validation loss {results['validation/loss']:.4f}, of the clean run {expected:.4f}")
    assert results["validation/loss"] == pytest.approx(expected, rel=5e-3)


def detector_of(statistics: LossStatistics | None = None, **config: Any) -> SpikeDetector:
    return SpikeDetector(AnomalyConfig(**config), torch.device("cpu"), statistics)


def accepts(detector: SpikeDetector, loss: float, norm: float = 1.0) -> bool:
    return bool(detector.accept(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm, dtype=torch.float64)))


def test_a_spike_is_an_anomaly_too() -> None:
    detector = detector_of(spike_factor=2.0)
    for loss in [1e9, *[4.0] * 2000]:
        assert accepts(detector, loss), "at first the mean says nothing"
    statistics = LossStatistics.of(detector.values.tolist())
    assert statistics.mean == pytest.approx(4.0)
    assert statistics.observations == 2001
    assert accepts(detector_of(statistics, spike_factor=2.0), 7.9)
    assert not accepts(detector, 8.4)
    assert LossStatistics.of(detector.values.tolist()) == statistics, "a spike does not count"
    assert accepts(detector_of(statistics, spike_factor=None), 8.4)


def test_a_spike_is_described() -> None:
    normal = {
        "step": 5,
        "position": 40,
        "learning_rate": 0.1,
        "applied": False,
        "stop": False,
        "save_failed": False,
        "metrics": {},
    }
    stats = StepStats(**normal, loss=8.4, weight=1.0, gradient_norm=1.0, watch=LossStatistics(mean=4.0), ended=0.0)
    assert problem_of(stats, LossStatistics(mean=4.0)) == "the loss is 8.4, 2.1 times its running mean"
    assert problem_of(stats._replace(gradient_norm=math.inf), LossStatistics()) == "the gradient norm is inf"
    assert "all are masked" in problem_of(stats._replace(weight=0.0, loss=math.nan), LossStatistics())


def converging(random: np.random.Generator, spread: float, *, steps: int = 600, runs: int = 1) -> torch.Tensor:
    """Losses [steps, runs] that fall from 2 to 0.02, each harder or easier by itself (standard deviation of the logarithm)."""
    level = 0.02 + 1.98 * np.exp(-np.arange(steps) / (steps / 8))
    return torch.from_numpy(level[:, None] * np.exp(random.normal(0, spread, (runs, steps)).T))


def first_alarms(losses: torch.Tensor, **config: Any) -> list[int | None]:
    """The first step of each run that is refused."""
    detector = detector_of(**config)
    detector.values = detector.values[:, None].expand(-1, losses.shape[1])
    refused = torch.stack([~detector.accept(loss, torch.ones_like(loss)) for loss in losses])
    return [int(run.int().argmax()) if run.any() else None for run in refused.T]


@pytest.mark.parametrize("spread", [pytest.param(0.45, marks=pytest.mark.soak("make test runs more noise")), 0.55])
def test_the_noise_of_a_loss_near_zero_is_no_spike(spread: float) -> None:
    alarms = first_alarms(converging(np.random.default_rng(0), spread, runs=200))
    assert sum(alarm is not None for alarm in alarms) <= 1


@pytest.mark.parametrize(("spread", "spike"), [(0.02, 0.08), (0.2, 0.12), (0.5, 1.5)])
def test_a_spike_above_the_noise_is_an_anomaly_near_zero_too(spread: float, spike: float) -> None:
    losses = converging(np.random.default_rng(1), spread)
    assert first_alarms(torch.cat([losses, torch.tensor([[spike]])])) == [len(losses)]


@pytest.mark.parametrize("step", [50, 100, 200])
def test_a_falling_loss_is_no_noise(step: int) -> None:
    """A run that diverges while it still learns fast is seen as soon as one that has converged."""
    losses = converging(np.random.default_rng(2), 0.03)[:step]
    assert first_alarms(torch.cat([losses, 5 * losses[-1:]]), spike_factor=2.0) == [step]


def test_a_checkpoint_without_figures_of_the_noise_goes_by_the_mean() -> None:
    assert not accepts(detector_of(LossStatistics(mean=0.02, observations=500)), 0.1)


def test_a_loss_that_is_zero_or_below_breaks_no_mean() -> None:
    detector = detector_of()
    for loss in [0.0, -0.1, *[0.01, 0.0] * 20, *[-0.2] * 200]:
        assert accepts(detector, loss)
    assert accepts(detector, 0.1), "no multiple of what is negative is above it"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_number_is_an_anomaly_at_once(loss: float, norm: float) -> None:
    detector = detector_of()
    assert not accepts(detector, loss, norm)
    assert LossStatistics.of(detector.values.tolist()) == LossStatistics()
