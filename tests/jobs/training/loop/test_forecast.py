"""The forecast of a rank's memory: shards and activations as they are, and the keys that make a model fit."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.loop import head
from ropewalk.jobs.training.loop.architecture.bare_model import bare_model, empty_model, skeleton
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.forecast import memory
from ropewalk.jobs.training.loop.forecast.measure import fsdp_units, measure_model
from ropewalk.jobs.training.loop.forecast.memory import MODES, ModelShape, Passes, Unit, largest_micro_batch, rank_memory
from ropewalk.jobs.training.loop.forecast.rows import Forecast, forecast_rows
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.lora import lora_adapter
from ropewalk.sharding import fsdp
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.parallelize import parallelize
from tests.benchmarks.bench_growth import simulated
from tests.jobs.launch import TINY

SEQ_LEN = 64
SIZES = {**TINY, "vocab_size": 257, "num_hidden_layers": 6}


def meta_model(**keys: Any) -> Any:
    with torch.device("meta"):
        return bare_model(AutoConfig.for_model(**{**SIZES, **keys}), "causal_lm")


def test_constants_are_those_of_the_loop() -> None:
    assert (memory.CHUNK_TOKENS, memory.CHUNK_NUMBERS) == (head._CHUNK_TOKENS, head._CHUNK_NUMBERS)
    assert memory.SMALL_BYTES == fsdp._SMALL_BYTES


@pytest.mark.parametrize("lora", [False, True])
def test_shards_are_those_of_fsdp(lora: bool) -> None:
    adapter = lora_adapter(LoraConfig(rank=2), 0) if lora else None
    with simulated(0, 5, "cpu") as group:
        config = AutoConfig.for_model(**SIZES)
        model = parallelize(skeleton(config), group, ParallelConfig(), PrecisionConfig(), adapter=adapter)
        local = [(p.to_local().numel(), p.requires_grad) for p in model.parameters()]  # type: ignore[attr-defined]
        modules = len(fsdp.fsdp_modules(model))
    unsharded = meta_model()
    shape = measure_model(adapter(unsharded) if adapter else unsharded, SEQ_LEN, [], bf16=False, gpu=False)
    assert len(shape.units) == modules
    assert shape.numbers(5) == sum(size for size, _ in local)
    assert shape.numbers(5, trained_only=True) == sum(size for size, trained in local if trained)


def test_activations_are_those_of_a_pass_on_the_cpu() -> None:
    model = empty_model(AutoConfig.for_model(**SIZES), "causal_lm")
    others = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.zeros(2, SEQ_LEN, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=tokens, use_cache=False)
    expected = sum(size for address, size in saved.items() if address not in others)
    shape = measure_model(meta_model(), SEQ_LEN, ["none"], bf16=False, gpu=False)
    assert 2 * shape.activations["none"][0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("gpu", [pytest.param(False, marks=pytest.mark.soak("make test measures a GPU's")), True])
def test_checkpointing_keeps_fewer_activations(gpu: bool) -> None:
    shape = measure_model(meta_model(), SEQ_LEN, MODES, bf16=gpu, gpu=gpu)
    assert not shape.problem
    none, selective, full = (shape.activations[mode] for mode in MODES)
    assert none[0] > selective[0] > full[0]
    assert none[1] > selective[1] > full[1] > full[0]
    token = 6 * SEQ_LEN * SIZES["hidden_size"] * (2 if gpu else 4)
    assert token < full[0] < 2 * token, "the input of each layer, and the rotary embedding"


def test_a_deep_model_is_extrapolated_from_few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    few = measure_model(meta_model(), SEQ_LEN, ["none"], bf16=False, gpu=False)
    monkeypatch.setattr("ropewalk.jobs.training.loop.forecast.measure._MORE", 6)
    assert measure_model(meta_model(), SEQ_LEN, ["none"], bf16=False, gpu=False).activations == few.activations


def test_a_model_that_needs_values_is_unknown() -> None:
    model = meta_model()
    model.base_model.register_forward_pre_hook(lambda *_: torch.zeros(1, device="meta").item())
    shape = measure_model(model, SEQ_LEN, MODES, bf16=False, gpu=False)
    assert not shape.activations
    assert "meta tensors" in shape.problem


GIB = 2**30
LAYER, ROOT = Unit(trained=[(2**10, 2**15)]), Unit(trained=[(2**15, 2**10)])  # 32 M numbers each
SHAPE = ModelShape(
    units=[ROOT, *[LAYER] * 15],
    hidden=2**10,
    layers=15,
    vocabulary=2**15,
    head_trained=True,
    seq_len=1024,
    activations={"none": (4 * GIB, 4 * GIB), "selective": (2 * GIB, 2 * GIB), "full": (GIB // 4, GIB // 2)},
)


def config_of(memory_gib: float | None, **keys: Any) -> TrainingConfig:
    resources = {"ranks_per_node": 2, "memory_gib": memory_gib, **keys.pop("resources", {})}
    return TrainingConfig.model_validate(
        {"steps": 10, "batch": {"global_batch": 8, "micro_batch": 4}, "resources": resources, **keys}
    )


def forecast(memory_gib: float | None, **keys: Any) -> dict[str, str]:
    return dict(forecast_rows(Forecast(config_of(memory_gib, **keys), SHAPE, 0)))


def test_a_worker_of_grpo_holds_the_whole_model() -> None:
    keys = {"method": "grpo", "model": {"path": "/model"}, "data": "/data.jsonl", "steps": 10}
    config = AlignConfig.model_validate(
        {**keys, "batch": {"global_batch": 8, "micro_batch": 4}, "grpo": {"rewards": ["length"], "workers": 2}}
    )
    assert dict(forecast_rows(Forecast(config, SHAPE, 0)))["workers"].startswith(
        "each of 2 on a node holds the whole model, in fp32 2.0 GiB"
    )
    assert "workers" not in forecast(None)


def test_memory_by_kind() -> None:
    kinds = Forecast(config_of(None), SHAPE, 0).memory.kinds
    assert kinds["parameters"] == 16 * 32 * 2**20 * 4 / 2
    assert kinds["optimizer"] == 2 * kinds["parameters"]
    assert kinds["checkpoint copy"] == 3 * kinds["parameters"]
    assert kinds["gathered"] == 2 * kinds["parameters"], "2 GiB are not resharded"
    assert kinds["activations"] == 16 * GIB
    row = forecast(None)["memory"]
    assert row.startswith("about 24.")
    assert "activations 16.0 GiB" in row


def test_ranks_with_whole_experts_have_rows_for_all_tokens() -> None:
    keys = (ParallelConfig(tensor=2), ParallelConfig(tensor=2, expert=2))
    configs = (config_of(None).model_copy(update={"parallel": parallel}) for parallel in keys)
    divided, whole = (Forecast(config, SHAPE, 0).memory.kinds for config in configs)
    assert whole["activations"] == 16 * GIB > divided["activations"]
    assert {**divided, "activations": 0} == {**whole, "activations": 0}


def test_a_frozen_model_is_stored_and_gathered_beside_the_trained_one() -> None:
    beside = SHAPE.model_copy(update={"frozen": [Unit(trained=[], frozen=unit.trained) for unit in SHAPE.units]})
    memory, alone = (Forecast(config_of(None), shape, 0).memory.kinds for shape in (beside, SHAPE))
    assert memory["frozen model"] == alone["parameters"] + alone["gathered"]
    assert {**memory, "frozen model": 0} == {**alone, "frozen model": 0}
    with simulated(0, 5, "cpu") as group:
        frozen = parallelize(skeleton(AutoConfig.for_model(**SIZES)), group, ParallelConfig(), PrecisionConfig(), trainable=False)
        local = [p.to_local().numel() for p in frozen.parameters()]  # type: ignore[attr-defined]
    assert sum(unit.numbers(5) for unit in fsdp_units(meta_model().requires_grad_(False))) == sum(local)


def test_micro_batches_cost_gradients() -> None:
    whole, halves = (Forecast(config_of(None, batch={"global_batch": 8, "micro_batch": n}), SHAPE, 0).memory for n in (4, 2))
    assert halves.kinds["gradients"] > 2 * GIB > whole.kinds["gradients"]


def test_the_remedy_is_the_key_that_makes_it_fit() -> None:
    assert forecast(None)["fits"] == "unknown: set resources.memory_gib, the memory of a node"
    assert forecast(60)["fits"].startswith("yes, ")
    answer = forecast(40)["fits"]
    assert answer.startswith("no, ")
    for override in (
        "batch.micro_batch=2",
        "parallel.activation_checkpointing=selective",
        "parallel.activation_checkpointing=full",
    ):
        assert override in answer
    assert "replicate" not in answer
    assert "together" in forecast(12)["fits"]
    assert forecast(2)["fits"].endswith("choose a smaller model, or a shorter seq_len")


def test_gpus_are_those_of_the_key() -> None:
    gpus = {"gpus": 2, "ranks_per_node": None}
    assert "no GPU is visible here" in forecast(None, resources=gpus)["fits"]
    rows = forecast(None, resources=gpus, parallel={"gpu_model": "H100"})
    assert rows["fits"].startswith("yes, in 68.5 GiB")
    assert "activations modelled" in rows["memory"]
    assert "bound by computation" in rows["speed"]
    with pytest.raises(ConfigError, match="not in the table; name one of"):
        config_of(None, parallel={"gpu_model": "H1000"}).check_keys()


def test_traffic_of_sharded_copies() -> None:
    assert "traffic a step" not in forecast(None, resources={"ranks_per_node": 1})
    numbers = 16 * 32 * 2**20
    alone = forecast(None)["traffic a step"]
    assert alone == f"{(numbers * 8 / 2) / GIB:.1f} GiB from each rank within its node", "a gather and a reduction of fp32"
    nodes = forecast(None, resources={"nodes": 4}, parallel={"replicate": 4})["traffic a step"]
    each = 2 * 3 / 4 * numbers / 2 * 4 * 2  # a ring over 4 copies, of each of the two shards on a node
    assert nodes == f"{alone}, {each / GIB:.1f} GiB from each node to others"


def test_the_largest_micro_batch_that_fits() -> None:
    layout = Forecast(config_of(None), SHAPE, 0).layout
    for memory_gib, expected in [(1000, 8), (30, 4), (20, 2), (1, 1)]:
        assert largest_micro_batch(SHAPE, layout, 8, memory_gib * GIB) == expected
    assert rank_memory(SHAPE, layout, Passes.of(8, 1, 3)).total > 0
