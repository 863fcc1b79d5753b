"""Growth of memory, files, messages and sockets with the number of ranks: the real code on simulated ranks.

    python -m tests.benchmarks.bench_growth [--ranks 8,64,512,4096] [--sockets 4,8,16]

Each row has a law: constant for each rank, logarithmic, or linear for all ranks together. A row that grows faster ends the
program with an error. A simulated rank is one of a process group whose collectives do nothing; its parameters are on the meta
device, or tiny. Sockets are those of real gloo ranks, as in bench_sockets, so there are fewer.
"""

import argparse
import json
import math
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from ropewalk.cluster.backends.base import BackendState
from ropewalk.cluster.engines.ranks import RanksNode
from ropewalk.cluster.membership.decisions import Reserve, Tell
from ropewalk.cluster.membership.groups import Groups
from ropewalk.cluster.membership.members import Died, Member, Received
from ropewalk.cluster.membership.protocol import Message, pack
from ropewalk.cluster.process.signals import ShutdownGate
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.mirror.node_summary import summarize
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group
from ropewalk.sharding.parallelize import parallelize
from tests.benchmarks.growth_on_disk import checkpoint, data

RANKS_PER_NODE = 8
CONSTANT, LOGARITHMIC, LINEAR = "constant", "logarithmic", "linear"
LAWS = {
    "state of a rank, over its share of the model": CONSTANT,
    "memory of a rank for objects of a model, KiB": CONSTANT,
    "collectives of a step": CONSTANT,
    "samples of a rank": CONSTANT,
    "logs of ranks, files": LINEAR,
    "messages of a formation and a hang": LINEAR,
    "their bytes, KiB": LINEAR,
    "events of a hang, KiB": LINEAR,
    "words of `why` about a hang": CONSTANT,
    "summary of the nodes' samples, KiB": CONSTANT,
    "read before the first batch, MiB": CONSTANT,
    "files open before the first batch": CONSTANT,
    "manifest of a checkpoint, KiB": LINEAR,
    "header and table of a rank's file, KiB": CONSTANT,
    "bytes that a resuming rank reads, over its share": CONSTANT,
    "sockets of a rank": LOGARITHMIC,
    "bytes of a rank through the store": LOGARITHMIC,
}
TOLERANCE = 1.1
CHUNK_BYTES = 80  # of a list that `fully_shard` makes of a parameter's chunks, for each rank; not counted
_LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32_768,
}
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 128}


@contextmanager
def simulated(rank: int, size: int, device: str) -> Iterator[Group]:
    """Form a group in which this process is one rank, and whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("shard",))
        yield Group(mesh=mesh, device=torch.device(device), rank=rank, world_size=size, timeout=timedelta(minutes=1))
    finally:
        dist.destroy_process_group()


def model_on(group: Group, sizes: Mapping[str, int]) -> Any:
    config = AutoConfig.for_model("llama", num_hidden_layers=2, tie_word_embeddings=False, **sizes)
    return parallelize(skeleton(config, "causal_lm"), group, ParallelConfig(reshard="always"), PrecisionConfig())


class Collectives(TorchDispatchMode):
    """Counts the collectives that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace in ("c10d", "_c10d_functional")
        return func(*args, **(kwargs or {}))


def memory(size: int) -> dict[str, float]:
    """Build a model on the first and on the last rank."""
    shares, peaks = [], []
    for rank in (0, size - 1):
        with simulated(rank, size, "meta") as group:
            tracemalloc.start()
            model = model_on(group, _LARGE)
            peaks.append((tracemalloc.get_traced_memory()[1] - CHUNK_BYTES * size) / 1024)
            tracemalloc.stop()
            parameters = list(model.parameters())
            shares.append(sum(p.to_local().numel() for p in parameters) * size / sum(p.numel() for p in parameters))
    return {
        "state of a rank, over its share of the model": max(shares),
        "memory of a rank for objects of a model, KiB": max(peaks),
    }


def training(size: int) -> dict[str, float]:
    """Train a step on one rank; the global batch has two samples a rank."""
    config = PretrainConfig.model_validate({"data": "none", "steps": 1, "batch": {"global_batch": 2 * size, "micro_batch": 1}})
    with simulated(size - 1, size, "cpu") as group:
        model = model_on(group, _TINY)
        state = TrainState(model, make_optimizer(model, config.optim))
        ids = torch.ones(2, 8, dtype=torch.long)
        batch = {"input_ids": ids, "labels": ids}
        step = TrainStep(state, NextToken(), {name: each[:1] for name, each in batch.items()}, config, group, dropout=False)
        with Collectives() as collectives:
            step.update(step.reduce_stats(step.backward(batch, 0), stop=False, save_failed=False), 1e-3)
        return {"collectives of a step": collectives.count, "samples of a rank": len(step.plan.samples(0))}


