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
from ropewalk.jobs.training.loop import initial_values, model
from ropewalk.jobs.training.loop.initial_values import draw_parameters, record
from ropewalk.jobs.training.loop.load_checkpoint import empty_model, skeleton
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_record import Weights
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import process_group
from tests.jobs.launch import SERVER
from tests.jobs.training.loop.test_zoo import ZOO

LLAMA = {"model_type": "llama", "vocab_size": 257, **ZOO["llama"], "hidden_size": 30, "num_attention_heads": 3, "head_dim": 10}


SCALED_IN_PLACE = {"mamba2"}  # its initialization divides a parameter: rank 0 initializes the whole model


def config_of(kind: str, **keys: Any) -> Any:
    return AutoConfig.for_model(kind, **{"vocab_size": 4096, **ZOO[kind], **keys})


@pytest.mark.parametrize("kind", sorted(ZOO.keys() - SCALED_IN_PLACE))
def test_values_are_distributed_as_transformers_distributes_them(kind: str) -> None:
    """Constant parameters are equal; random ones have the same mean and deviation."""
    config = config_of(kind)
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    recording = record(skeleton(config, "causal_lm"))
    assert recording is not None
    assert [*recording] == [name for name, _ in reference.named_parameters()], "tied parameters are one"
    ours = empty_model(config)
    draw_parameters(ours, recording, 0)
    for name, wanted in reference.named_parameters():
        value = ours.get_parameter(name)
        if wanted.numel() < 8 or wanted.std() == 0:
            assert torch.allclose(value.mean(), wanted.mean(), atol=0.2), name
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
        draw_parameters(values[-1], recording, 0)
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
    draw_parameters(full, recording, 0)
    assert torch.allclose(full.a.T @ full.a, torch.eye(4), atol=1e-5)
    assert full.b.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", sorted(SCALED_IN_PLACE))
def test_an_architecture_that_changes_values_in_place_is_not_recorded(kind: str) -> None:
    assert record(skeleton(config_of(kind), "causal_lm")) is None


def test_what_is_set_past_the_initializers_is_not_recorded() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.empty(6, 4, device="meta"))

        def initialize_weights(self) -> None:
            with torch.no_grad():
                self.a.normal_()

    assert record(Model()) is None


def rank_main(rank: int, size: int, port: int, keys: dict[str, Any], folder: Path) -> None:
    """Build the model on one rank; the last one writes the full values."""
    parallel, weights = keys["parallel"], keys["weights"]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    model.first_weights = _no_whole_model
    plan = ModelPlan(config=AutoConfig.for_model(**LLAMA), seq_len=16, weights=None if weights is None else Weights(path=weights))
    config = ParallelConfig.model_validate(parallel)
    with process_group(config) as group:
        built = build_model(plan, RunDir(folder), group, config, PrecisionConfig())
        values = {}
        for name, parameter in built.named_parameters():
            assert isinstance(parameter, DTensor)
            values[name] = parameter.full_tensor().detach().contiguous()
        buffers = {f"buffer {name}": buffer.contiguous() for name, buffer in built.named_buffers()}
    if rank == size - 1:
        save_file(values | buffers, folder / f"{size}-{len(parallel)}.safetensors")


def _no_whole_model(*_: Any) -> Any:
    raise AssertionError("no rank may hold the whole model")


@pytest.mark.parametrize("origin", ["random", "directory"])
def test_first_weights_are_bit_identical_for_any_number_of_ranks(tmp_path: Path, origin: str) -> None:
    run = RunDir.create("run", {"config": {"seed": 5}}, tmp_path)
    weights = None
    if origin == "directory":
        torch.manual_seed(1)
        stored = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA), dtype=torch.bfloat16)
        stored.save_pretrained(tmp_path / "model", max_shard_size="20KB")
        weights = str(tmp_path / "model")
        assert len(json.loads((tmp_path / "model/model.safetensors.index.json").read_text())["weight_map"]) > 5
    for size, parallel in [(1, {}), (2, {}), (3, {}), (4, {"replicate": 2})]:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        arguments = [(rank, size, store.port, {"parallel": parallel, "weights": weights}, run.path) for rank in range(size)]
        ranks = [SERVER.Process(target=rank_main, args=each) for each in arguments]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            assert process.exitcode == 0
    first, *others = [load_file(path) for path in sorted(run.path.glob("*.safetensors"))]
    assert len(others) == 3
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    if origin == "directory":
        full = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        assert all(torch.equal(first[name], parameter) for name, parameter in full.named_parameters())
        assert all(torch.equal(first[f"buffer {name}"], buffer) for name, buffer in full.named_buffers())
