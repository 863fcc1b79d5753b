"""A step copies nothing to the host: figures are read one step late, and the device itself leaves out what is not normal."""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

from ropewalk.jobs.training.loop import documents, head, tail
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.objective import NextTokenZLoss, TermSums
from ropewalk.jobs.training.loop.report.layers import LayerWatch
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import MovingAverage, TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding import host_copy
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.host_copy import HostCopy
from ropewalk.sharding.parallelize import parallelize
from tests.benchmarks.bench_growth import simulated
from tests.sharding.parallel_rank import model_of

RECOMPUTED = {"parallel": {"activation_checkpointing": "full", "reshard": "always", "accumulate": "sharded"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "full recomputation, zeros kept": {**RECOMPUTED, "keep_zeros": True},
}
MORE_VARIANTS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "moments in bf16": {"precision": {"optimizer": "bf16"}, "optim": {"name": "muon", "grad_clip": 0}},
    "muon": {"optim": {"name": "muon"}},
    "full recomputation": RECOMPUTED,
    "zeros kept": {"keep_zeros": True},
}
every_variant = pytest.mark.parametrize(
    "keys",
    [
        *(pytest.param(keys, id=name) for name, keys in VARIANTS.items()),
        *(
            pytest.param(keys, id=name, marks=pytest.mark.soak("make test runs it beside other keys"))
            for name, keys in MORE_VARIANTS.items()
        ),
    ],
)


def train_step_of(group: Group, keys: dict[str, Any]) -> TrainStep:
    batch = {"global_batch": 2 * group.world_size, "micro_batch": 1}
    config = PretrainConfig.model_validate({"data": "none", "steps": 10, "batch": batch, **keys})
    model = parallelize(skeleton(model_of("meta").config, "causal_lm"), group, config.parallel, config.precision)
    if group.device.type == "cpu" and group.world_size == 1:
        fill(model, model_of("cpu"), group)
    moments = torch.bfloat16 if config.precision.optimizer == "bf16" else torch.float32
    optimizer = make_optimizer(model, config.optim, moments)
    state = TrainState(model, optimizer, ema=MovingAverage(model, optimizer, 0.99))
    filler = {name: each[:1] for name, each in batch_on(group.device).items()}
    return TrainStep(state, NextTokenZLoss(1e-4), filler, config, group, dropout=True)


def batch_on(device: torch.device) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


def finish(step: TrainStep, sums: Any, watch: LayerWatch) -> list[torch.Tensor]:
    """All of a step after its backward pass: results that the loop copies to the host without waiting."""
    stats = step.reduce_stats(sums, stop=True, save_failed=False)
    layers = watch.measure(stats.weight)
    step.update(stats, 1e-3)
    return [stats.values, layers]


@every_variant
def test_a_step_reads_nothing_under_fake_tensors(monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]) -> None:
    """Fake tensors are on a CPU here, where reading is cheap: it is treated as a device on which it is not."""
    monkeypatch.setattr(head, "_reading_waits", lambda _: True)
    with simulated(1, 4, "cpu") as group, FakeTensorMode():
        step = train_step_of(group, keys)
        model: Any = step.state.model
        # once a run, with the host
        tail._CHECKED[model] = tail.TailCheck(None, "model", model.config.vocab_size)
        watch = LayerWatch(step.state, group, 1)
        for number in range(2):
            values, _ = finish(step, step.backward(batch_on(group.device), number), watch)
        assert values.shape == (6 + 4 + 2 + 2,)


@every_variant
def test_reduction_and_update_copy_nothing_from_meta_tensors(keys: dict[str, Any]) -> None:
    with simulated(1, 4, "meta") as group:
        step = train_step_of(group, keys)
        for parameter in step.state.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        sums = TermSums(step.objective.metric_names, group.device)
        values, layers = finish(step, sums, LayerWatch(step.state, group, 1))
        assert values.is_meta
        assert layers.is_meta
        with pytest.raises((NotImplementedError, RuntimeError)):
            HostCopy(values).read()


