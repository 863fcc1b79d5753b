"""Sums over ranks when several compute the same samples or hold the same piece of a tensor."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ropewalk.sharding.batch_plan import BatchPlan
from ropewalk.sharding.group import Group, counts_piece
from tests.fork_server import SERVER

RANKS = 4
GRADIENT = torch.arange(24.0).reshape(6, 4)


def rank_of(axes: tuple[str, str], folder: Path, rank: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), RANKS), rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=axes)
    timeout = timedelta(minutes=1)
    group = Group(mesh=mesh, device=torch.device("cpu"), rank=rank, world_size=RANKS, timeout=timeout)
    plan = BatchPlan(global_batch=8, micro_batch=2, data_size=group.data_size, data_rank=group.data_rank)
    samples = list(plan.samples(0))
    squares = torch.zeros(())
    for placements in ((Shard(0), Replicate()), (Replicate(), Shard(0)), (Shard(0), Shard(1)), (Replicate(), Replicate())):
        gradient = distribute_tensor(GRADIENT, mesh, placements)
        if counts_piece(gradient, group):
            squares += gradient.to_local().square().sum()
    report = {
        "samples": samples,
        "sum": group.sum_over_data(torch.tensor([float(sum(samples)), float(len(samples))])).tolist(),
        "squares": group.all_reduce_sum(squares).item(),
        "world": group.all_reduce_sum(torch.ones(1)).item(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("axes", "dealt"),
    [
        (("replicate", "shard"), [[0, 1], [2, 3], [4, 5], [6, 7]]),  # every rank has samples of its own
        (("shard", "tensor"), [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]),  # pairs work on the same
    ],
)
def test_each_sample_and_each_piece_of_a_gradient_count_once(
    tmp_path: Path, axes: tuple[str, str], dealt: list[list[int]]
) -> None:
    processes = [SERVER.Process(target=rank_of, args=(axes, tmp_path, rank)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * RANKS
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert [report["samples"] for report in reports] == dealt
    assert all(report["sum"] == [sum(range(8)), 8] for report in reports)
    assert all(report["squares"] == pytest.approx(4 * GRADIENT.square().sum().item()) for report in reports)
    assert all(report["world"] == RANKS for report in reports)
