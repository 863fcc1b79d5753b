"""The group of ranks: form it, leave it, and agree within it."""

import ctypes
import itertools
import logging
import math
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE, BackendError, ConfigError, StopRequested
from ropewalk.cluster.gpus import DEVICES_VARIABLE, machine_devices, node_gpus
from ropewalk.cluster.process.sockets import prepare_sockets
from ropewalk.cluster.run.spare import SpareRank, release
from ropewalk.cluster.text import counted
from ropewalk.sharding.caches import forget_meshes
from ropewalk.sharding.config import Division, ParallelConfig
from ropewalk.sharding.exchange import broadcast, gather
from ropewalk.sharding.store import connect, group_store, refuse_stale_store

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 60.0  # beyond the group's timeout, at which gloo and the store give up by themselves
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 20  # the first is from glibc's malloc.h
REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"  # axes of the mesh
DATA_AXES = (REPLICATE, SHARD)  # ranks along these axes of the mesh compute different samples, along any other the same


@dataclass(frozen=True, kw_only=True)
class Group:
    """All ranks of a run as a device mesh.

    The axis `shard` divides parameters, `replicate` holds copies of them (HSDP), and along `tensor`, within a node, ranks divide
    the work on the same samples.
    """

    mesh: DeviceMesh
    device: torch.device
    rank: int
    world_size: int
    timeout: timedelta
    saves: Iterator[int] = field(default_factory=itertools.count)  # numbers of saves, the same on all ranks

    @property
    def is_main(self) -> bool:
        """True on the rank that reports and commits."""
        return self.rank == 0

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place: the same bits on every rank."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    @property
    def data_mesh(self) -> DeviceMesh:
        """The axes along which ranks compute different samples; FSDP shards over them."""
        names = self.mesh.mesh_dim_names or ()
        return self.mesh if TENSOR not in names else self.mesh[tuple(name for name in names if name != TENSOR)]

    @property
    def tensor_mesh(self) -> DeviceMesh | None:
        """The axis of tensor parallelism; None if there is none."""
        return self.mesh[TENSOR] if TENSOR in (self.mesh.mesh_dim_names or ()) else None

    @property
    def data_size(self) -> int:
        """The number of shares into which samples are divided; ranks that compute the same samples have one share."""
        return math.prod(size for size, _ in self._coordinates(DATA_AXES))

    @property
    def data_rank(self) -> int:
        """The number of this rank's share of the samples, from 0."""
        number = 0
        for size, index in self._coordinates(DATA_AXES):
            number = number * size + index
        return number

    def sum_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """Sum values computed from samples over ranks, in place; of ranks that compute the same samples one is counted."""
        return self.all_reduce_sum(values if self.counts_samples else values.zero_())

    @property
    def counts_samples(self) -> bool:
        """True on one of the ranks that compute the same samples: the one that is counted."""
        others = [name for name in self.mesh.mesh_dim_names or () if name not in DATA_AXES]
        return all(index == 0 for _, index in self._coordinates(others))

    def _coordinates(self, axes: Collection[str]) -> list[tuple[int, int]]:
        """Return (size of the axis, this rank's index along it) for those of these axes that the mesh has."""
        names, indices = self.mesh.mesh_dim_names or (), self.mesh.get_coordinate() or ()
        pairs = zip(names, self.mesh.shape, indices, strict=True)
        return [(size, index) for name, size, index in pairs if name in axes]

    def any(self, value: bool) -> bool:
        """Return True on every rank if `value` is true on any rank."""
        return bool(self.all_reduce_sum(torch.tensor(float(value), device=self.device)).item())

    def barrier(self) -> None:
        self.any(False)

    def all_gather_object(self, value: T, kind: Any = Any) -> list[T]:
        """Return every rank's value, in rank order. Values travel as JSON; see `broadcast_object`.

        The values of all ranks reach every rank: use `gather_object` if only rank 0 needs them.
        """
        return gather(value, kind, self.rank, self.world_size, everywhere=True)

    def gather_object(self, value: T, kind: Any = Any) -> list[T]:
        """Return every rank's value, in rank order, on rank 0, and nothing on the others; see `broadcast_object`."""
        return gather(value, kind, self.rank, self.world_size, everywhere=False)

    def broadcast_object(self, value: T | None, kind: Any = Any) -> T:
        """Return rank 0's value on every rank.

        It travels as JSON, since unpickling would run what a peer sends. `kind` is the type of a value that JSON alone does
        not restore: with tuples, bytes, keys that are not strings, or models.
        """
        return broadcast(value, kind, self.rank, self.world_size)


def counts_piece(tensor: torch.Tensor, group: Group) -> bool:
    """Return True on one of the ranks that hold the same piece of a DTensor: the one that counts it in a norm."""
    assert isinstance(tensor, DTensor)
    divided = {
        name
        for name, placement in zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True)
        if not placement.is_replicate()
    }
    # axes of the group that are not in the tensor's mesh hold copies too
    pairs = zip(group.mesh.mesh_dim_names or (), group.mesh.get_coordinate() or (), strict=True)
    return all(index == 0 for name, index in pairs if name not in divided)


