"""GPTQ against the formula of Optimal Brain Surgeon, and that what it rounded is what a file and an engine have."""

from pathlib import Path

import gguf
import pytest
import torch

from ropewalk.jobs.inference.gguf.gguf import Calibration, verify, write_gguf
from ropewalk.jobs.inference.gguf.gguf_types import GGUF_TYPES
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.models.compress.gptq import DAMPING, gptq_as_gguf, gptq_on_grid, round_with_compensation
from ropewalk.jobs.models.compress.layers import linears
from ropewalk.jobs.training.loop.architecture.grid import on_grid
from ropewalk.jobs.training.loop.model_keys import GridConfig
from tests.jobs.tiny import tiny_model

INT4 = GridConfig(type="int4", group_size=8)


def correlated(tokens: int, inputs: int) -> torch.Tensor:
    """Inputs that tell of each other, as those of a model do."""
    torch.manual_seed(0)
    few = torch.randn(tokens, inputs // 4, dtype=torch.float64)
    return few @ torch.randn(inputs // 4, inputs, dtype=torch.float64) + 0.3 * torch.randn(tokens, inputs, dtype=torch.float64)


def by_the_formula(weight: torch.Tensor, moments: torch.Tensor, size: int) -> torch.Tensor:
    """Round a block, and shift what is not rounded yet so that it costs least: -E inv(inv(H)_bb) inv(H)_b:, H of what is left."""
    left, rounded = weight.clone(), weight.clone()
    damped = moments + torch.eye(len(moments), dtype=torch.float64) * DAMPING * moments.diagonal().mean()
    for first in range(0, weight.shape[1], size):
        inverse = torch.linalg.inv(damped[first:, first:])
        rounded[:, first : first + size] = on_grid(left[:, first : first + size], INT4)
        error = left[:, first : first + size] - rounded[:, first : first + size]
        left[:, first:] -= error @ torch.linalg.inv(inverse[:size, :size]) @ inverse[:size]
    return rounded


def test_it_is_the_formula_and_costs_less_than_rounding() -> None:
    inputs = correlated(400, 64)
    moments, weight = inputs.T @ inputs / len(inputs), torch.randn(24, 64, dtype=torch.float64)
    result = round_with_compensation(weight, moments, 8, lambda block, importance: on_grid(block, INT4))
    torch.testing.assert_close(result, by_the_formula(weight, moments, 8))

    def cost(rounded: torch.Tensor) -> float:
        return float(((weight - rounded) @ inputs.T).square().mean())

    assert cost(result) < 0.5 * cost(on_grid(weight, INT4))
    torch.testing.assert_close(
        round_with_compensation(result, moments, 8, lambda block, importance: on_grid(block, INT4)), result
    )


@pytest.mark.parametrize("moments", [torch.zeros(16, 16, dtype=torch.float64), torch.ones(16, 16, dtype=torch.float64)])
def test_inputs_that_tell_nothing_change_no_more_than_rounding(moments: torch.Tensor) -> None:
    weight = torch.randn(4, 16)
    assert torch.isfinite(round_with_compensation(weight, moments, 8, lambda block, importance: on_grid(block, INT4))).all()
    zeros = round_with_compensation(
        weight, torch.zeros(16, 16, dtype=torch.float64), 8, lambda block, importance: on_grid(block, INT4)
    )
    torch.testing.assert_close(zeros, on_grid(weight, INT4))


@pytest.mark.parametrize(("name", "biased"), [("Q4_K", False), ("Q4_0", True)])
def test_a_file_has_what_was_rounded(tmp_path: Path, name: str, biased: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "head_dim": 32}
    opened = open_model(str(tiny_model(tmp_path / "model", **sizes, attention_bias=biased)))
    texts = [torch.randint(0, opened.model.config.vocab_size, (2, 16)) for _ in range(2)]
    before = {key: linear.weight.clone() for key, linear in linears(opened.model.model.layers)}
    encoded = gptq_as_gguf(opened.model, GGUF_TYPES[name], texts)
    assert encoded.keys() == {f"model.layers.{key}" for key in before}
    written = write_gguf(opened, tmp_path / "model.gguf", name, Calibration(encoded=encoded))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(written.path).tensors}

    def weights(tensor: str) -> torch.Tensor:
        return torch.tensor(gguf.quants.dequantize(tensors[tensor].data, tensors[tensor].tensor_type))

    for number, layer in enumerate(opened.model.model.layers):
        assert torch.equal(weights(f"blk.{number}.ffn_down.weight"), layer.mlp.down_proj.weight)
        assert not torch.equal(layer.mlp.down_proj.weight, before[f"{number}.mlp.down_proj"])
        if biased:
            assert torch.equal(weights(f"blk.{number}.attn_v.bias"), layer.self_attn.v_proj.bias)
    with torch.no_grad():
        opened.model.get_input_embeddings().weight.copy_(weights("token_embd.weight"))
    assert verify(written.path, opened, name).kl < 0.01, "llama.cpp turns the queries and keys of what was rounded as it should"


def test_what_lies_on_the_grid_stays(tmp_path: Path) -> None:
    model = open_model(str(tiny_model(tmp_path / "model"))).model
    texts = [torch.randint(0, model.config.vocab_size, (2, 16))]
    gptq_on_grid(model, INT4, texts)
    once = {key: linear.weight.clone() for key, linear in linears(model.model.layers)}
    for key, linear in linears(model.model.layers):
        torch.testing.assert_close(linear.weight, on_grid(linear.weight, INT4), msg=key)
    gptq_on_grid(model, INT4, texts)
    assert all(torch.equal(linear.weight, once[key]) for key, linear in linears(model.model.layers))
