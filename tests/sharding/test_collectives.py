"""Collectives of a step over copies of a sharded model, on a simulated group: how many, along which axis, how many bytes."""

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fsdp_modules, set_micro_batch
from ropewalk.sharding.group import DATA_AXES, Group
from ropewalk.sharding.parallelize import parallelize
from tests.sharding.parallel_rank import model_of

COPIES, SHARDS = 2, 4
MICRO_BATCHES = 3
GATHER, SCATTER, REDUCE = "c10d::_allgather_base_", "c10d::_reduce_scatter_base_", "c10d::allreduce_"


class Traffic(TorchDispatchMode):
    """Collectives by name and number of ranks: how many, and the bytes of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, int]] = Counter()
        self.bytes: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            group = next(dist.ProcessGroup.unbox(item) for item in args if isinstance(item, torch.ScriptObject))
            sent = args[0][0] if function.name() == REDUCE else args[1]
            self.calls[function.name(), group.size()] += 1
            self.bytes[function.name(), group.size()] += sent.numel() * sent.element_size()
        return function(*args, **(kwargs or {}))


@pytest.fixture
def group() -> Iterator[Group]:
    """Rank 0 of two copies on four ranks each, whose peers do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=COPIES * SHARDS)
    mesh = init_device_mesh("cpu", (COPIES, SHARDS), mesh_dim_names=DATA_AXES)
    yield Group(mesh=mesh, device=torch.device("cpu"), rank=0, world_size=COPIES * SHARDS, timeout=timedelta(minutes=1))
    dist.destroy_process_group()


@pytest.mark.parametrize("accumulate", ["sharded", "unsharded"])
@pytest.mark.parametrize("reshard", ["always", "never"])
def test_gradients_are_summed_over_the_copies_once_a_step(group: Group, accumulate: str, reshard: str) -> None:
    parallel = ParallelConfig.model_validate({"replicate": COPIES, "accumulate": accumulate, "reshard": reshard})
    model = parallelize(model_of("meta"), group, parallel, PrecisionConfig())
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.nn.init.zeros_(tensor)
    modules, tokens = fsdp_modules(model), torch.zeros(2, 16, dtype=torch.long)
    with Traffic() as traffic:
        for number in range(MICRO_BATCHES):
            last = number == MICRO_BATCHES - 1
            set_micro_batch(modules, last=last, reshard=reshard == "always", sharded=accumulate == "sharded")
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    shard_bytes = sum(parameter.to_local().numel() for parameter in model.parameters()) * 4  # type: ignore[attr-defined]
    layers, scatters = len(modules) - 1, MICRO_BATCHES if accumulate == "sharded" else 1
    gathers = {"always": MICRO_BATCHES * (2 * layers + 1), "never": len(modules)}[reshard]
    reductions = {(SCATTER, SHARDS): scatters * len(modules), (REDUCE, COPIES): len(modules)}
    assert traffic.calls == {(GATHER, SHARDS): gathers, **reductions}
    assert traffic.bytes[REDUCE, COPIES] == shard_bytes
    assert traffic.bytes[SCATTER, SHARDS] == scatters * SHARDS * shard_bytes
