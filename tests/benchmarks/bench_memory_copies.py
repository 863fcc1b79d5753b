"""Cost of a copy of a rank's state to the memory of its node and of another one, by the size of the state.

    python -m tests.benchmarks.bench_memory_copies [--copies 5] [--megabytes 3 810]

810 MB are a rank's share of SmolLM2-135M on 2 ranks. The other node's server is a process of its own. CPU seconds are those of
both; `update_waits` are the seconds until the state may change. Prints one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.distributed.tensor import Shard, distribute_tensor

from ropewalk.cluster.memory.server import MemoryServer
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.node_memory import SHARED_MEMORY
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.state import State
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.group import Group, process_group
from tests.sharding.test_memory_copies import KEY, OfTwoNodes

ROWS, SHARE = 512, 1.0  # percent of a step's time that a copy may take


def serve(folder: str, line: Connection) -> None:
    """The other node: send the address, then the CPU seconds so far whenever something arrives."""
    line.send(MemoryServer(Path(folder), "127.0.0.1", KEY).access.address)
    while line.recv():
        line.send(time.process_time())


def state_of(group: Group, megabytes: int) -> State:
    """A state with 30 tensors of each kind."""
    columns = max(1, megabytes * 10**6 // (90 * ROWS * 4))
    names = [f"{kind}{i}{end}" for i in range(30) for kind, end in (("model.", ""), ("optimizer.", ".exp_avg"), ("ema.", ""))]
    return {name: distribute_tensor(torch.rand(ROWS, columns), group.mesh, [Shard(0)]) for name in names}


def measure(group: Group, megabytes: int, copies: int) -> dict[str, float]:
    """Medians of some copies, after two that allocate the memory."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as memory, tempfile.TemporaryDirectory() as disk:
        here, there = Path(memory) / "here", Path(memory) / "there"
        here.mkdir()
        there.mkdir()
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        other = multiprocessing.get_context("spawn").Process(target=serve, args=(str(there), theirs), daemon=True)
        other.start()
        server = MemoryServer(here, "127.0.0.1", KEY)
        nodes = (server.access.address, str(ours.recv()))
        run = RunDir.create("bench", {"job": "pretrain", "config": {}}, Path(disk))
        run.begin_attempt()
        both = OfTwoNodes(**vars(group), nodes=nodes)
        store = Checkpoints(run, both, Fence(run, 1, 0), CheckpointConfig(), {}, memory=server.access)
        state = state_of(group, megabytes)

        def cpu() -> float:
            ours.send(True)
            return time.process_time() + float(ours.recv())

        figures: list[tuple[float, float, float]] = []
        for step in range(copies + 2):
            before, began = cpu(), time.perf_counter()
            store.copy_to_memory(state, step=step, position=step, progress={})
            store.wait_for_copy()
            copied = time.perf_counter() - began
            store.wait()
            figures.append((cpu() - before, copied, time.perf_counter() - began))
        store.close()
        server.close()
        ours.send(False)
        other.join()
    assert not any(event["event"] == "memory_copy_failed" for event in run.read_events())
    cpu_seconds, update_waits, seconds = (statistics.median(column) for column in zip(*figures[2:], strict=True))
    return {"cpu_seconds": cpu_seconds, "update_waits": update_waits, "seconds": seconds}


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[3, 810])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with process_group() as group:
        report = {f"{size} MB": measure(group, size, arguments.copies) for size in arguments.megabytes}
    largest = f"{arguments.megabytes[-1]} MB"
    law = f"N = CPU seconds of a copy / ({SHARE:.0f}% of a step's) = {report[largest]['cpu_seconds'] * 100 / SHARE:.0f} s / step"
    print(json.dumps({**report, "law": law}, indent=1))


if __name__ == "__main__":
    main()
