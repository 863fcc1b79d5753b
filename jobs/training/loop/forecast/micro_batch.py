"""The micro-batch `auto`: the largest that fits by the forecast, halved by each group that runs out of memory.

Events of the run record it: `micro_batch` the choice of each group, `out_of_memory` that a group ended for lack of memory. A new
group of the same number of ranks continues with the last choice.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ropewalk.cluster.errors import FormAnewError
from ropewalk.cluster.process.memory_limits import memory_bytes
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.names import OUT_OF_MEMORY
from ropewalk.jobs.training.loop.architecture.bare_model import bare_model
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.devices import USABLE
from ropewalk.jobs.training.loop.forecast.measure import fsdp_units, measure_model
from ropewalk.jobs.training.loop.forecast.memory import Layout, largest_micro_batch
from ropewalk.jobs.training.loop.forecast.rows import EMPTY_RANK
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.update.optimizer import layer_matrices
from ropewalk.sharding.group import REPLICATE, Group
from ropewalk.sharding.parallelize import compute_format

log = logging.getLogger(__name__)

CHOICE = "micro_batch"  # event
_UNKNOWN = 4  # the first choice if the forecast fails


def choose_micro_batch(
    context: JobContext, config: TrainingConfig, group: Group, plan: ModelPlan, filler: Batch, *, frozen: ModelPlan | None
) -> TrainingConfig:
    """Return the configuration with a number for a micro-batch of `auto`, the same on all ranks.

    `frozen` is a teacher or reference beside the trained model.
    """
    if config.batch.micro_batch != "auto":
        return config
    size = _choose(context, config, group, plan, filler, frozen=frozen) if group.is_main else None
    return config.model_copy(update={"batch": config.batch.model_copy(update={"micro_batch": group.broadcast_object(size, int)})})


def _choose(
    context: JobContext, config: TrainingConfig, group: Group, plan: ModelPlan, filler: Batch, *, frozen: ModelPlan | None
) -> int:
    size = recorded(context.run.read_events(afresh=True), group.world_size)
    size = size or _forecast(config, group, plan, filler, frozen=frozen)
    where = {"attempt": context.attempt, "group": context.group}
    context.run.event(CHOICE, size=size, world_size=group.world_size, **where)
    log.info("micro-batches of up to %d", size)
    return size


def recorded(events: Iterable[Mapping[str, Any]], world_size: int) -> int | None:
    """Return the last choice of a world size, half of it if that group ran out of memory; None: there is no choice yet."""
    size, group, exhausted = None, None, False
    for event in events:
        where = event.get("attempt"), event.get("group")
        if event["event"] == CHOICE and event.get("world_size") == world_size:
            size, group, exhausted = int(event["size"]), where, False
        elif event["event"] == OUT_OF_MEMORY and where == group:
            exhausted = True
    return math.ceil(size / 2) if size is not None and exhausted else size


def _forecast(config: TrainingConfig, group: Group, plan: ModelPlan, filler: Batch, *, frozen: ModelPlan | None) -> int:
    """Return the largest micro-batch that fits by the forecast."""
    samples = math.ceil(config.batch.global_batch / group.data_size)
    gpu, bf16 = group.device.type == "cuda", compute_format(config.precision, group.device) == "bf16"
    with torch.device("meta"):
        model = bare_model(plan.config, plan.head)
        beside = fsdp_units(bare_model(frozen.config, frozen.head).requires_grad_(False)) if frozen is not None else []
    model = plan.adapter(model) if plan.adapter is not None else model
    matrices = sum(matrix.numel() for matrix in layer_matrices(model))
    length = filler["input_ids"].shape[-1]
    mode = config.parallel.activation_checkpointing
    shape = measure_model(model, length, [mode], bf16=bf16, gpu=gpu)
    if mode not in shape.activations:
        log.warning("the memory of activations is unknown (%s): starting with %d samples", shape.problem, _UNKNOWN)
        return min(samples, _UNKNOWN)
    sequences = filler["input_ids"].numel() // length  # of a sample: a pair of answers has two
    saved, most = shape.activations[mode]
    activations = {mode: (saved * sequences, most * sequences)}
    shape = shape.model_copy(update={"seq_len": length * sequences, "activations": activations, "frozen": beside})
    axes = dict(zip(group.mesh.mesh_dim_names or (), group.mesh.shape, strict=True))
    shards = group.mesh.size() // axes.get(REPLICATE, 1)
    adapter = plan.adapter is not None
    layout = Layout(config=config, shards=shards, gpu=gpu, matrices=matrices, adapter=adapter)
    return largest_micro_batch(shape, layout, samples, _available(config, group))


def _available(config: TrainingConfig, group: Group) -> float:
    """Return the bytes that a rank can use."""
    if group.device.type == "cuda":
        return torch.cuda.get_device_properties(group.device).total_memory * USABLE
    node = memory_bytes()
    if config.resources.memory_gib is not None:
        node = min(node, int(config.resources.memory_gib * 2**30))
    return node / config.resources.local_world_size - EMPTY_RANK


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of torch or Python says that memory could not be allocated."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


@contextmanager
def lowered_when_exhausted(context: JobContext, config: TrainingConfig) -> Iterator[None]:
    """Record an out-of-memory error of a rank whose micro-batch is `auto`, so that the next group halves it.

    Raises FormAnewError instead, unless the micro-batch was 1.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if config.batch.micro_batch != "auto" or not is_out_of_memory(error) or (size := _choice_of_group(context)) < 2:
            raise
        where = {"attempt": context.attempt, "group": context.group}
        context.run.event(OUT_OF_MEMORY, rank=context.rank, micro_batch=size, **where)
        raise FormAnewError(f"out of memory with micro-batches of {size}: the next group halves them") from error


def _choice_of_group(context: JobContext) -> int:
    """Return the micro-batch of this group, or 0 before the choice."""
    choices = (event for event in context.run.read_events(afresh=True) if event["event"] == CHOICE)
    groups = {(event["attempt"], event["group"]): int(event["size"]) for event in choices}
    return groups.get((context.attempt, context.group), 0)
