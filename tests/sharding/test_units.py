"""The units in which FSDP gathers a model: an untied embedding apart, and the next layer while one computes."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fill, fsdp_modules
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from tests.benchmarks.bench_growth import simulated
from tests.jobs.launch import TINY

LAYERS = 4


def model_of(device: str, *, tied: bool) -> Any:
    torch.manual_seed(0)
    shape = {**TINY, "num_hidden_layers": LAYERS, "vocab_size": 300, "tie_word_embeddings": tied}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float32)


def sharded(group: Group, reshard: str, *, tied: bool) -> Any:
    return parallelize(model_of("meta", tied=tied), group, ParallelConfig.model_validate({"reshard": reshard}), PrecisionConfig())


class Gathers(TorchDispatchMode):
    """Notes when parameters are gathered."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d" and "gather" in function.name():
            self.events.append("gather")
        return function(*args, **(kwargs or {}))


def note_products(events: list[str], number: int, module: Any, inputs: Any, output: torch.Tensor) -> None:
    events.append(f"layer {number}")
    output.register_hook(lambda _: events.append(f"back {number}"))


def test_the_next_layer_is_gathered_before_one_computes() -> None:
    with simulated(0, 4, "cpu") as group:
        model = sharded(group, "always", tied=True)
        events: list[str] = []
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.register_forward_hook(partial(note_products, events, number))
        with Gathers(events):
            model(input_ids=torch.ones(1, 8, dtype=torch.int64), use_cache=False).logits.sum().backward()
    ahead = ["gather", "gather", "gather", "layer 0", "gather", "layer 1", "gather", "layer 2", "layer 3"]
    assert events[: len(ahead)] == ahead, "the model itself, two layers, and then one before each"
    assert events[len(ahead) :] == ["gather", "gather", "back 3", "gather", "back 2", "gather", "back 1", "back 0"]


@pytest.mark.parametrize(("reshard", "tied", "apart"), [("always", False, 1), ("always", True, 0), ("never", False, 0)])
def test_an_untied_embedding_is_a_unit_of_its_own(reshard: str, *, tied: bool, apart: int) -> None:
    with simulated(0, 4, "meta") as group:
        model = sharded(group, reshard, tied=tied)
        assert len(fsdp_modules(model)) == 1 + LAYERS + apart
        assert (model.get_input_embeddings() in fsdp_modules(model)) == bool(apart)


def test_units_change_no_bit() -> None:
    gradients = []
    with process_group() as group:
        for reshard in ("always", "never"):
            model = sharded(group, reshard, tied=False)
            fill(model, model_of("cpu", tied=False), group)
            tokens = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(1))
            model(input_ids=tokens, use_cache=False).logits.logsumexp(-1).sum().backward()
            gradients.append({name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()})
    always, never = gradients
    assert all(torch.equal(always[name], never[name]) for name in always)


@pytest.mark.soak("ten seconds of imports of the compiler; test_units_change_no_bit runs the other options")
def test_compiled_layers_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored after the test
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    with simulated(0, 2, "meta") as group:
        parallelize(model_of("meta", tied=True), group, ParallelConfig(compile=True), PrecisionConfig())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
