"""The ways to divide a model train the same model; what is not there yet is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ropewalk.cluster.errors import ConfigError
from ropewalk.sharding import parallelize as parallelizing
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import process_group
from ropewalk.sharding.parallelize import parallelize
from tests.ranks import run_ranks
from tests.sharding.parallel_rank import RECOMPUTABLE, model_of, rank_main, recomputing_main, train, train_recomputing


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def results_at(ranks: int, folder: Path, main: Callable[..., None], argument: Any) -> Any:
    """The result on which all ranks agree."""
    folder.mkdir()
    run_ranks(main, ranks, argument, folder)
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert all(result == results[0] for result in results)
    return results[0]


def losses_at(ranks: int, folder: Path, **parallel: Any) -> list[float]:
    losses: list[float] = results_at(ranks, folder, rank_main, parallel)
    return losses


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        pytest.param(4, {"replicate": 2}, id="hsdp"),
        pytest.param(2, {"replicate": 2}, id="copies", marks=pytest.mark.soak("make test runs two by two")),
        pytest.param(2, {}, id="sharded", marks=pytest.mark.soak("make test runs two by two")),
    ],
)
def test_copies_of_a_sharded_model_learn_alike(ranks: int, parallel: dict[str, int], tmp_path: Path) -> None:
    alone = train(ParallelConfig(), PrecisionConfig())
    assert losses_at(ranks, tmp_path / "ranks", **parallel) == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize(
    ("ranks", "replicate"),
    [
        (1, 1),
        *(
            pytest.param(
                *case,
                marks=pytest.mark.soak("make test runs one rank, and two by two in test_copies_of_a_sharded_model_learn_alike"),
            )
            for case in ((2, 1), (4, 2))
        ),
    ],
)
def test_recomputed_activations_change_nothing(ranks: int, replicate: int, tmp_path: Path) -> None:
    results = results_at(ranks, tmp_path / "ranks", recomputing_main, replicate) if ranks > 1 else train_recomputing(replicate)
    losses = {mode: losses for mode, (losses, _) in results.items()}
    assert losses["selective"] == losses["full"] == losses["none"]
    runs = {mode: dict(zip(RECOMPUTABLE, counts, strict=True)) for mode, (_, counts) in results.items()}
    products, attention, activation = RECOMPUTABLE
    steps, layers, products_a_layer = 3, 2, 7
    assert runs["none"][attention] == runs["none"][activation] == steps * layers
    assert runs["selective"] == {**runs["none"], activation: 2 * steps * layers}, "only cheap operations run again"
    # the last product of a layer is not needed in backward
    assert runs["full"][products] - runs["none"][products] == steps * layers * (products_a_layer - 1)
    assert runs["full"][attention] == runs["full"][activation] == 2 * steps * layers


def test_a_model_that_cannot_recompute_is_named() -> None:
    model = model_of("meta")
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        with process_group() as group, pytest.raises(ConfigError, match="LlamaForCausalLM cannot recompute"):
            parallelize(model, group, ParallelConfig(activation_checkpointing="full"), PrecisionConfig())
    finally:
        type(model).supports_gradient_checkpointing = before


@pytest.mark.soak("a C++ compiler's time; make test runs the other options of the same file")
@pytest.mark.slow
def test_compiled_layers_learn_alike(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs a C++ compiler")
    alone = train(ParallelConfig(), PrecisionConfig())
    assert losses_at(2, tmp_path / "compiled", compile=True) == pytest.approx(alone, rel=1e-4)
    recomputing = losses_at(2, tmp_path / "recomputing", compile=True, activation_checkpointing="selective")
    assert recomputing == pytest.approx(alone, rel=1e-4)


def test_bf16_computes_and_fp32_keeps() -> None:
    fp32 = train(ParallelConfig(), PrecisionConfig(compute="fp32"))
    bf16 = train(ParallelConfig(), PrecisionConfig(compute="bf16"))
    assert fp32 == train(ParallelConfig(), PrecisionConfig()), "on a CPU, auto is fp32"
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=2e-2)


def test_an_adapter_comes_first_and_a_frozen_model_evaluates() -> None:
    observed: list[bool] = []

    def adapter(model: Any) -> Any:
        observed.append(all(parameter.is_meta and type(parameter) is torch.nn.Parameter for parameter in model.parameters()))
        return model

    with process_group() as group:
        model = parallelize(model_of("meta"), group, ParallelConfig(), PrecisionConfig(), trainable=False, adapter=adapter)
        assert observed == [True]
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_not_there_yet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="must be 1: pipeline parallelism is not supported"):
        ParallelConfig(pipeline=2)
    with pytest.raises(ValidationError, match="shard_nodes=2 has an effect with replicate=auto only"):
        ParallelConfig(replicate=2, shard_nodes=2)


@pytest.mark.parametrize(
    ("parallel", "per_node", "divisions"),  # (copies, ranks of each) at 1, 2, 3, ... nodes
    [
        ({}, 2, [(1, 2), (1, 4), (1, 6)]),
        ({"replicate": "auto"}, 8, [(1, 8), (2, 8), (3, 8)]),
        ({"replicate": "auto", "shard_nodes": 2}, 4, [(1, 4), (1, 8), (1, 8), (2, 8), (2, 8)]),
        ({"replicate": 2}, 1, [(1, 1), (2, 1), (2, 1), (2, 2), (2, 2)]),
        ({"replicate": 4}, 2, [(2, 1), (4, 1), (4, 1), (4, 2)]),
        ({"replicate": 2, "tensor": 2}, 2, [(1, 2), (2, 2), (2, 2), (2, 4)]),
        ({"replicate": "auto", "tensor": 4}, 8, [(1, 8), (2, 8)]),
    ],
)
def test_every_number_of_nodes_divides(parallel: dict[str, Any], per_node: int, divisions: list[tuple[int, int]]) -> None:
    config = ParallelConfig.model_validate(parallel)
    for nodes, expected in enumerate(divisions, 1):
        division = config.divide(nodes * per_node, per_node)
        assert (division.copies, division.ranks_per_copy) == expected
        assert division.computing <= nodes * per_node


@pytest.mark.parametrize(
    ("kind", "native", "compute", "expected"),
    [
        ("cuda", True, "auto", torch.bfloat16),
        ("cuda", False, "auto", None),  # Volta, Turing: torch emulates it
        ("cuda", False, "bf16", torch.bfloat16),
        ("cuda", True, "fp32", None),
        ("cpu", True, "auto", None),
    ],
)
def test_auto_computes_in_bf16_where_the_gpu_has_it_itself(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    kind: str,
    native: bool,
    compute: str,
    expected: torch.dtype | None,
) -> None:
    policies: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(parallelizing, "shard", lambda *arguments: policies.append(arguments[-1]))
    group: Any = SimpleNamespace(device=torch.device(kind), is_main=True)
    caplog.set_level("INFO", parallelizing.__name__)
    parallelize(model_of("meta"), group, ParallelConfig(), PrecisionConfig.model_validate({"compute": compute}))
    assert policies[0].param_dtype == expected
    assert ("this GPU has no native bf16" in caplog.text) == (kind == "cuda" and compute == "auto" and not native)
