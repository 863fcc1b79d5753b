"""A training step that a spare process takes while it waits, so that its first one in a group is no slower than a survivor's."""

from collections.abc import Generator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore
from torch.distributed.device_mesh import init_device_mesh

from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.tail import TailCheck
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.sharding.caches import forget_meshes
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.config import BatchConfig
from ropewalk.sharding.group import SHARD, Group
from ropewalk.sharding.parallelize import parallelize

_VOCABULARY, _TOKENS = 256, 64
_TIMEOUT = timedelta(minutes=1)


def rehearse() -> Generator[None, None, None]:
    """Take one step of a tiny model with undefined weights, on the CPU, in a group of this process alone.

    It fills the caches of torch and DTensor, and copies the memory that the process shares with its fork server: half of the
    time from a place in a group to the first step.
    """
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=_TIMEOUT)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=(SHARD,))
        yield from _step(Group(mesh=mesh, device=torch.device("cpu"), rank=0, world_size=1, timeout=_TIMEOUT))
    finally:
        dist.destroy_process_group()
        forget_meshes()


def _step(group: Group) -> Generator[None, None, None]:
    config = TrainingConfig(steps=1, batch=BatchConfig(global_batch=1, micro_batch=1))
    shape = model_config(ModelConfig(preset="tiny"), vocabulary=_VOCABULARY, end_of_document=0, seq_len=_TOKENS)
    model = parallelize(skeleton(shape), group, config.parallel, config.precision).train()
    yield
    state = TrainState(model, make_optimizer(model, config.optim), trained_only=False)
    yield
    group.broadcast_object("", CheckpointManifest | str)  # makes the conversion, as the first exchange in a group would
    group.broadcast_object(None, TailCheck | None)
    yield
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64)
    batch = {"input_ids": tokens, "labels": tokens}
    step = TrainStep(state, NextToken(), batch, config, group, dropout=False)
    sums = step.backward(batch, 0)
    yield
    step.update(step.reduce_stats(sums, stop=False, save_failed=False), learning_rate=0.0)
