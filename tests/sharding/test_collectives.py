"""Collectives of a step on a simulated group: how many, along which axis of the mesh, how many bytes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fsdp_modules, set_micro_batch
from ropewalk.sharding.group import REPLICATE, SHARD, TENSOR, Group
from ropewalk.sharding.parallelize import parallelize
from ropewalk.sharding.tensor_parallel import divided_logits, sum_partial_gradients
from tests.jobs.training.loop.tensor_rank import divided
from tests.sharding.parallel_rank import model_of

COPIES, SHARDS = 2, 4
MICRO_BATCHES = 3
GATHER, SCATTER, REDUCE = "gather", "scatter", "reduce"
OPERATIONS = {
    "c10d::_allgather_base_": GATHER,
    "c10d::_reduce_scatter_base_": SCATTER,
    "c10d::allreduce_": REDUCE,
    "_c10d_functional::all_gather_into_tensor": GATHER,
    "_c10d_functional::reduce_scatter_tensor": SCATTER,
    "_c10d_functional::all_reduce": REDUCE,
}
FLOAT = 4  # bytes


class Traffic(TorchDispatchMode):
    """Collectives by kind and axis: how many, and the bytes of their inputs."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.axes = {mesh.get_group(axis).group_name: axis for axis in mesh.mesh_dim_names or ()}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # its operations on local tensors follow
        if (operation := OPERATIONS.get(function.name())) is not None:
            if function.namespace == "c10d":
                group = next(dist.ProcessGroup.unbox(item) for item in args if isinstance(item, torch.ScriptObject)).group_name
                sent = args[0][0] if operation == REDUCE else args[1]
            else:
                group, sent = args[-1], args[0]
            self.calls[operation, self.axes[group]] += 1
            self.bytes[operation, self.axes[group]] += sent.numel() * sent.element_size()
        return function(*args, **(kwargs or {}))


@contextmanager
def simulated(**axes: int) -> Iterator[Group]:
    """Form a group of which this process is rank 0, and whose other ranks do not exist."""
    mesh_shape = tuple(axes.values())
    size = torch.Size(mesh_shape).numel()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=tuple(axes))
    try:
        yield Group(mesh=mesh, device=torch.device("cpu"), rank=0, world_size=size, timeout=timedelta(minutes=1))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("accumulate", ["sharded", "unsharded"])
@pytest.mark.parametrize("reshard", ["always", "never"])
def test_gradients_are_summed_over_the_copies_once_a_step(accumulate: str, reshard: str) -> None:
    parallel = ParallelConfig.model_validate({"replicate": COPIES, "accumulate": accumulate, "reshard": reshard})
    with simulated(replicate=COPIES, shard=SHARDS) as group:
        model = parallelize(model_of("meta"), group, parallel, PrecisionConfig())
        for tensor in [*model.parameters(), *model.buffers()]:
            torch.nn.init.zeros_(tensor)
        modules, tokens = fsdp_modules(model), torch.zeros(2, 16, dtype=torch.long)
        with Traffic(group.mesh) as traffic:
            for number in range(MICRO_BATCHES):
                last = number == MICRO_BATCHES - 1
                set_micro_batch(modules, last=last, reshard=reshard == "always", sharded=accumulate == "sharded")
                model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    shard_bytes = sum(parameter.to_local().numel() for parameter in model.parameters()) * FLOAT  # type: ignore[attr-defined]
    layers, scatters = len(modules) - 1, MICRO_BATCHES if accumulate == "sharded" else 1
    gathers = {"always": MICRO_BATCHES * (2 * layers + 1), "never": len(modules)}[reshard]
    reductions = {(SCATTER, SHARD): scatters * len(modules), (REDUCE, REPLICATE): len(modules)}
    assert traffic.calls == {(GATHER, SHARD): gathers, **reductions}
    assert traffic.bytes[REDUCE, REPLICATE] == shard_bytes
    assert traffic.bytes[SCATTER, SHARD] == scatters * SHARDS * shard_bytes


@pytest.mark.parametrize(
    ("name", "recomputed"),
    [
        *((name, "none") for name in ("llama, tied", "gemma2", "qwen3", "qwen3_moe", "qwen3_moe by expert")),
        ("llama", "selective"),
        ("llama", "full"),
    ],
)
def test_blocks_gather_and_scatter_sequences(name: str, recomputed: str) -> None:
    degree, samples, num_tokens = 2, 3, 8
    parallel = ParallelConfig.model_validate({"tensor": degree, "activation_checkpointing": recomputed})
    with simulated(shard=SHARDS, tensor=degree) as group:
        model = divided(name, group, parallel).train()
        for tensor in [*model.parameters(), *model.buffers()]:
            torch.nn.init.zeros_(tensor)
        with Traffic(group.mesh) as traffic:
            with divided_logits():
                logits_BTV = model(input_ids=torch.zeros(samples, num_tokens, dtype=torch.long), use_cache=False).logits
            logits_BTV.to_local().sum().backward()
            sum_partial_gradients(model, group)
        modules = len(fsdp_modules(model))
        norms = [p for key, p in model.named_parameters() if "layers" in key and "norm" in key]
        experts = sum(key.endswith("experts.down_proj") for key, _ in model.named_parameters())
        numbers = sum(parameter.to_local().numel() for parameter in model.parameters())
    config = model.config
    states = samples * num_tokens * config.hidden_size * FLOAT  # bytes of the hidden states of whole sequences
    blocks = 2 * config.num_hidden_layers
    again = config.num_hidden_layers if recomputed != "none" else 0  # all but the last scatter of a layer
    gathers, scatters = 2 * blocks + 2 * again + 2, 2 * blocks + again
    routing = samples * num_tokens * config.num_experts_per_tok * FLOAT if experts else 0
    assert traffic.calls == {
        (GATHER, SHARD): modules,
        (SCATTER, SHARD): modules,
        # of each block in forward and backward; of the last layer's output, and of the first one's gradient
        (GATHER, TENSOR): gathers,
        (SCATTER, TENSOR): scatters,
        # sums of the embedding's rows, of the gradient of the head's input, and of the norms' gradients
        (REDUCE, TENSOR): 3 + experts,
    }
    assert traffic.bytes == {
        (GATHER, SHARD): numbers * FLOAT,
        (SCATTER, SHARD): SHARDS * numbers * FLOAT,
        (GATHER, TENSOR): gathers * states // degree,
        (SCATTER, TENSOR): scatters * states,
        (REDUCE, TENSOR): 2 * states + sum(p.to_local().numel() for p in norms) * FLOAT + experts * routing,
    }
