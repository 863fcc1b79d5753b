"""Masks are those of the papers' formulas, written down here in plain torch; a whole pruning leaves what it promises."""

from pathlib import Path

import pytest
import torch

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.models.compress.layers import linears
from ropewalk.jobs.models.compress.methods import SparsityConfig
from ropewalk.jobs.models.compress.sparsify import importance, mask_matrix, mask_rows, sparsify, two_of_four, wanda_score, zeros
from tests.jobs.tiny import tiny_model


def scores(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))


def test_magnitude_compares_the_whole_matrix() -> None:
    weight = scores()
    mask = mask_matrix(weight.abs(), 0.5)
    limit = weight.abs().flatten().sort().values[int(weight.numel() * 0.5)]
    assert torch.equal(mask, weight.abs() >= limit)


def test_wanda_compares_each_row_by_weight_times_norm_of_input() -> None:
    weight, inputs = scores(), torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    mask = mask_rows(wanda_score(weight, inputs.norm(p=2, dim=0)), 0.25)
    for row in range(len(weight)):
        by_formula = [abs(float(weight[row, i])) * float(inputs[:, i].pow(2).sum().sqrt()) for i in range(16)]
        lowest = sorted(range(16), key=by_formula.__getitem__)[:4]
        assert mask[row].logical_not().nonzero().flatten().tolist() == sorted(lowest)


def test_two_of_four_neighbours_stay() -> None:
    weight = scores().abs()
    mask = two_of_four(weight)
    for row in range(6):
        for start in range(0, 16, 4):
            best = weight[row, start : start + 4].topk(2).indices.sort().values
            assert mask[row, start : start + 4].nonzero().flatten().tolist() == best.tolist()


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_a_pruned_model_has_so_many_zeros_and_nothing_else_changes(tmp_path: Path, name: str) -> None:
    folder = tiny_model(tmp_path / "model")
    batches = [torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(k)) for k in range(2)]
    for options in (SparsityConfig(sparsity=0.25), SparsityConfig(pattern="2:4")):
        dense, pruned = open_model(str(folder)).model, open_model(str(folder)).model
        sparsify(pruned, name, options, batches)
        assert zeros(pruned) == pytest.approx(options.fraction, abs=0.01)
        assert torch.equal(pruned.model.embed_tokens.weight, dense.model.embed_tokens.weight)
        for (_, before), (_, after) in zip(linears(dense.model.layers), linears(pruned.model.layers), strict=True):
            mask = after.weight != 0
            assert torch.equal(after.weight[mask], before.weight[mask])
            if options.pattern:
                assert torch.equal(mask.reshape(len(mask), -1, 4).sum(-1), torch.full((len(mask), mask.shape[1] // 4), 2))


def test_wanda_sees_what_the_pruned_layers_make_of_the_text(tmp_path: Path) -> None:
    """The second layer's inputs come from the pruned first layer, as an independent pass over the result confirms."""
    folder = tiny_model(tmp_path / "model")
    batches = [torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(7))]
    dense, pruned = open_model(str(folder)).model, open_model(str(folder)).model
    sparsify(pruned, "wanda", SparsityConfig(sparsity=0.5), batches)
    observed = importance(pruned, batches)  # inputs of the second layer's first matrices do not depend on the second layer
    name = "model.layers.1.self_attn.q_proj"
    norm = torch.from_numpy(observed[name]).mul(48).sqrt()
    expected = mask_rows(wanda_score(dense.get_submodule(name).weight, norm), 0.5)
    assert torch.equal(pruned.get_submodule(name).weight != 0, expected)


def test_rows_that_do_not_fill_the_pattern_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", intermediate_size=62)
    with pytest.raises(ConfigError, match=r"2:4: layers.0.mlp.down_proj \(62 inputs\) is not a multiple of 4"):
        sparsify(open_model(str(folder)).model, "magnitude", SparsityConfig(pattern="2:4"), [])
