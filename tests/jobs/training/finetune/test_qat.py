"""Quantization-aware training: what a run scores is what leaves it, on a grid that compression leaves as it is."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.models.compress.quantize import by_compressed_tensors
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.loop.architecture.grid import (
    RoundedLinear,
    check_grid,
    layer_matrices,
    on_grid,
    scales,
    train_on_grid,
)
from ropewalk.jobs.training.loop.model_keys import GridConfig
from ropewalk.jobs.training.loop.weights.export import export
from tests.jobs.launch import launch, weights
from tests.jobs.tiny import tiny_model
from tests.jobs.training.finetune.chats import chats, finetune_config, make_base, make_run, write_lines

INT8, INT4 = GridConfig(type="int8"), GridConfig(type="int4", group_size=8)


@pytest.mark.parametrize("grid", [INT8, INT4], ids=lambda grid: grid.type)
def test_the_grid_is_the_nearest_and_stays(grid: GridConfig) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 64)[:, None]
    weight[3] = 0
    result, scale = on_grid(weight, grid), scales(weight, grid)
    assert torch.equal(on_grid(result, grid), result)
    assert torch.equal(scales(result, grid)[torch.arange(64) != 3], scale[torch.arange(64) != 3]), "the same scales again"
    each = scale.repeat_interleave(32 // scale.shape[1], dim=1)
    assert ((result - weight).abs() <= 0.5001 * each).all()
    wholes = result / each
    assert torch.equal(wholes, wholes.round())
    assert wholes.abs().max() == (127 if grid.type == "int8" else 7)


def test_gradients_go_straight_through(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "model"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_on_grid(model, INT4)
    (name, linear), *_ = layer_matrices(model)
    assert isinstance(linear, RoundedLinear)
    inputs = torch.randn(5, linear.in_features)
    linear(inputs).sum().backward()
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, inputs.sum(0).expand_as(linear.weight))
    assert model.state_dict().keys() == before.keys(), f"{name} has the parameter that it had"
    assert torch.equal(linear.weight, before[f"model.layers.{name}.weight"]), "what is trained is not rounded"


@pytest.mark.soak("a training and two compressions; make test rounds weights and gradients, and compresses models by themselves")
def test_a_run_scores_what_leaves_it_and_compression_changes_no_bit_of_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    data = write_lines(tmp_path / "chats.jsonl", chats(60))
    qat = {"type": "int4", "group_size": 8}
    run = make_run(tmp_path / "runs", finetune_config(base, data, qat=qat, steps=6, packing=False))
    results = launch(run, 2)
    folder = export(run, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = weights(run)
    for name, linear in layer_matrices(model):
        assert torch.equal(linear.weight, on_grid(linear.weight, INT4)), name
        assert torch.equal(linear.weight, on_grid(trained[f"model.model.layers.{name}.weight"], INT4)), "of what was trained"
        assert not torch.equal(linear.weight, trained[f"model.model.layers.{name}.weight"])

    again = make_run(tmp_path / "runs", finetune_config(folder, data, steps=1, packing=False, optim={"lr": 1e-12}))
    assert launch(again, 1)["validation/loss"] == pytest.approx(results["validation/loss"], rel=1e-6), "it was scored rounded"

    opened = open_model(str(folder), device=torch.device("cpu"))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    plain = model(input_ids=ids).logits
    directory = by_compressed_tensors(opened.model, opened, INT4, tmp_path / "packed")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(directory)(input_ids=ids).logits, plain)


def test_what_has_no_grid_is_refused(tmp_path: Path) -> None:
    keys = finetune_config(Path("/base"), Path("/data"))
    with pytest.raises(ValueError, match="qat: with lora the rounded weights are frozen"):
        FinetuneConfig.model_validate({**keys, "qat": "int8", "lora": {"rank": 4}})
    assert FinetuneConfig.model_validate({**keys, "qat": "int4"}).qat == GridConfig(type="int4")
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "model"))
    with pytest.raises(ConfigError, match=r"group_size: 48 does not divide .* \(32 inputs\)"):
        check_grid(model, GridConfig(type="int4", group_size=48))
    gpt2 = tiny_model(tmp_path / "gpt2", model_type="gpt2", n_layer=1, n_head=2, n_embd=16, n_positions=64)
    with pytest.raises(ConfigError, match="'gpt2' has no layers with matrices"):
        train_on_grid(AutoModelForCausalLM.from_pretrained(gpt2), INT8)
