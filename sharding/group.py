"""The group of ranks: forming it, leaving it, and agreeing inside it."""

import errno
import logging
import math
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from ropewalk.cluster.errors import EXIT_LOST_PEER, BackendError, ConfigError, StopRequested
from ropewalk.cluster.gpus import DEVICES_VARIABLE, machine_devices, node_gpus
from ropewalk.cluster.process.ports import listen_on
from ropewalk.sharding.config import ParallelConfig

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 60.0  # beyond the group's timeout, after which gloo and the store give up by themselves
DATA_AXES = ("replicate", "shard")  # of a mesh: ranks along them compute different samples, along any other the same ones


@dataclass(frozen=True, kw_only=True)
class Group:
    """All ranks of a run, as a mesh: its axis `shard` divides the parameters, `replicate` holds copies of them (HSDP)."""

    mesh: DeviceMesh
    device: torch.device
    rank: int
    world_size: int
    timeout: timedelta

    @property
    def is_main(self) -> bool:
        """Whether this rank is the one that reports and commits."""
        return self.rank == 0

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place: the same bits on every rank."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    @property
    def data_size(self) -> int:
        """The number of shares that samples are dealt in; ranks that compute the same samples have one share."""
        return math.prod(size for size, _ in self._places(DATA_AXES))

    @property
    def data_rank(self) -> int:
        """The share of the samples that this rank computes, counted from 0."""
        number = 0
        for size, index in self._places(DATA_AXES):
            number = number * size + index
        return number

    def sum_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place, of values computed from samples; of ranks that compute the same samples one counts."""
        return self.all_reduce_sum(values if self.counts_samples else values.zero_())

    @property
    def counts_samples(self) -> bool:
        """Whether this rank is the one that counts, of those that compute the same samples."""
        others = [name for name in self.mesh.mesh_dim_names or () if name not in DATA_AXES]
        return all(index == 0 for _, index in self._places(others))

    def _places(self, axes: Collection[str]) -> list[tuple[int, int]]:
        """The size of each of these axes that the mesh has, with this rank's index along it."""
        names, indices = self.mesh.mesh_dim_names or (), self.mesh.get_coordinate() or ()
        places = zip(names, self.mesh.shape, indices, strict=True)
        return [(size, index) for name, size, index in places if name in axes]

    def any(self, value: bool) -> bool:
        """Whether `value` is true on some rank."""
        return bool(self.all_reduce_sum(torch.tensor(float(value), device=self.device)).item())

    def barrier(self) -> None:
        """Wait for every rank."""
        self.any(False)

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's plain value, in rank order."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def broadcast_object(self, value: T | None) -> T:
        """Rank 0's plain value, on every rank."""
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result


def counts_piece(tensor: torch.Tensor) -> bool:
    """Whether this rank is the one that counts its piece of a DTensor (in a norm), of those that hold the same piece."""
    assert isinstance(tensor, DTensor)
    indices = tensor.device_mesh.get_coordinate() or ()
    pairs = zip(tensor.placements, indices, strict=True)
    return all(index == 0 for placement, index in pairs if placement.is_replicate())


@contextmanager
def process_group(parallel: ParallelConfig | None = None) -> Iterator[Group]:
    """Form the group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or a group of one.

    On GPUs a group that an error breaks is left as it is: end the process then, as the engines do. Raises ConfigError where
    the ranks cannot be arranged as `parallel` says.
    """
    parallel = parallel or ParallelConfig()
    _refuse_stale_store()
    timeout = timedelta(minutes=parallel.timeout_minutes)
    _tell_unused_gpus()
    device = rank_device()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_world_size()))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    # with its device NCCL connects now, and not in the middle of the first step
    bound = device if on_gpu else None
    with _ended_after(timeout):
        if "WORLD_SIZE" not in os.environ:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout, device_id=bound)
        elif (store := _store(timeout)) is not None:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=bound)
        else:
            dist.init_process_group(backend, init_method="env://", timeout=timeout, device_id=bound)
    # NCCL would wait for its peers, which sit in a collective that this rank has left, and nobody would hear of the error
    may_destroy = not on_gpu
    try:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        mesh = _mesh(device, world_size, parallel)
        yield Group(mesh=mesh, device=device, rank=rank, world_size=world_size, timeout=timeout)
        may_destroy = True
    except StopRequested:
        may_destroy = True
        raise
    finally:
        if may_destroy:
            dist.destroy_process_group()


