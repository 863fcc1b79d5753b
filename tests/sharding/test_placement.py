"""Places of the pieces of divided tensors: held against the whole tensor, divided by torch itself."""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ropewalk.sharding.checkpoints.file_layout import FileLayout, StoredTensor
from ropewalk.sharding.checkpoints.read_plan import ReadPlan
from ropewalk.sharding.placement import Placement, Shape, Split, coordinates, local_shape, pieces, placement_of


class Case(NamedTuple):
    shape: Shape
    mesh: Shape
    placement: Placement


def random_mesh(rng: random.Random) -> Shape:
    return tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 3)))


def random_placement(rng: random.Random, shape: Shape, mesh: Shape) -> Placement:
    """Return splits along some axes in any order; several may divide one dim, with or without blocks."""
    axes = [axis for axis in range(len(mesh)) if rng.random() < 0.8]
    rng.shuffle(axes)
    return tuple(Split(axis, rng.randrange(len(shape)), rng.choice((1, 1, 2, 3))) for axis in axes) if shape else ()


def random_case(rng: random.Random) -> Case:
    mesh = random_mesh(rng)
    shape = tuple(rng.choice((0, 1, 2, 3, 5, 7, 8, 12)) for _ in range(rng.randint(0, 3)))
    return Case(shape, mesh, random_placement(rng, shape, mesh))


def chunk(tensor: torch.Tensor, parts: int, dim: int, index: int) -> torch.Tensor:
    chunks = torch.chunk(tensor, parts, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


def divided(whole: torch.Tensor, mesh: Shape, placement: Placement, rank: int) -> torch.Tensor:
    """Return the local tensor of a rank, made by torch."""
    local, index = whole, coordinates(mesh, rank)
    for split in placement:
        blocks = [chunk(local, split.blocks, split.dim, number) for number in range(split.blocks)]
        local = torch.cat([chunk(b, mesh[split.axis], split.dim, index[split.axis]) for b in blocks], split.dim)
    return local


def window(start: Shape, shape: Shape) -> tuple[slice, ...]:
    return tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))


def check_pieces(case: Case) -> None:
    whole = torch.arange(int(np.prod(case.shape))).reshape(case.shape)
    times_saved = torch.zeros_like(whole)
    layout = FileLayout({"model.x": StoredTensor(case.shape, "int64", case.placement)}, case.mesh)
    for rank in range(layout.world_size):
        local = divided(whole, case.mesh, case.placement, rank)
        assert local_shape(case.shape, case.mesh, case.placement, rank) == tuple(local.shape), case
        copy = torch.full_like(local, -1)
        for box in pieces(case.shape, case.mesh, case.placement, rank):
            copy[window(box.local, box.shape)] = whole[window(box.start, box.shape)]
            if rank in layout.writers:
                times_saved[window(box.start, box.shape)] += 1
        assert torch.equal(copy, local), case
    assert (times_saved == 1).all(), case


def check_reads(case: Case, target: Case) -> None:
    """Read all pieces of another mesh from what the ranks of one have saved."""
    whole = torch.arange(int(np.prod(case.shape))).reshape(case.shape)
    layout = FileLayout({"model.x": StoredTensor(case.shape, "int64", case.placement)}, case.mesh)
    files = {rank: divided(whole, case.mesh, case.placement, rank).reshape(-1) for rank in layout.writers}
    plan = ReadPlan(layout)
    for rank in range(int(np.prod(target.mesh))):
        wanted = divided(whole, target.mesh, target.placement, rank)
        read = torch.full_like(wanted, -1)
        for part in plan.parts("model.x", pieces(case.shape, target.mesh, target.placement, rank)):
            rows = files[part.rank][part.start // 8 : part.end // 8].reshape(part.rows)
            read[part.window] = rows[(slice(None), *part.columns)] if part.rows else rows
        assert torch.equal(read, wanted), (case, target)


def check(seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        case = random_case(rng)
        check_pieces(case)
        mesh = random_mesh(rng)
        check_reads(case, Case(case.shape, mesh, random_placement(rng, case.shape, mesh)))


@pytest.mark.soak(
    "seconds of CPU time; test_torch_divides_uneven_tensors_in_the_same_way and"
    " test_saved_at_4_ranks_and_2_by_2_loaded_at_1_2_3_and_4 have meshes"
)
def test_pieces_make_up_the_tensor_in_600_random_meshes() -> None:
    check(range(600))


@pytest.mark.soak("a minute; make test runs test_torch_divides_uneven_tensors_in_the_same_way")
def test_pieces_make_up_the_tensor_in_4000_random_meshes() -> None:
    check(range(600, 4600))


@pytest.fixture
def fake_rank() -> Iterator[int]:
    """Rank 5 of 8, whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert not dist.is_initialized()
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=8)
    yield 5
    dist.destroy_process_group()


def test_fsdp_divides_what_tensor_parallelism_left(fake_rank: int) -> None:
    """FSDP over a packed dim: torch's own `full_tensor` is wrong there."""
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("replicate", "shard", "tp"))
    axes = ("replicate", "shard", "tp")
    cases = {
        (Replicate(), Shard(0), Replicate()): (Split(1, 0, 1),),
        (Replicate(), _StridedShard(0, split_factor=2), Shard(0)): (Split(2, 0, 1), Split(1, 0, 1)),
        (Replicate(), _StridedShard(0, split_factor=2), _StridedShard(0, split_factor=2)): (Split(2, 0, 2), Split(1, 0, 1)),
        (Replicate(), Shard(0), _StridedShard(-1, split_factor=2)): (Split(1, 0, 1), Split(2, 1, 2)),
        (Replicate(), _StridedShard(1, split_factor=2), Shard(-1)): (Split(2, 1, 1), Split(1, 1, 1)),
    }
    for placements, expected in cases.items():
        tensor = DTensor.from_local(torch.zeros(2, 2), mesh, placements, run_check=False)
        assert placement_of(tensor, axes) == expected
    one_axis = DTensor.from_local(torch.zeros(2, 2), mesh["tp"], [Shard(1)], run_check=False)
    assert placement_of(one_axis, axes) == (Split(2, 1, 1),)
    assert placement_of(torch.zeros(2), axes) == ()


def test_torch_divides_uneven_tensors_in_the_same_way(fake_rank: int) -> None:
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("shard", "tp"))
    kinds = [Replicate(), Shard(0), Shard(1), _StridedShard(0, split_factor=2), _StridedShard(1, split_factor=3)]
    for rows, columns, *placements in itertools.product((1, 3, 8, 9), (2, 7, 12), kinds, kinds):
        if isinstance(placements[0], _StridedShard) and placements[1].is_replicate() is False:
            continue  # FSDP makes these, in the order of the test above
        whole = torch.arange(rows * columns).reshape(rows, columns)
        local = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        expected = divided(whole, (2, 4), placement_of(local, ("shard", "tp")), fake_rank)
        assert torch.equal(local.to_local(), expected), placements
