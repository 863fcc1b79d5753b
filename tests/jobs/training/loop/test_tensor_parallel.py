"""Ranks that divide a model's matrices train the model that one rank trains; what cannot be divided is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.divisible import check_divisible
from ropewalk.jobs.training.loop.model_keys import LoraConfig, ModelConfig
from ropewalk.jobs.training.loop.weights.lora import lora_adapter
from ropewalk.sharding.checkpoints.stored_tensors import StoredTensors, newest_complete
from ropewalk.sharding.config import ParallelConfig, check_mesh
from ropewalk.sharding.tensor_parallel import tensor_problem, whole_sequences_reason
from tests.jobs.training.loop.tensor_rank import ALL_CASES, CASES, MODELS, Case, Cases, config_of, rank_main, whole_value
from tests.ranks import run_ranks

BOUNDS = {"torch.float64": 1e-10, "torch.float32": 3e-6}


def results_at(ranks: int, cases: list[Case], runs: dict[str, RunDir], folder: Path) -> list[dict[str, dict[str, float]]]:
    """The report of each rank."""
    run_ranks(rank_main, ranks, (cases, {name: run.path for name, run in runs.items()}), folder)
    return [json.loads((folder / f"{rank}-of-{ranks}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize(
    ("chosen", "saved", "worlds"),
    [
        pytest.param(CASES, ["llama", "qwen3_moe by expert"], (4, 2), id="some"),
        pytest.param(
            ALL_CASES,
            ["phi3", "qwen3_moe", "qwen3_moe by expert"],
            (4, 2, 3),
            id="all",
            marks=pytest.mark.soak("twenty models; make test runs three"),
        ),
    ],
)
def test_divided_models_learn_as_whole_ones_and_their_checkpoints_load_on_any_mesh(
    chosen: Cases, saved: list[str], worlds: tuple[int, ...], tmp_path: Path
) -> None:
    runs = {name: RunDir.create("test", {"job": "pretrain", "config": {}}, tmp_path / name) for name in saved}
    for run in runs.values():
        run.begin_attempt()
    for ranks in worlds:
        for rank, cases in enumerate(results_at(ranks, chosen.get(ranks, []), runs, tmp_path)):
            assert len(cases) == sum(len(names) * len(dtypes) for _, _, names, dtypes in chosen.get(ranks, []))
            for case, errors in cases.items():
                assert max(errors.values()) < BOUNDS[case.rpartition(", ")[2]], (rank, case, errors)
    for run in runs.values():
        folder, manifest = newest_complete(StoragePath(run.checkpoints))
        assert manifest.tensors.mesh == {"shard": 2, "tensor": 2}
        stored = StoredTensors(folder, manifest)
        for name, tensor in manifest.tensors.layout().tensors.items():
            assert torch.equal(stored.read(name), whole_value(name, torch.Size(tensor.shape))), name


@pytest.mark.parametrize(
    ("name", "degree", "problem"),
    [
        *((name, 2, None) for name in MODELS),
        ("llama", 3, "3 does not divide the model's 4 num_attention_heads; choose a divisor"),
        ("llama", 4, "4 does not divide the model's 2 num_key_value_heads"),
        ("phi3", 4, None),  # its attention is not divided
        ("phi3", 5, "5 does not divide model.layers.0.self_attn.o_proj.weight, whose shape is [32, 32]"),
        ("phi3", 16, "97 tokens of the vocabulary are too few for 16 ranks"),
    ],
)
def test_a_degree_that_does_not_divide_a_model_is_refused(name: str, degree: int, problem: str | None) -> None:
    answer = tensor_problem(skeleton(config_of(name)), ParallelConfig(tensor=degree))
    assert answer is None if problem is None else answer is not None and problem in answer


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        *((config, None) for config in MODELS.values()),
        ({"model_type": "qwen2_moe", "num_experts": 4}, "mlp.gate.weight is a whole parameter of a divided block"),
        (
            {"model_type": "granitemoe", "num_local_experts": 4},
            "self_attn.q_proj.weight is a matrix outside of its divided blocks",
        ),
        ({"model_type": "hrm_text"}, "its layers are not one stack"),
        ({"model_type": "phi3", "resid_pdrop": 0.1, "attention_dropout": 0.1}, "its configuration sets resid_pdrop"),
    ],
)
def test_families_whose_layers_do_not_allow_it_keep_whole_sequences(config: dict[str, Any], reason: str | None) -> None:
    keys = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}
    problem = whole_sequences_reason(
        skeleton(AutoConfig.for_model(**{**keys, "pad_token_id": None, **config})), ParallelConfig(tensor=2)
    )
    assert problem is None if reason is None else problem is not None and reason in problem


def test_divided_experts_are_not_compiled() -> None:
    bare = skeleton(config_of("qwen3_moe"))
    assert tensor_problem(bare, ParallelConfig(tensor=2)) is None
    sentence = "experts that parallel.tensor divides cannot be compiled"
    assert sentence in str(tensor_problem(bare, ParallelConfig(tensor=2, compile=True)))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (MODELS["qwen3_moe"], None),
        (MODELS["mixtral"], None),
        ({"model_type": "gpt_oss", "num_local_experts": 4}, None),
        ({**MODELS["qwen3_moe"], "num_experts": 5}, "parallel.expert: 2 does not divide model.layers.0.mlp.experts.gate_up_proj"),
        (MODELS["llama"], "parallel.expert: transformers has no plan to divide experts of models of type 'llama'"),
        ({"model_type": "minimax_m2", "num_local_experts": 4}, None),
    ],
)
def test_experts_that_cannot_be_divided_are_refused(config: dict[str, Any], problem: str | None) -> None:
    keys = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}
    bare = skeleton(AutoConfig.for_model(**{**keys, "pad_token_id": None, **config}))
    answer = tensor_problem(bare, ParallelConfig(tensor=2, expert=2))
    assert answer is None if problem is None else answer is not None and problem in answer


def test_a_family_without_a_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="no plan to divide models of type 'gpt2'"):
        check_divisible(ModelConfig.model_validate({"config": {"model_type": "gpt2", "n_layer": 1}}), ParallelConfig(tensor=2))
    check_divisible(ModelConfig.model_validate({"preset": "small"}), ParallelConfig(tensor=2, compile=True))
    with pytest.raises(ConfigError, match="2 does not divide the model's 3 num_attention_heads"):
        check_divisible(ModelConfig.model_validate({"preset": "tiny"}), ParallelConfig(tensor=2))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"lora": {"dora": True}}, "does not combine with lora.dora"),
        ({"lora": {"dropout": 0.1}}, "does not combine with lora.dropout"),
        ({"qat": "int8"}, "does not combine with qat"),
        ({"parallel": {"tensor": 2, "pipeline": 2}}, "pipeline parallelism is not supported"),
        ({"parallel": {"tensor": 2, "context": 2}}, "context parallelism is not supported"),
        ({"parallel": {"tensor": 2, "expert": 4}}, "expert=4 must be 1 or equal to tensor=2"),
        ({"parallel": {"tensor": 2, "expert": 2, "compile": True}}, "divided experts cannot be compiled"),
    ],
)
def test_what_does_not_combine_with_tensor_parallelism_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        FinetuneConfig.model_validate({"model": {"path": "dir"}, "data": "data", "steps": 2, "parallel": {"tensor": 2}, **keys})


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")  # peft, of experts
@pytest.mark.parametrize(
    ("name", "lora", "problem"),
    [
        ("llama", {"targets": ["embed_tokens"]}, "the adapter of model.embed_tokens, which has rows of tokens, cannot"),
        ("phi3", {}, "divides model.layers.0.self_attn.o_proj in a way (rowwise_split_input) that has no adapter"),
        ("qwen3_moe", {}, "divides model.layers.0.mlp.experts in a way (moe_tp_experts) that has no adapter"),
        ("qwen3_moe", {"targets": ["q_proj", "o_proj"]}, None),
    ],
)
def test_adapters_of_layers_that_are_divided_otherwise_are_refused(name: str, lora: dict[str, Any], problem: str | None) -> None:
    answer = tensor_problem(lora_adapter(LoraConfig.model_validate(lora), 0)(skeleton(config_of(name))), ParallelConfig(tensor=2))
    assert answer is None if problem is None else answer is not None and problem in answer


def test_rows_of_added_tokens_are_refused() -> None:
    adapted = lora_adapter(LoraConfig(), 0, added_tokens=[3])(skeleton(config_of("llama")))
    assert "which has rows of tokens, cannot be divided" in str(tensor_problem(adapted, ParallelConfig(tensor=2)))


def test_a_tensor_group_stays_within_a_node() -> None:
    check_mesh(ParallelConfig(tensor=2, replicate=2), Resources.model_validate({"nodes": 2, "ranks_per_node": 2}))
    with pytest.raises(ConfigError, match="3 ranks of a node cannot be divided into groups of 2"):
        check_mesh(ParallelConfig(tensor=2), Resources.model_validate({"nodes": 2, "ranks_per_node": 3}))
    with pytest.raises(ConfigError, match="cannot be divided into 2 copies"):
        check_mesh(ParallelConfig(tensor=2, replicate=2), Resources.model_validate({"nodes": 1, "ranks_per_node": 2}))