def files(size: int) -> dict[str, float]:
    """Name the logs of all ranks, record a hang of all nodes, diagnose it, and summarize samples."""
    nodes = range(size // RANKS_PER_NODE)
    with tempfile.TemporaryDirectory() as home:
        run = RunDir.create("bench", {"job": "pretrain", "config": {}, "resources": {}}, Path(home))
        run.begin_attempt()
        logs = {_log(run, rank, len(nodes)) for rank in range(size)}
        for node in nodes:
            ranks = range(RANKS_PER_NODE * node, RANKS_PER_NODE * (node + 1))
            places = [{"rank": rank, "phase": "step", "where": "all_reduce in sums", "state": "sleeping"} for rank in ranks]
            run.event("ranks_hung", attempt=1, group=1, node=node, step=7, seconds=2.0, ranks=places, stacks="stacks")
        events = sum(path.stat().st_size for path in (run.path / "events").iterdir())
        (line,) = diagnose(run, BackendState(state=RunState.RUNNING)).evidence
    counts = _messages(len(nodes))
    samples = [{"time": 1.0, "node": node, **{f"gpu{gpu}_percent": 50.0 + node % 3 for gpu in range(8)}} for node in nodes]
    return {
        "logs of ranks, files": len(logs),
        "messages of a formation and a hang": counts["formation"] + counts["hang"],
        "their bytes, KiB": counts["bytes"] / 1024,
        "events of a hang, KiB": events / 1024,
        "words of `why` about a hang": len(line.split()),
        "summary of the nodes' samples, KiB": len(json.dumps(summarize(samples))) / 1024,
    }


def _messages(num_nodes: int) -> dict[str, int]:
    """Form a group, let all nodes agree on a hang, form another group, and let a node die; count messages and their bytes."""
    groups = Groups(1, 1, num_nodes, RANKS_PER_NODE, expected=num_nodes)
    members = [Member(f"{node:032x}", f"node {node}", (0, 0), 0.0) for node in range(num_nodes)]
    counts: dict[str, int] = dict.fromkeys(("formation", "hang", "death", "bytes"), 0)

    def handle(kind: str, event: Received | Died) -> None:
        decisions = groups.handle(event, 0.0)
        decisions += [more for each in decisions if isinstance(each, Reserve) for more in groups.reserved(each.number + 1, 0.0)]
        sent = [decision.message for decision in decisions if isinstance(decision, Tell)]
        heard = [event.message] if isinstance(event, Received) else []
        counts[kind] += len(sent) + len(heard)
        counts["bytes"] += sum(len(pack(message)) for message in (*sent, *heard)) if kind != "death" else 0

    def all_say(kind: str, message: Message) -> None:
        for node, member in enumerate(members):
            handle(kind, Received(member, {**message, "node": node, "address": f"10.0.{node % 256}.1", "port": 29500}))

    all_say("formation", {"say": "ready", "group": 0})
    all_say("hang", {"say": "votes", "group": 1, "silent": True, "cause": True, "waiter": True, "spare": False})
    all_say("hang", {"say": "recorded", "group": 1})
    all_say("formation", {"say": "ready", "group": 1})
    handle("death", Died(members[0], silent=False))
    assert groups.number == 2
    assert counts["death"] == num_nodes - 1, "each other agent hears of it once"
    return counts


def _log(run: RunDir, rank: int, num_nodes: int) -> str:
    node = RanksNode(
        run=run,
        attempt=1,
        index=rank // RANKS_PER_NODE,
        most_nodes=num_nodes,
        ranks_per_node=RANKS_PER_NODE,
        address="127.0.0.1",
        stop_flag=run.path,
        gate=ShutdownGate(),
    )
    return (node.shared_log if rank else "") or f"rank-{rank}.log"


def sockets(size: int) -> dict[str, float]:
    """Form a real group."""
    from tests.benchmarks.bench_sockets import measure

    row = measure(size, replicate=1)
    return {"sockets of a rank": row["sockets"], "bytes of a rank through the store": row["store_bytes"] / size}


def is_lawful(law: str, sizes: Sequence[int], values: Sequence[float]) -> bool:
    """Return True if the values grow no faster than the law allows, from the first number of ranks on."""
    if law == CONSTANT:
        return max(values) <= TOLERANCE * values[0]
    if law == LINEAR:
        return all(value / size <= TOLERANCE * values[0] / sizes[0] for size, value in zip(sizes, values, strict=True))
    slopes = [
        (after - before) / math.log2(larger / smaller)
        for smaller, larger, before, after in zip(sizes, sizes[1:], values, values[1:], strict=False)
    ]
    return max(slopes) <= TOLERANCE * max(slopes[0], values[0] / math.log2(sizes[0]))


def measure_all(sizes: Sequence[int]) -> dict[str, list[float]]:
    """Return each row's values for the numbers of ranks."""
    with simulated(0, 2, "meta") as group:
        model_on(group, _TINY)  # what is imported and cached at the first use
    rows: dict[str, list[float]] = {}
    for size in sizes:
        for name, value in {**memory(size), **training(size), **files(size), **data(size), **checkpoint(size)}.items():
            rows.setdefault(name, []).append(round(value, 2))
    return rows


def report(rows: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> list[str]:
    """Print the rows, and return the names of those that grow faster than their law allows."""
    for name, values in rows.items():
        print(json.dumps({"what": name, "law": LAWS[name], **dict(zip(map(str, sizes), values, strict=True))}), flush=True)
    return [name for name, values in rows.items() if not is_lawful(LAWS[name], sizes, values)]


def main() -> None:
    """Measure, print and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,64,512,4096")
    parser.add_argument("--sockets", default="4,8,16")
    options = parser.parse_args()
    sizes, real = ([int(text) for text in each.split(",")] for each in (options.ranks, options.sockets))
    wrong = report(measure_all(sizes), sizes)
    measured = [sockets(size) for size in real]
    wrong += report({name: [row[name] for row in measured] for name in measured[0]}, real)
    assert not wrong, f"faster than the law allows: {wrong}"


if __name__ == "__main__":
    main()