@contextmanager
def _ended_after(timeout: timedelta) -> Iterator[None]:
    """End this process where it takes longer to connect: NCCL's own limit begins once it has, and a closed port says nothing."""

    def give_up() -> None:
        log.error(
            "no connection to the other ranks within %s (parallel.timeout_minutes): a closed port, or NCCL_SOCKET_IFNAME names"
            " an interface that the other nodes do not reach; NCCL_DEBUG=INFO tells which it takes",
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


def _tell_unused_gpus() -> None:
    """Warn, on the first rank, where its machine has GPUs and the run asked for none. Call it before `rank_device` hides them."""
    if node_gpus() == 0 and os.environ.get("RANK", "0") == "0" and (found := len(machine_devices())):
        log.warning("%d GPU(s) are here and resources.gpus is 0: this run computes on the CPU; set resources.gpus", found)


def _mesh(device: torch.device, world_size: int, parallel: ParallelConfig) -> DeviceMesh:
    if parallel.replicate == 1:
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=("shard",))
    if world_size % parallel.replicate:
        raise ConfigError(f"parallel.replicate: {world_size} ranks do not divide into {parallel.replicate} copies of the model")
    sizes = (parallel.replicate, world_size // parallel.replicate)
    return init_device_mesh(device.type, sizes, mesh_dim_names=DATA_AXES)


def rank_device() -> torch.device:
    """This rank's own GPU if its node was given any, else the CPU. Raises ConfigError where ranks would have to share one,
    BackendError where the node has not what it was given.
    """
    given = node_gpus()
    if given == 0:
        # those of others may be visible; if torch saw them it would make an NCCL group for the mesh of CPUs too
        os.environ[DEVICES_VARIABLE] = ""
    if given == 0 or (given is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if given is not None and seen < given:
        raise BackendError(
            f"this node was given {given} GPUs and torch {torch.__version__} sees {seen}:"
            " look at nvidia-smi there, and whether this torch is built for GPUs"
        )
    rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), given or seen
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or rank + 1
    if ranks > gpus:
        raise ConfigError(
            f"{ranks} ranks on this node and {gpus} GPUs: NCCL wants one for each; start {gpus} ranks per node,"
            f" or set {DEVICES_VARIABLE}= (to nothing) to compute on the CPU"
        )
    return torch.device("cuda", rank * (gpus // ranks) if "LOCAL_WORLD_SIZE" in os.environ else rank)


def _refuse_stale_store() -> None:
    """torchrun hands a restarted group the store of the one before, whose ranks' addresses are still in it (torch 2.13):
    the group would wait for the dead. Raises ConfigError instead. Our own agent gives each group a store of its own.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        raise ConfigError(
            "torchrun restarted this group with the store of the one before, which hangs; "
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, or start the run with `ropewalk run`"
        )


def _store(timeout: timedelta) -> TCPStore | None:
    """Open the store in which the ranks meet, which rank 0 serves at MASTER_ADDR alone: torch would listen at all addresses.

    None where that is left to torch: torchrun serves the store itself, or MASTER_ADDR is no address of rank 0's machine.
    """
    host, port, served = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), os.environ.get("RANK") == "0"
    if not host or not port or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    listener = None
    if served:
        try:
            listener = listen_on(host, int(port), reserved=False).detach()
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return None
    return TCPStore(host, int(port), None, served, timeout, wait_for_workers=False, master_listen_fd=listener)


def _local_world_size() -> int:
    """Ranks that share this machine's cores; torchrun and our agent both say it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1"))
