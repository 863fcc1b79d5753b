"""The comparison with cross entropy: which runs it needs, and what is said of them."""

from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.compare import compare_pairs
from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.training.distill.baseline import CROSS_ENTROPY, DISTILLED, arms, verdict
from ropewalk.jobs.training.distill.config import DistillConfig
from tests.jobs.training.distill.test_distill import distill_config, distill_run


def test_both_sides_have_every_seed_and_differ_in_nothing_else(tmp_path: Path) -> None:
    values = distill_config("/teacher", Path("/data"), seed=7, loss="reverse_kl", baseline={"seeds": 3})
    config = DistillConfig.model_validate(values)
    result = arms(config, "the-run")
    names = [f"{CROSS_ENTROPY}, seed {seed}" for seed in (7, 8, 9)] + [f"{DISTILLED}, seed {seed}" for seed in (8, 9)]
    assert list(result) == names
    keys = config.model_dump()
    for name, arm in result.items():
        changed = {key for key, value in arm.model_dump().items() if value != keys[key]}
        assert changed <= {"alpha", "seed", "name", "baseline", "wandb"}
        assert arm.alpha == (1.0 if name.startswith(CROSS_ENTROPY) else 0.0)
        assert arm.student == config.student, "cut alike, whatever the seed"


@pytest.mark.parametrize(
    ("cross_entropy", "distilled", "message"),
    [
        ([1.0, 1.01, 0.99], [0.9, 0.912, 0.889], "Distillation is better than cross entropy on as many tokens by 0.0997"),
        ([0.9, 0.912, 0.889], [1.0, 1.01, 0.99], "Distillation is not better: cross entropy on as many tokens is better"),
        ([1.0, 1.1, 0.9], [0.99, 1.13, 0.86], "Distillation is not better: it is ahead of cross entropy"),
        ([1.0, 1.1, 0.9], [1.02, 1.05, 0.94], "Distillation is not better: it is behind cross entropy"),
    ],
)
def test_what_is_said(cross_entropy: list[float], distilled: list[float], message: str) -> None:
    result = compare_pairs(cross_entropy, distilled)
    better = {"first": DISTILLED, "second": CROSS_ENTROPY, None: None}[result.better]
    assert message in verdict(result, better)
    assert mean_error(distilled) is not None


def test_a_run_without_a_baseline_needs_no_other(tmp_path: Path) -> None:
    from ropewalk.jobs.runs.show.view import view_of

    run: RunDir = distill_run(tmp_path, distill_config("/teacher", Path("/data")))
    assert view_of(run).children() == []
    assert list(view_of(run).submit_needed([])) == []
