"""Layers in float8: their rounding, their choice, equality on any number of ranks, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.models.compress.config import CompressConfig
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.float8 import float8_layers
from ropewalk.sharding.group import process_group
from ropewalk.sharding.parallelize import parallelize
from tests.ranks import run_ranks
from tests.sharding.float8_rank import float8_main
from tests.sharding.parallel_rank import model_of
from tests.torchao import needs_torchao

HIDDEN, MIDDLE = 32, 64


def reports_at(ranks: int, folder: Path, *, preset: bool = False) -> list[dict[str, Any]]:
    run_ranks(float8_main, ranks, preset, folder)
    return [json.loads((folder / f"{rank}-of-{ranks}.json").read_text()) for rank in range(ranks)]


@pytest.mark.soak(
    "imports torchao in a rank; test_layers_are_chosen_by_name_within_a_decoder_layer and"
    " test_only_sizes_that_are_multiples_of_16_are_chosen say what is rounded"
)
@needs_torchao
def test_products_are_those_of_rounded_rows(tmp_path: Path) -> None:
    (alone,) = reports_at(1, tmp_path)
    assert alone["rounded"] < 1e-6, "as e4m3 rounds rows, with scales that are powers of two"
    assert 1e-3 < alone["exact"] < 0.1
    assert alone["none"] != alone["fp32"]
    assert alone["none"] == pytest.approx(alone["fp32"], rel=1e-2)


@needs_torchao
@pytest.mark.soak("seconds of imports in five processes; make test chooses what is rounded")
@pytest.mark.slow
def test_float8_learns_as_bf16_and_on_four_ranks_as_on_one(tmp_path: Path) -> None:
    (alone,) = reports_at(1, tmp_path, preset=True)
    for report in reports_at(4, tmp_path):
        assert report["none"] == report["selective"] == pytest.approx(alone["none"], rel=1e-3)
    float8, bf16 = alone["tiny"], alone["tiny bf16"]
    assert len(float8) == 50
    assert bf16[-1] < bf16[0] - 1, "it learns"
    assert float8 == pytest.approx(bf16, rel=3e-2)
    assert sum(float8[-10:]) == pytest.approx(sum(bf16[-10:]), rel=1.5e-2)


@pytest.mark.parametrize(
    ("patterns", "count"), [(["*"], 2 * 7), (["mlp.*"], 2 * 3), (["*.down_proj", "self_attn.[qk]_proj"], 2 * 3)]
)
def test_layers_are_chosen_by_name_within_a_decoder_layer(patterns: list[str], count: int) -> None:
    assert len(float8_layers(model_of("meta"), patterns)) == count


def test_only_sizes_that_are_multiples_of_16_are_chosen() -> None:
    model = model_of("meta")
    for layer in model.model.layers:
        layer.mlp.up_proj = torch.nn.Linear(HIDDEN, MIDDLE + 8, device="meta")
    assert len(float8_layers(model, ["*"])) == 2 * 6
    with pytest.raises(ConfigError, match=r"float8_layers: \['up_proj'\] match none of self_attn.q_proj, self_attn.k_proj, "):
        float8_layers(model, ["up_proj"])
    for layer in model.model.layers:
        layer.mlp, layer.self_attn = torch.nn.Identity(), torch.nn.Linear(HIDDEN + 8, MIDDLE, device="meta")
    with pytest.raises(ConfigError, match="no linear layer of LlamaForCausalLM has two sizes that are multiples of 16"):
        float8_layers(model, ["*"])


def test_devices_without_float8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as group, pytest.raises(ConfigError, match=r"rowwise needs GPUs of compute capability 8\.9 or later"):
        parallelize(model_of("meta"), group, ParallelConfig(), PrecisionConfig(float8="rowwise"))


ROWWISE: dict[str, Any] = {"precision": {"float8": "rowwise"}}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"resources": {"gpus": 0}}, r"rowwise needs GPUs of compute capability 8\.9 or later, such as L4, L40S, H100 or B200"),
        ({"parallel": {"gpu_model": "A100"}, "resources": {"gpus": 8}}, r"compute capability 8\.9 or later"),
        ({"seq_len": 1000}, "a multiple of 16 tokens; change seq_len=1000"),
        ({"precision": {"float8": "rowwise", "compute": "fp32"}}, "returns products in bf16; remove precision.compute"),
        ({"lora": {}}, "does not combine with lora, whose frozen weights would get gradients; remove it"),
        ({"qat": "int4"}, "does not combine with qat"),
    ],
)
def test_what_does_not_combine_with_float8_is_refused_at_submission(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=sentence):
        FinetuneConfig.model_validate({"model": {"path": "dir"}, "data": "data", "steps": 2, **ROWWISE, **keys}).check_keys()


def test_a_submission_without_gpus_is_refused() -> None:
    config = PretrainConfig.model_validate({"data": "data", "steps": 2, **ROWWISE})
    config.check_keys()  # the cluster's profile may give GPUs
    with pytest.raises(ConfigError, match="rowwise needs GPUs"):
        config.preflight()


@pytest.mark.parametrize(
    ("kind", "keys", "sentence"),
    [
        (EvaluateConfig, {"model": "latest", "data": "data"}, "an evaluation does not train"),
        (CompressConfig, {"model": "latest", "data": "data", "methods": ["gguf"]}, "recovery trains in the format of `compute`"),
        (AlignConfig, {"model": {"path": "dir"}, "data": "pairs", "method": "dpo", "steps": 2}, "only the jobs pretrain and"),
    ],
)
def test_other_jobs_refuse_float8(kind: Any, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        kind.model_validate({**keys, **ROWWISE})
