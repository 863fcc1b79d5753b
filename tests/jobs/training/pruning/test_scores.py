"""Scores against the papers' formulas, written out token by token in plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.jobs.training.pruning.activations import calibration_batches, collect, highest, weight_magnitude
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY

SIZES = {**TINY, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}


def make_model(kind: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**SIZES, "model_type": kind, **changes}), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batches(count: int = 3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randint(0, 97, (2, 11), generator=random) for _ in range(count)]


def inputs_of(model: Any, module: Any) -> list[torch.Tensor]:
    """Inputs of a module for each sequence by itself, [T, C] each."""
    observed: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: observed.append(args[0][0].double()))
    with torch.no_grad():
        for tokens in torch.cat(batches()):
            model(input_ids=tokens[None], use_cache=False)
    handle.remove()
    return observed


def test_block_influence_is_shortgpts() -> None:
    """BI_i = 1 - E over tokens of x_i · x_{i+1} / (|x_i| |x_{i+1}|)."""
    model = make_model()
    result = collect(model, batches())
    influence = []
    for number in range(3):
        here = torch.cat(inputs_of(model, model.model.layers[number]))
        after = inputs_of(model, model.model.layers[number + 1] if number < 2 else model.model.norm)
        ratios = [(x @ y / (x.norm() * y.norm())).item() for x, y in zip(here, torch.cat(after), strict=True)]
        influence.append(1 - sum(ratios) / len(ratios))
    assert (result.influence / result.tokens).tolist() == pytest.approx(influence, rel=1e-5)


def test_channels_and_heads_are_minitrons() -> None:
    """The L2 norm over sequences of the mean over tokens of |activation|, for a head of its output's L2 norm."""
    model = make_model()
    result = collect(model, batches())
    hidden = torch.zeros(32, dtype=torch.float64)
    for number, layer in enumerate(model.model.layers):
        width = torch.stack([x.abs().mean(0) for x in inputs_of(model, layer.mlp.down_proj)])
        torch.testing.assert_close(result.width[number].sqrt(), width.norm(dim=0), rtol=1e-5, atol=1e-9)
        of_heads = [x.reshape(11, 4, 8).norm(dim=-1).mean(0) for x in inputs_of(model, layer.self_attn.o_proj)]
        torch.testing.assert_close(result.heads[number].sqrt(), torch.stack(of_heads).norm(dim=0), rtol=1e-5, atol=1e-9)
        for reader in (layer.mlp.gate_proj, layer.self_attn.q_proj):  # what the two norms give out
            hidden += torch.stack([x.abs().mean(0) for x in inputs_of(model, reader)]).square().sum(0)
    torch.testing.assert_close(result.hidden, hidden, rtol=1e-5, atol=1e-9)


def test_the_text_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    data = str(make_dataset(tmp_path / "data"))
    cat = torch.cat(list(calibration_batches(data, seq_len=16, sequences=7, seed=3, micro_batch=7)))
    many = torch.cat(list(calibration_batches(data, seq_len=16, sequences=9, seed=3, micro_batch=2)))
    assert cat.shape == (7, 16)
    assert torch.equal(cat, many[:7]), "the first ones are the same, however many there are"
    assert not torch.equal(cat, torch.cat(list(calibration_batches(data, seq_len=16, sequences=7, seed=4))))


def test_highest_and_magnitude() -> None:
    assert highest(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 2, 4]
    assert highest(torch.tensor([5.0, 5.0, 5.0]), 2).tolist() == [0, 1], "of equal ones the first"
    rows = weight_magnitude([torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0], [1.0]])])
    assert rows.tolist() == [5.0, 1.0]
