"""One rank of test_elastic.py: saves and loads a state at some number of ranks."""

import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.state import State
from ropewalk.sharding.config import CheckpointConfig, ParallelConfig
from ropewalk.sharding.group import Group, process_group

SHAPES = {"model.a": (7, 3), "optimizer.a.exp_avg": (7, 3), "model.b": (3,), "ema.b": (3,), "model.large": (601, 1000)}


def whole_state(step: int) -> State:
    """Return the tensors of a step, unsharded; `large` has more than two blocks."""
    generator = torch.Generator().manual_seed(step)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {
        **state,
        "model.half": torch.randn(9, 2, generator=generator).bfloat16(),
        "optimizer.a.step": torch.tensor(float(step)),
    }


def sharded_state(group: Group, step: int) -> State:
    placements = [Replicate()] * (group.mesh.ndim - 1) + [Shard(0)]
    return {
        name: distribute_tensor(whole, group.mesh, placements, src_data_rank=None) if whole.ndim else whole
        for name, whole in whole_state(step).items()
    }


def rank_main(rank: int, size: int, port: int, folder: Path, todo: dict[str, Any]) -> None:
    """Load the expected steps, a negative one as the newest, and compare them with what was saved; then save a step."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    run = RunDir(folder)
    with process_group(ParallelConfig(replicate=todo["replicate"])) as group:
        for step in todo["expected"]:
            store = Checkpoints(run, group, Fence(run, 1, 0), CheckpointConfig(), {"width": 3})
            folder_found = store.find_elsewhere(store.root, step) if step > 0 else store.find()
            assert folder_found is not None
            loaded = sharded_state(group, 99)
            manifest = store.load(*folder_found, loaded)
            assert manifest.step == abs(step)
            for name, tensor in sharded_state(group, abs(step)).items():
                assert torch.equal(local(loaded[name]), local(tensor)), name
        if (save := todo["save"]) is not None:
            store = Checkpoints(run, group, Fence(run, 1, 0), CheckpointConfig(), {"width": 3})
            tensors = sharded_state(group, save)
            store.save(tensors, step=save, position=8 * save, progress={})
            store.wait_for_copy()
            for tensor in tensors.values():
                local(tensor).zero_()
            store.wait()


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]
