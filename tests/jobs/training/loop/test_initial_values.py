"""First weights that each rank sets in its shards alone: from random streams, and from a directory's files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.architecture.bare_model import empty_model, skeleton
from ropewalk.jobs.training.loop.architecture.model_record import Weights
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights import initial_values, weight_reader
from ropewalk.jobs.training.loop.weights.initial_values import DrawnWeights, record
from ropewalk.jobs.training.loop.weights.weight_reader import set_values
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import process_group
from tests.jobs.launch import SERVER
from tests.jobs.training.loop.test_zoo import ZOO

ORIGINS = ("random", "directory", "adapter", "experts")
EXPERTS: dict[str, Any] = {"vocab_size": 64, **ZOO["mixtral"]}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 257,
    **ZOO["llama"],
    "hidden_size": 30,
    "num_attention_heads": 3,
    "head_dim": 10,
}


def config_of(kind: str, **keys: Any) -> Any:
    return AutoConfig.for_model(kind, **{"vocab_size": 4096, **ZOO[kind], **keys})


@pytest.mark.parametrize("kind", sorted(ZOO))
def test_values_are_distributed_as_transformers_distributes_them(kind: str) -> None:
    """Constant parameters are equal; random ones have the same mean and deviation."""
    config = config_of(kind)
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    recording = record(skeleton(config, "causal_lm"))
    assert recording is not None
    assert [*recording] == [name for name, _ in reference.named_parameters()], "tied parameters are one"
    ours = empty_model(config)
    set_values(ours, DrawnWeights(ours, recording, 0))
    for name, wanted in reference.named_parameters():
        value = ours.get_parameter(name)
        if wanted.numel() < 8 or wanted.std() == 0:
            few = 2.0 if name.endswith("dt_bias") else 0.2  # the former is random, of four heads
            assert torch.allclose(value.mean(), wanted.mean(), atol=few), name
            continue
        error = 5 / wanted.numel() ** 0.5  # five standard errors
        assert abs(value.mean() - wanted.mean()) <= error * 2 * wanted.std(), name
        assert abs(value.std() / wanted.std() - 1) <= 2 * error, name
    for name, buffer in reference.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer), name


def test_a_part_is_the_same_as_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("llama", pad_token_id=3)
    recording = record(skeleton(config, "causal_lm"))
    assert recording is not None
    values = []
    for piece in (1 << 18, 1000, 7919):
        monkeypatch.setattr(initial_values, "PIECE", piece)
        values.append(empty_model(config))
        set_values(values[-1], DrawnWeights(values[-1], recording, 0))
    first, *others = values
    for name, parameter in first.named_parameters():
        assert all(torch.equal(parameter, other.get_parameter(name)) for other in others), name
    assert not first.get_input_embeddings().weight[3].any(), "the padding's row is zero"
    assert torch.unique(first.get_input_embeddings().weight).numel() > 60_000, "no value repeats"


def test_an_initializer_that_is_not_elementwise_draws_its_parameter_whole() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.empty(6, 4, device="meta"))
            self.b = torch.nn.Parameter(torch.empty(5, device="meta"))

        def initialize_weights(self) -> None:
            initial_values.initializers.orthogonal_(self.a)
            initial_values.initializers.copy_(self.b, torch.arange(5.0))

    meta = Model()
    recording = record(meta)
    assert recording is not None
    full = meta.to_empty(device="cpu")
    set_values(full, DrawnWeights(full, recording, 0))
    assert torch.allclose(full.a.T @ full.a, torch.eye(4), atol=1e-5)
    assert full.b.tolist() == [0, 1, 2, 3, 4]


def test_what_is_set_past_the_initializers_is_not_recorded() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.empty(6, 4, device="meta"))

        def initialize_weights(self) -> None:
            with torch.no_grad():
                self.a.normal_()

    assert record(Model()) is None


def plan_of(origin: str, folder: Path) -> ModelPlan:
    """Plan a model whose first weights are random, or those of a directory: with an adapter and more tokens, or with experts."""
    kind, vocabulary = ("mixtral", 64) if origin == "experts" else ("llama", 263 if origin == "adapter" else 257)
    config = AutoConfig.for_model("mixtral", **EXPERTS) if kind == "mixtral" else AutoConfig.for_model(**LLAMA)
    config.vocab_size = vocabulary
    weights = None if origin == "random" else Weights(path=str(folder / kind))
    plan = ModelPlan(config=config, seq_len=16, weights=weights)
    return plan.with_lora(LoraConfig(rank=4, dora=True), 5, [257, 262]) if origin == "adapter" else plan


def rank_main(rank: int, size: int, port: int, parallel: dict[str, Any], run: Path) -> None:
    """Build the models on one rank; the last one writes the full values."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    weight_reader.LoadedWeights.read = _no_whole_model  # type: ignore[method-assign]
    config = ParallelConfig.model_validate(parallel)
    with process_group(config) as group:
        for origin in ORIGINS:
            built = build_model(plan_of(origin, run.parent), RunDir(run), group, config, PrecisionConfig())
            values = {}
            for name, parameter in built.named_parameters():
                assert isinstance(parameter, DTensor)
                values[name] = parameter.full_tensor().detach().contiguous()
            buffers = {f"buffer {name}": buffer.contiguous() for name, buffer in built.named_buffers()}
            if rank == size - 1:
                save_file(values | buffers, run.parent / f"{origin}-{size}.safetensors")


def _no_whole_model(*_: Any) -> Any:
    raise AssertionError("no rank may hold the whole model")


def save_models(folder: Path) -> None:
    torch.manual_seed(1)
    for kind, config in {"llama": AutoConfig.for_model(**LLAMA), "mixtral": AutoConfig.for_model("mixtral", **EXPERTS)}.items():
        stored = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        stored.save_pretrained(folder / kind, max_shard_size="20KB")
        assert len(json.loads((folder / kind / "model.safetensors.index.json").read_text())["weight_map"]) > 5


@pytest.mark.soak(
    "eleven ranks; test_loss_does_not_depend_on_the_world_size compares the first loss,"
    " test_saved_at_4_ranks_and_2_by_2_loaded_at_1_2_3_and_4 weights"
)
@pytest.mark.parametrize(
    "worlds",
    [
        [(1, {}), (3, {})],
        [(1, {}), (2, {}), (4, {"replicate": 2})],
    ],
    ids=["three", "more"],
)
def test_first_weights_are_bit_identical_for_any_number_of_ranks(
    worlds: list[tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    run = RunDir.create("run", {"config": {"seed": 5}}, tmp_path)
    save_models(tmp_path)
    for size, parallel in worlds:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = [SERVER.Process(target=rank_main, args=(rank, size, store.port, parallel, run.path)) for rank in range(size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            assert process.exitcode == 0
    for origin in ORIGINS:
        first, *others = [load_file(path) for path in sorted(tmp_path.glob(f"{origin}-*.safetensors"))]
        assert len(others) == len(worlds) - 1
        for other in others:
            assert other.keys() == first.keys()
            assert all(torch.equal(first[name], other[name]) for name in first), origin
        if origin in {"directory", "experts"}:
            full = AutoModelForCausalLM.from_pretrained(plan_of(origin, tmp_path).weights.path, dtype=torch.float32)  # type: ignore[union-attr]
            assert all(torch.equal(first[name], parameter) for name, parameter in full.named_parameters())
            assert all(torch.equal(first[f"buffer {name}"], buffer) for name, buffer in full.named_buffers())
