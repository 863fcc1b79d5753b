"""Rows of a dry run about memory, traffic and speed, and the keys that make a model fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ropewalk.cluster.text import counted, format_bytes
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.devices import DEVICES, USABLE, Device, device_named
from ropewalk.jobs.training.loop.forecast.memory import (
    FP32,
    Layout,
    ModelShape,
    Passes,
    RankMemory,
    largest_micro_batch,
    rank_memory,
)
from ropewalk.jobs.training.loop.forecast.traffic import EFFICIENCY, step_seconds, step_traffic
from ropewalk.sharding.config import Division

EMPTY_RANK = 0.35 * 2**30  # bytes of a process with torch and transformers
_MOST_NODES = 4096  # that are tried
_COMBINED = (  # tried one after the other, all those before together
    "batch.micro_batch=1",
    "parallel.activation_checkpointing=full",
    "parallel.reshard=always",
    "parallel.accumulate=sharded",
    "precision.optimizer=bf16",
    "parallel.replicate=1",
)
_ALONE = ("parallel.activation_checkpointing=selective", *_COMBINED[1:])


@dataclass(frozen=True)
class Forecast:
    """A step of a configuration on the fewest ranks that it allows."""

    config: TrainingConfig
    shape: ModelShape
    matrices: int
    visible: tuple[str, int] | None = None  # name and bytes of the GPU of this machine

    @property
    def world_size(self) -> int:
        return self.config.resources.nodes.least * self.config.resources.local_world_size

    @property
    def ranks(self) -> Division:
        """The copies of the model, and the ranks of each."""
        return self.config.parallel.divide(self.world_size, self.config.resources.local_world_size)

    @property
    def data_ranks(self) -> int:
        """Ranks that compute different samples."""
        return self.ranks.computing // self.config.parallel.tensor

    @property
    def samples(self) -> int:
        """Samples of a rank in a step."""
        return math.ceil(self.config.batch.global_batch / self.data_ranks)

    @property
    def layout(self) -> Layout:
        adapter = self.shape.numbers(trained_only=True) < self.shape.numbers()
        shards, gpu = self.ranks.ranks_per_copy, self.config.resources.gpus > 0
        return Layout(config=self.config, shards=shards, gpu=gpu, matrices=self.matrices, adapter=adapter)

    def largest_micro_batch(self) -> int | None:
        """Return the largest micro-batch that fits; None: unknown."""
        measured = self.usable is not None and self.config.parallel.activation_checkpointing in self.shape.activations
        return largest_micro_batch(self.shape, self.layout, self.samples, self.usable or 0.0) if measured else None

    @property
    def batch(self) -> Passes:
        assert self.config.batch.micro_batch != "auto"
        return Passes.of(self.config.batch.global_batch, self.data_ranks, self.config.batch.micro_batch)

    @cached_property
    def memory(self) -> RankMemory:
        return rank_memory(self.shape, self.layout, self.batch)

    @property
    def device(self) -> tuple[str, Device | None, int] | None:
        """The name, rates and bytes of a GPU: that of the key, else the one of this machine; None: unknown."""
        if self.config.parallel.gpu_model is not None:
            device = DEVICES[self.config.parallel.gpu_model]
            return self.config.parallel.gpu_model, device, int(device.memory_gb * 1e9)
        if self.visible is None or not self.layout.gpu:
            return None
        name, size = self.visible
        return name, device_named(name), size

    @property
    def usable(self) -> float | None:
        """Bytes that a rank can use; None: unknown."""
        if self.layout.gpu:
            return self.device[2] * USABLE if self.device is not None else None
        node = self.config.resources.memory_gib
        return node * 2**30 / self.config.resources.local_world_size - EMPTY_RANK if node is not None else None

    def fits(self) -> bool:
        assert self.usable is not None
        return self.memory.total <= self.usable

    def changed(self, *overrides: str) -> "Forecast":
        """Return the forecast with other values of some keys."""
        config: Any = self.config
        for override in overrides:
            key, _, value = override.partition("=")
            config = _with(config, key.split("."), int(value) if value.isdecimal() else value)
        return Forecast(config, self.shape, self.matrices, self.visible)


def _with(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if name == "nodes":
        value = section.nodes.model_copy(update={"least": value, "most": value})
    return section.model_copy(update={name: _with(getattr(section, name), rest, value) if rest else value})


def forecast_rows(forecast: Forecast) -> Iterator[tuple[str, str]]:
    """Yield the rows about memory, traffic and speed."""
    memory, ranks = forecast.memory, counted(forecast.world_size, "rank")
    kinds = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.kinds.items())
    unknown = f"; activations are unknown: {forecast.shape.problem}" if forecast.shape.problem else ""
    beside = "" if forecast.layout.gpu else ", besides an empty rank"
    modelled = ", activations modelled" if forecast.layout.gpu and not unknown else ""
    yield "memory", f"about {format_bytes(memory.total)} on each of {ranks}{beside}{modelled}: {kinds}{unknown}"
    yield "fits", fitting(forecast)
    if workers := forecast.config.whole_models():
        size = format_bytes(forecast.shape.numbers() * FP32)
        yield "workers", f"each of {workers} on a node holds the whole model, in fp32 {size}; more nodes make none smaller"
    if forecast.world_size > 1:
        yield "traffic a step", _traffic(forecast)
    if forecast.layout.gpu:
        yield "speed", _speed(forecast)


def fitting(forecast: Forecast) -> str:
    """Say whether a rank has enough memory, and if not, which keys would make it fit."""
    if forecast.usable is None:
        if forecast.layout.gpu:
            return f"unknown: no GPU is visible here; name its model with parallel.gpu_model: {', '.join(DEVICES)}"
        return "unknown: set resources.memory_gib, the memory of a node"
    of = f"{format_bytes(forecast.usable)} that each rank can use"
    if forecast.device is not None:
        of += f" of a GPU ({forecast.device[0]}, {format_bytes(forecast.device[2])})"
    if forecast.fits():
        return f"yes, in {of}"
    return f"no, not in {of}: {remedy(forecast)}"


def remedy(forecast: Forecast) -> str:
    """Return the keys that make it fit: each alone, else the fewest together."""
    alone = [override for override in _single(forecast) if forecast.changed(override).fits()]
    if alone:
        return f"set {' or '.join(alone)}"
    for count in range(2, len(_COMBINED) + 1):
        if forecast.changed(*_COMBINED[:count]).fits():
            return f"set {' '.join(_useful(forecast, _COMBINED[:count]))} together"
    nodes = forecast.config.resources.nodes.least
    while (nodes := 2 * nodes) <= _MOST_NODES:
        together = (*_COMBINED, f"resources.nodes={nodes}")
        if forecast.changed(*together).fits():
            return f"set {' '.join(_useful(forecast, together))} together"
    return "no key makes it fit; choose a smaller model, or a shorter seq_len"


def _single(forecast: Forecast) -> Iterator[str]:
    yield f"batch.micro_batch={forecast.largest_micro_batch() or 1}"
    yield from (override for override in _ALONE if _known(forecast, override))
    nodes = forecast.config.resources.nodes.least
    while (nodes := 2 * nodes) <= _MOST_NODES:
        if forecast.changed(f"resources.nodes={nodes}").fits():
            yield f"resources.nodes={nodes}"
            return


def _known(forecast: Forecast, override: str) -> bool:
    """Return True unless it is a mode of activation checkpointing whose activations are unknown."""
    key, _, value = override.partition("=")
    return key != "parallel.activation_checkpointing" or value in forecast.shape.activations


def _useful(forecast: Forecast, overrides: tuple[str, ...]) -> list[str]:
    """Return the overrides without those that are not needed."""
    needed = list(overrides)
    for override in overrides:
        fewer = [each for each in needed if each != override]
        needed = fewer if forecast.changed(*fewer).fits() else needed
    return needed


def _traffic(forecast: Forecast) -> str:
    traffic = _step_traffic(forecast)
    parts = [f"{format_bytes(traffic.within_node)} from each rank within its node"] if traffic.within_node else []
    parts += [f"{format_bytes(traffic.between_nodes)} from each node to others"] if traffic.between_nodes else []
    return ", ".join(parts)


def _step_traffic(forecast: Forecast) -> Any:
    copies, local = forecast.ranks.copies, forecast.config.resources.local_world_size
    return step_traffic(forecast.shape, forecast.layout, forecast.batch, copies=copies, local_ranks=local)


def _speed(forecast: Forecast) -> str:
    if forecast.device is None or forecast.device[1] is None:
        return "unknown: the rates of this GPU are not in the table; parallel.gpu_model names one that is"
    tokens = forecast.config.batch.global_batch * forecast.shape.seq_len
    compute, links = step_seconds(
        forecast.shape,
        forecast.layout,
        forecast.device[1],
        _step_traffic(forecast),
        tokens=tokens,
        world_size=forecast.ranks.computing,
        local_ranks=forecast.config.resources.local_world_size,
    )
    rate, bound = tokens / max(compute, links), "computation" if compute >= links else "communication"
    return (
        f"about {rate:,.0f} tokens/s, bound by {bound}: {compute:.2g} s a step at {EFFICIENCY:.0%} of the peak of"
        f" {forecast.device[0]}, {links:.2g} s on the links (data sheets) beside it"
    )
