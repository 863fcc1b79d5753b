"""GRPO as a whole: what is learnt, whoever draws it; killed at any moment; rewards that fail; what the ledger says of it all."""

import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.config_reader import load_config
from cluster.errors import ConfigError
from cluster.run.directory import RunDir
from jobs.align.config import AlignConfig
from jobs.align.rollouts.ledger import read_rollouts
from tests.jobs.align.pairs import make_model
from tests.jobs.align.rolling import grpo_config, grpo_run, prompts, write_prompts
from tests.jobs.launch import equal, events, launch, log_of, losses, start, weights

HERE = "tests.jobs.align.rolling"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl", prompts(10))


def metrics(run: RunDir, name: str) -> list[float]:
    return [line[name] for line in run.read_metrics() if name in line]


def drawn(run: RunDir) -> list[dict[str, Any]]:
    """The rollouts of the ledger that were learnt from or will be, in the order of the run."""
    rows = [row for row in read_rollouts(run).to_pylist() if row["state"] in {"used", "done"}]
    return sorted(rows, key=lambda row: (row["slot"], row["sample"]))


def check_used_once(run: RunDir, steps: int, global_batch: int = 16, group: int = 4) -> None:
    """Every rollout of the run is there once, used by its own step."""
    rows = read_rollouts(run)
    assert Counter(rows["state"].to_pylist()) == {"used": steps * global_batch}
    keys = zip(rows["slot"].to_pylist(), rows["sample"].to_pylist(), rows["step"].to_pylist(), strict=True)
    expected = {(k // group, k % group, k // global_batch) for k in range(steps * global_batch)}
    assert sorted(keys) == sorted(expected)


def test_it_learns_and_no_number_of_ranks_changes_what(model: Path, data: Path, tmp_path: Path) -> None:
    config = grpo_config(model, data, steps=25, grpo={"kl": 0.001})
    runs = [grpo_run(tmp_path, config | {"batch": {"global_batch": 16, "micro_batch": size}}) for size in (16, 3)]
    one, three = (launch(run, ranks) for run, ranks in zip(runs, (1, 3), strict=True))
    rewards = metrics(runs[0], "train/reward")
    assert sum(rewards[-5:]) / 5 > 2 * sum(rewards[:5]) / 5
    assert metrics(runs[0], "train/importance_ratio") == pytest.approx([1.0] * 25, abs=1e-4)
    assert one["prompts"] == three["prompts"] == 10
    check_used_once(runs[0], 25)
    first, other = ([row["tokens"] for row in drawn(run)[:16]] for run in runs)
    assert first == other
    for name in ("train/gradient_norm", "train/reward", "train/kl"):
        mine, theirs = (metrics(run, name)[:2] for run in runs)
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-8)
