"""Reward models: learnt at any number of ranks, exported as transformers', and asked for scores."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.training.align.preferences.source import Rows
from ropewalk.jobs.training.align.reward.open import open_reward_model
from ropewalk.jobs.training.loop.weights.export import export
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from tests.jobs.launch import launch, log_of, losses, start
from tests.jobs.training.align.formulas import reward_losses
from tests.jobs.training.align.pairs import align_config, align_run, pairs, write_pairs
from tests.jobs.training.align.test_align import row_numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl.zst", pairs(50))


def reward_run(root: Path, model: Path, data: Path, **changes: Any) -> RunDir:
    return align_run(root, align_config(model, data, method="reward", **{"checkpoint": {"every_steps": 1}, **changes}))


def test_the_loss_is_the_papers_and_no_number_of_ranks_changes_it(model: Path, data: Path, tmp_path: Path) -> None:
    first, three = (reward_run(tmp_path, model, data, steps=2) for _ in range(2))
    launch(first, 1)
    launch(three, 3)
    assert losses(three) == pytest.approx(losses(first), rel=1e-6)
    rows = Rows(first.path / "pairs/train.arrow")
    names = ("prompt", "chosen", "rejected")
    learnt = [tuple(rows.ids(row, name).tolist() for name in names) for row in row_numbers(range(1, 2), len(rows))]
    with torch.no_grad():
        wanted = reward_losses(load_model(first, 1)[0].double(), learnt).mean().item()  # type: ignore[arg-type]
    assert losses(first)[2] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(
            {}, id="all weights", marks=pytest.mark.soak("make test exports an adapter's, and all weights of other jobs")
        ),
        pytest.param({"lora": {"rank": 2}}, id="lora"),
    ],
)
def test_it_leaves_as_a_model_for_classification_and_scores_there_as_here(
    keys: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    quick = {"checkpoint": {"every_steps": 100}, "batch": {"global_batch": 7, "micro_batch": 7}}
    run = reward_run(tmp_path / "runs", model, data, steps=30, optim={"lr": 1e-2, "warmup_steps": 2}, **quick, **keys)
    results = launch(run, 1)
    assert results["validation/reward_accuracy"] > 0.8
    directory = export(run, tmp_path / "exported")
    assert AutoModelForSequenceClassification.from_pretrained(directory).config.num_labels == 1
    here, there = open_reward_model(str(run.path)), open_reward_model(str(directory))
    good, bad = here.score("3 the rope:", [" rope and twisted", " lane and twisted"])
    assert good > bad
    assert there.score("3 the rope:", [" rope and twisted", " lane and twisted"]) == pytest.approx([good, bad], rel=1e-6)
    assert math.isnan(here.score("3 the rope:", [[{"role": "user", "content": "no answer"}]])[0])


def test_what_is_no_reward_model_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a reward model"):
        open_reward_model(str(model))
    run = reward_run(tmp_path, model, data, steps=1)
    launch(run, 1)
    with pytest.raises(ConfigError, match=f"{run.id} is a reward model, which scores texts and generates none"):
        open_model(str(run.path))
    with pytest.raises(ConfigError, match="judge is a reward model"):
        open_model(str(export(run, tmp_path / "judge")))
    config = align_config(model, data) | {"model": {"run": run.id}}
    after = align_run(tmp_path, config)
    assert start(after, 1).wait() == [42]
    assert "trained a reward model" in log_of(after)