@contextmanager
def process_group(parallel: ParallelConfig | None = None) -> Iterator[Group]:
    """Form the group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or a group of one.

    Ranks that `parallel` has no place for stay outside: SpareRank is raised there. On GPUs a group that an error breaks is not
    destroyed: end the process then, as the engines do.
    """
    parallel = parallel or ParallelConfig()
    refuse_stale_store()
    timeout = timedelta(minutes=parallel.timeout_minutes)
    division, spare = _leave_out_spare_ranks(parallel, timeout)
    _warn_of_unused_gpus()
    device = rank_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        _return_freed_memory()
    if not on_gpu and "OMP_NUM_THREADS" not in os.environ:
        sharers = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1"))  # ranks on this machine's cores
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // sharers))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    # given its device, NCCL connects now and not in the middle of the first step
    bound = device if on_gpu else None
    prepare_sockets(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    with _time_limit(timeout):
        if "WORLD_SIZE" not in os.environ:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout, device_id=bound)
        elif (store := group_store(timeout)) is not None:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=bound)
        else:
            dist.init_process_group(backend, init_method="env://", timeout=timeout, device_id=bound)
    broken = forgets = True
    try:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        group = Group(
            mesh=_mesh(device, division, parallel.tensor), device=device, rank=rank, world_size=world_size, timeout=timeout
        )
        yield group
        broken = forgets = False  # other ranks may still read the last messages in the store, which meshes keep
        _release(group, spare, EXIT_DONE)
    except StopRequested:
        broken, forgets = False, not on_gpu
        _release(group, spare, EXIT_REQUEUE)
        if forgets:  # the process may stay for another group; on GPUs it does not
            with suppress(RuntimeError):  # a peer may be gone
                group.barrier()  # all have read the last messages
        raise
    finally:
        # after an error NCCL would wait for peers in a collective that this rank has left, and hide the error
        if not (broken and on_gpu):
            dist.destroy_process_group()
        if forgets:
            forget_meshes()


def _return_freed_memory() -> None:
    """Let glibc map each tensor of 1 MiB or more by itself, so that its memory is returned when it is freed.

    By default the limit rises to 32 MiB as tensors are freed. A step's activations and gradients then fragment the heap, and a
    rank holds a fifth more memory than it ever used at once.
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


@contextmanager
def _time_limit(timeout: timedelta) -> Iterator[None]:
    """End this process if connecting takes longer: NCCL's own limit starts after it has connected."""

    def give_up() -> None:
        log.error(
            "no connection to the other ranks within %s (parallel.timeout_minutes): a closed port, or NCCL_SOCKET_IFNAME names"
            " an interface that the other nodes cannot reach; NCCL_DEBUG=INFO shows the interface in use",
            timeout,
        )
        os._exit(EXIT_LOST_PEER)

    timer = threading.Timer(timeout.total_seconds() + CONNECT_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _warn_of_unused_gpus() -> None:
    """Warn on the first rank if its machine has GPUs and the run requested none. Call before `rank_device` hides them."""
    if node_gpus() == 0 and os.environ.get("RANK", "0") == "0" and (num_gpus := len(machine_devices())):
        log.warning(
            "this machine has %d GPU(s) and resources.gpus is 0: computing on the CPU; set resources.gpus to use them", num_gpus
        )


def _leave_out_spare_ranks(parallel: ParallelConfig, timeout: timedelta) -> tuple[Division, int]:
    """Reduce the world to the ranks that `parallel` has a place for; returns their division and the number of spare ranks.

    Raises SpareRank on the spare ranks.
    """
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    division = parallel.divide(ranks, int(os.environ.get("LOCAL_WORLD_SIZE") or ranks))
    if spare := ranks - division.computing:
        if rank >= division.computing:
            raise SpareRank(connect(timeout), range(division.computing, ranks))
        os.environ["WORLD_SIZE"] = str(division.computing)
        if rank == 0:
            names = f"rank {ranks - 1} is" if spare == 1 else f"ranks {division.computing} to {ranks - 1} are"
            log.warning("%s spare: %s cannot be divided into equal copies of the model", names, counted(ranks, "rank"))
    return division, spare


def _release(group: Group, spare: int, code: int) -> None:
    if spare and group.is_main:
        release(connect(group.timeout), spare, code)


def _mesh(device: torch.device, division: Division, tensor: int) -> DeviceMesh:
    # ranks of the last axis are neighbours, within a node
    sizes = {REPLICATE: division.copies, SHARD: division.ranks_per_copy // tensor, TENSOR: tensor}
    axes = [axis for axis, size in sizes.items() if size > 1 or axis == SHARD]
    return init_device_mesh(device.type, tuple(sizes[axis] for axis in axes), mesh_dim_names=tuple(axes))


def rank_device() -> torch.device:
    """Return this rank's GPU if its node was allocated any, else the CPU.

    Raises ConfigError if ranks would have to share a GPU, BackendError if the node lacks GPUs of its allocation.
    """
    allocated = node_gpus()
    if allocated == 0:
        # hide GPUs of other users' jobs: torch would create an NCCL group for the CPU mesh too
        os.environ[DEVICES_VARIABLE] = ""
    if allocated == 0 or (allocated is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if allocated is not None and visible < allocated:
        raise BackendError(
            f"this node was allocated {allocated} GPUs and torch {torch.__version__} finds {visible}:"
            " check nvidia-smi there, and that this torch is built for GPUs"
        )
    rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), allocated or visible
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or rank + 1
    if ranks > gpus:
        raise ConfigError(
            f"{ranks} ranks on this node and {gpus} GPUs: NCCL needs one for each; start {gpus} ranks per node,"
            f" or set {DEVICES_VARIABLE}= (to nothing) to compute on the CPU"
        )
    return torch.device("cuda", rank * (gpus // ranks) if "LOCAL_WORLD_SIZE" in os.environ else rank)


def open_messages(group: Group) -> Store:
    """Open another connection to the store in which the ranks met, for messages of background threads."""
    if group.world_size == 1:
        return HashStore()
    return connect(group.timeout)