@pytest.mark.parametrize("packed", [False, True])
def test_forward_and_backward_copy_nothing_from_meta_tensors(*, packed: bool) -> None:
    model: Any = model_of("cpu")
    assert tail.whole_logits_reason(model) is None  # compares logits, once a run
    model.to("meta")
    batch = batch_on(torch.device("meta"))
    if packed:
        batch["position_ids"] = torch.arange(16, device="meta").remainder(5).expand(2, -1)
    terms = NextTokenZLoss(1e-4)(model, batch)
    terms.loss_sum.backward()
    assert all(parameter.grad.is_meta for parameter in model.parameters())


def changed(step: TrainStep, act: Callable[[], None]) -> list[str]:
    before = {name: tensor.detach().clone() for name, tensor in step.state.tensors.items()}
    act()
    return [name for name, tensor in step.state.tensors.items() if not torch.equal(local(tensor), local(before[name]))]


def local(tensor: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return whole


@every_variant
def test_a_masked_step_changes_no_bit(keys: dict[str, Any]) -> None:
    with process_group() as group:
        step = train_step_of(group, keys)

        def run(bad: float | None = None) -> None:
            sums = step.backward(batch_on(group.device), 0)
            if bad is not None:
                for parameter in list(step.state.model.parameters())[1::2]:
                    assert parameter.grad is not None
                    local(parameter.grad).flatten()[:3] = bad
            stats = step.reduce_stats(sums, stop=False, save_failed=False)
            step.update(stats, 1e-2)
            assert bool(stats.applied) is (bad is None)

        assert len(changed(step, run)) == len(step.state.tensors)
        for bad in (math.nan, math.inf, -math.inf):
            assert changed(step, partial(run, bad)) == []
            assert all(parameter.grad is None for parameter in step.state.model.parameters())
        assert len(changed(step, run)) == len(step.state.tensors)


def test_no_counted_label_changes_no_bit() -> None:
    with process_group() as group:
        step = train_step_of(group, {})
        batch = batch_on(group.device)
        batch["labels"] = torch.full_like(batch["labels"], head.IGNORE)

        def run() -> None:
            step.update(step.reduce_stats(step.backward(batch, 0), stop=False, save_failed=False), 1e-2)

        assert changed(step, run) == []


def test_documents_are_numbered_as_transformers_does() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 0]])
    expected = masking_utils.find_packed_sequence_indices(positions)
    assert torch.equal(documents._document_numbers(positions), expected)


class Event:
    """An event of a GPU whose clock is `now`, in milliseconds."""

    now, reached = 0.0, 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.reached

    def synchronize(self) -> None:
        Event.reached = max(self.at, Event.reached)

    def elapsed_time(self, later: "Event") -> float:
        return later.at - self.at


def test_a_step_ended_when_the_device_had_computed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that reads late knows it from the events of the device."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(host_copy, "time", SimpleNamespace(perf_counter=lambda: Event.reached / 1000))
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    on_gpu.detach = lambda: on_gpu
    on_gpu.to = lambda *_, **__: torch.ones(1)
    copies: list[HostCopy] = []
    for end in (100.0, 250.0, 400.0):
        Event.now = end
        copies.append(HostCopy(on_gpu, copies[-1] if copies else None))
    assert not copies[0].ready
    assert copies[0].read() == [1.0]
    assert copies[0].ended == pytest.approx(0.1), "it waited for the device"
    Event.reached = 900.0  # the host was late
    assert copies[1].ready
    copies[1].read()
    copies[2].read()
    assert [copy.ended for copy in copies] == pytest.approx([0.1, 0.25, 0.4])


def test_optimizers_of_whole_models_are_those_of_torch() -> None:
    """AdamW's step on shards has the bits of torch's own on DTensors."""
    with process_group() as group:
        step, parameters = train_step_of(group, {}), []
        model = step.state.model
        step.backward(batch_on(group.device), 0)
        others = [nn.Parameter(local(p).detach().clone()) for p in model.parameters()]
        for parameter, other in zip(model.parameters(), others, strict=True):
            assert parameter.grad is not None
            other.grad = local(parameter.grad).clone()
            parameters.append((parameter, other))
        decayed = [{"params": [p], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for p in others]
        torch.optim.AdamW(decayed, lr=3e-4, betas=(0.9, 0.95), fused=True).step()
        step.state.optimizer.step()
        assert all(torch.equal(local(parameter), other) for parameter, other in parameters)
