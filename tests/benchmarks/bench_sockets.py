"""Sockets of a rank and bytes through the store of a group of real gloo ranks, extrapolated to 1,024 ranks.

    python -m tests.benchmarks.bench_sockets [--ranks 8,16,32,64] [--read-off 1024] [--replicate 1]

Each rank forms the group, shards a small model, trains two steps, agrees and exchanges values with the others, and saves a
checkpoint. Then it counts its sockets, and the bytes that the kernel has counted on its connection to the store. Prints one JSON
object for each number of ranks; the last one has the values of a least-squares fit of sockets, and of bytes a rank, to the
logarithm of the number. Rank 0, which serves the store, is listed apart: it has a connection to every rank.
"""

import argparse
import json
import math
import multiprocessing
import os
import socket
import struct
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from ropewalk.cluster.process.ports import free_port
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.state import model_state
from ropewalk.sharding.config import CheckpointConfig, ParallelConfig
from ropewalk.sharding.group import Group, process_group

MOST_SOCKETS, MOST_STORE_BYTES = 64, 100e6
_BYTES_ACKED_AT = 120  # in the kernel's struct tcp_info; the bytes received follow


def rank_main(rank: int, size: int, port: int, replicate: int, path: Path) -> None:
    """Train and save on one rank, and write what its sockets are."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", ROPEWALK_NODE_GPUS="0")
    torch.set_num_threads(1)
    run = RunDir(path)
    context = JobContext(run=run, attempt=1, rank=rank, local_rank=rank, world_size=size, stop_flag=None)
    if rank == 0:
        context.fence.claim()
    with process_group(ParallelConfig(replicate=replicate)) as group:
        _train(group, context)
        (path / f"{rank}.json").write_text(json.dumps(own_sockets(port)))
        group.barrier()


def _train(group: Group, context: JobContext) -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for layer in model:
        fully_shard(layer, mesh=group.mesh)
    fully_shard(model, mesh=group.mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = Checkpoints(context.run, group, context.fence, CheckpointConfig(), {})
    for _ in range(2):
        group.all_reduce_sum(model(torch.ones(4, 64)).square().sum().backward() or torch.ones(2))
        optimizer.step()
    group.any(False)
    group.broadcast_object("a" if group.is_main else None)
    group.gather_object(group.rank)
    checkpoints.save(model_state(model), step=2, position=2, progress={})
    checkpoints.wait()


def own_sockets(store_port: int) -> dict[str, int]:
    """Return the number of this process's sockets, and the bytes of its connections to the store."""
    number = num_bytes = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                continue
            number += 1
            with socket.socket(fileno=os.dup(int(descriptor))) as copy:
                if copy.getpeername()[1:2] == (store_port,):
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    num_bytes += sum(struct.unpack_from("<QQ", info, _BYTES_ACKED_AT))
        except OSError:  # the listing's own descriptor, or a socket without a peer
            continue
    return {"sockets": number, "store_bytes": num_bytes}


def measure(size: int, replicate: int) -> dict[str, int]:
    """Return the sockets of rank 0 and of the rank with the most of all others, and the bytes of all ranks."""
    with tempfile.TemporaryDirectory() as home:
        run = RunDir.create("bench", {"config": {}, "resources": {}}, Path(home))
        run.begin_attempt()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["numpy", "torch.distributed.fsdp", "ropewalk.sharding.checkpoints.checkpoint"])
        port = free_port("127.0.0.1")
        processes = [context.Process(target=rank_main, args=(rank, size, port, replicate, run.path)) for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert not any(process.exitcode for process in processes), "a rank has failed"
        first, *others = [json.loads((run.path / f"{rank}.json").read_text()) for rank in range(size)]
    return {
        "ranks": size,
        "sockets": max(rank["sockets"] for rank in others),
        "sockets_of_rank_0": first["sockets"],
        "store_bytes": sum(rank["store_bytes"] for rank in [first, *others]),
    }


def read_off(rows: list[dict[str, int]], ranks: int) -> dict[str, int]:
    """Extrapolate to a number of ranks."""
    logarithms = [math.log2(row["ranks"]) for row in rows]
    sockets = np.polyval(np.polyfit(logarithms, [row["sockets"] for row in rows], 1), math.log2(ranks))
    per_rank = np.polyval(np.polyfit(logarithms, [row["store_bytes"] / row["ranks"] for row in rows], 1), math.log2(ranks))
    return {"ranks": ranks, "sockets": math.ceil(sockets), "store_bytes": math.ceil(per_rank * ranks)}


def main() -> None:
    """Measure groups of several sizes, and fail if the fit exceeds the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,16,32,64")
    parser.add_argument("--read-off", type=int, default=1024)
    parser.add_argument("--replicate", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for size in map(int, options.ranks.split(",")):
        rows.append(measure(size, options.replicate))
        print(json.dumps(rows[-1]), flush=True)
    fitted = read_off(rows, options.read_off)
    print(json.dumps({**fitted, "extrapolated": True}))
    assert fitted["sockets"] <= MOST_SOCKETS, f"more than {MOST_SOCKETS} sockets"
    assert fitted["store_bytes"] <= MOST_STORE_BYTES, f"more than {MOST_STORE_BYTES:.0f} bytes"


if __name__ == "__main__":
    main()
