"""Norms and histograms by layer: as computed by hand, the same at any world size, and as W&B's histograms."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.mirror.mirror import send_rest
from ropewalk.jobs.training.loop.report.layers import BINS, EDGES, layer_of
from tests.fakes.wandb_server import WandbServer
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, make_run, pretrain_config


def test_a_parameter_belongs_to_a_layer() -> None:
    assert layer_of("model.layers.7.mlp.up_proj.weight") == "layer-07"
    assert layer_of("transformer.h.11.attn.bias") == "layer-11"
    assert layer_of("model.embed_tokens.weight") == "embed_tokens"
    assert layer_of("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight") == "layer-03"
    assert layer_of("weight") == "weight"


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    """One training, on one rank and on two."""
    data = make_dataset(tmp_path / "data")
    runs = [make_run(tmp_path / "runs", pretrain_config(data, steps=4, layers_every=2)) for _ in range(2)]
    for ranks, run in enumerate(runs, 1):
        launch(run, ranks)
    return runs


def histograms(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "histograms.jsonl").read_text().splitlines()]


def test_norms_are_those_of_the_whole_step_at_any_world_size(runs: list[RunDir]) -> None:
    lines = [[line for line in run.read_metrics() if "layers/layer-00/gradient_norm" in line] for run in runs]
    assert [line["step"] for line in lines[0]] == [2, 4]
    keys = [key for key in lines[0][0] if key.startswith("layers/")]
    assert len(keys) == 2 * 4  # two layers, embeddings and the last norm
    for item, two in zip(*lines, strict=True):
        assert [item[key] for key in keys] == pytest.approx([two[key] for key in keys], rel=1e-4)
    total = next(line["train/gradient_norm"] for line in runs[0].read_metrics() if line["step"] == 4 and "train/loss" in line)
    squares = sum(lines[0][1][key] ** 2 for key in keys if key.endswith("gradient_norm"))
    assert squares**0.5 == pytest.approx(total, rel=1e-4)
    first, last = histograms(runs[0])
    assert first["edges"] == EDGES
    size = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64 + 2 * 32  # query, key and value, output, MLP, norms
    assert sum(last["counts"]["layer-00/weight"]) == sum(last["counts"]["layer-00/gradient"]) == size


@pytest.mark.soak("starts W&B; make test runs test_tables_and_pictures_are_shown_and_weights_uploaded_where_that_is_wanted")
def test_histograms_are_those_of_wandb(wandb_server: WandbServer, runs: list[RunDir]) -> None:
    first, _ = histograms(runs[0])
    send_rest(runs[0])
    shown = [line for line in wandb_server.run(runs[0].id).history if "layers/layer-00/gradient" in line]
    assert [line["train/step"] for line in shown] == [2, 4]
    assert shown[0]["layers/layer-00/gradient"]["_type"] == "histogram"
    assert shown[0]["layers/layer-00/gradient"]["values"] == first["counts"]["layer-00/gradient"]


def test_values_fall_into_bins_of_one_power_of_two() -> None:
    assert len(EDGES) == BINS + 1
    values = torch.tensor([0.0, 0.5, 0.75, 1.0, 1e9])
    exponents = torch.where(values == 0, -24, torch.frexp(values).exponent)
    places = (exponents + 23).clamp(0, BINS - 1).tolist()
    for value, position in zip(values.tolist()[1:4], places[1:4], strict=True):
        assert EDGES[position] <= value < EDGES[position + 1]
    assert places[0] == 0
    assert places[4] == BINS - 1
