"""Cutting: what stays computes as before, whatever was cut that did nothing; and what cannot be cut says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.pruning.config import PruneConfig
from ropewalk.jobs.training.pruning.student import prune
from tests.jobs.training.pruning.test_scores import batches, make_model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.cat(batches()), use_cache=False).logits
    return result


def silence(model: Any, *, layer: int, channels: list[int], heads: list[int]) -> None:
    """Let a layer change nothing, and in all others these channels and heads be silent."""
    with torch.no_grad():
        for number, block in enumerate(model.model.layers):
            block.mlp.gate_proj.weight[channels] = 0.0
            for head in heads:
                group = head // 2
                block.self_attn.v_proj.weight[group * 8 : group * 8 + 8] = 0.0
                if block.self_attn.v_proj.bias is not None:
                    block.self_attn.v_proj.bias[group * 8 : group * 8 + 8] = 0.0
            if number == layer:
                block.mlp.down_proj.weight.zero_()
                block.self_attn.o_proj.weight.zero_()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_what_did_nothing_is_cut_and_nothing_changes(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    silence(model, layer=1, channels=[3, 40, 41], heads=[0, 1])
    before = logits(model)
    pruned = prune(model, PruneConfig(layers=2, width=61, kv_heads=1), batches())
    assert pruned.record["layers"] == [0, 2]
    config = pruned.model.config
    assert (config.num_hidden_layers, config.intermediate_size, config.num_attention_heads) == (2, 61, 2)
    assert (config.num_key_value_heads, config.head_dim) == (1, 8)
    torch.testing.assert_close(logits(pruned.model), before, rtol=1e-4, atol=1e-4)
    pruned.model.save_pretrained(tmp_path / "student")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert torch.equal(logits(opened), logits(pruned.model))
    assert torch.equal(logits(model), before), "the teacher stays as it was"


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_sizes_of_what_stays(kind: str) -> None:
    model = make_model(kind, head_dim=8)
    pruned = prune(model, PruneConfig(layers=0.67, width=0.75, heads=2, hidden=24), batches())
    after = pruned.record["after"]
    assert [after[key] for key in ("layers", "width", "heads", "kv_heads", "hidden")] == [2, 48, 2, 2, 24]
    weights = pruned.model.model.layers[0]
    assert weights.self_attn.q_proj.weight.shape == (16, 24)
    assert weights.self_attn.o_proj.weight.shape == (24, 16)
    assert weights.mlp.down_proj.weight.shape == (24, 48)
    assert pruned.model.lm_head.weight is pruned.model.model.embed_tokens.weight, "tied as before"
    assert logits(pruned.model).isfinite().all()
    assert after["parameters"] < pruned.record["before"]["parameters"]
    state, choice = model.state_dict(), pruned.choice
    rows, hidden = choice.width[choice.layers[0]], choice.hidden
    gate = state[f"model.layers.{choice.layers[0]}.mlp.gate_proj.weight"]
    assert torch.equal(weights.mlp.gate_proj.weight, gate[rows][:, hidden])


def test_heads_without_groups_go_with_their_keys() -> None:
    pruned = prune(make_model(num_key_value_heads=4), PruneConfig(heads=0.75), batches())
    assert [pruned.record["after"][key] for key in ("heads", "kv_heads")] == [3, 3]
    assert logits(pruned.model).isfinite().all()


@pytest.mark.parametrize("by", ["magnitude", "random"])
def test_scores_without_text_look_at_none(by: Any) -> None:
    config = PruneConfig(layers=2, layers_by="last", width=0.5, heads=2, hidden=16, channels_by=by)
    pruned = prune(make_model(), config, iter(()))
    assert pruned.record["layers"] == [0, 2]
    assert logits(pruned.model).isfinite().all()


def test_random_is_by_the_seed() -> None:
    def chosen(seed: int) -> list[list[int]]:
        result = prune(make_model(), PruneConfig(width=0.5, channels_by="random", seed=seed)).choice.width
        return [layer.tolist() for layer in result]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert chosen(1)[0] != chosen(1)[1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layers": 4}, "layers: 4 of 3 cannot be kept; choose at most 3"),
        ({"heads": 3}, "heads: 3 cannot be divided equally among 2 KV groups of 2 heads; choose a multiple of 2 up to 4"),
        ({"heads": 4, "kv_heads": 1}, "heads: 4 cannot be divided equally among 1 KV groups"),
    ],
)
def test_sizes_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune(make_model(), PruneConfig(**keys), batches())


@pytest.mark.parametrize("keys", [{}, {"layers": 0}, {"width": 1.5}, {"width": 0.0}])
def test_nonsense_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"nothing to prune|leaves nothing|not a fraction"):
        PruneConfig(**keys)


def test_another_architecture_is_named() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=97))
    with pytest.raises(ConfigError, match="architecture 'gpt2' is not supported, only llama, mistral"):
        prune(model, PruneConfig(layers=1), batches())
