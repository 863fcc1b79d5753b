"""Checkpoints: sizes and times at thousands of ranks by arithmetic, and the standstill of a real loop beside other libraries.

    python -m tests.benchmarks.bench_checkpoint [--only sizes|standstill] [--size 135] [--step-seconds 5] [--saves 3]

Sizes: the manifest of Llama 3's 70B on 1,024 ranks and 405B on 4,096, the header and table of one file, and what it takes a rank
of half as many ranks, in a process of its own, to read the manifest and find the bytes that it needs.

Standstill: two ranks train a Llama of so many million parameters, each step long enough, and save every tenth step: with
Ropewalk, with `torch.distributed.checkpoint.save`, with `torch_checkpointing` (installed into build/ the first time; without
pinned memory and without a description of how tensors are divided, both of which need a GPU), and not at all. Standstill is what
the loop waits: in the call that saves, and before the update. All steps together are compared with as many of the same way's
median step, which no save disturbs, and not with the way that does not save: a machine is not equally fast for so long.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.file_layout import FileLayout, StoredTensor
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME
from ropewalk.sharding.checkpoints.manifest import (
    CheckpointManifest,
    FileRecord,
    TensorTable,
    dump_manifest,
    file_name,
    read_manifest,
)
from ropewalk.sharding.checkpoints.read_plan import ReadPlan
from ropewalk.sharding.checkpoints.staging import local_tensor
from ropewalk.sharding.checkpoints.state import model_state, optimizer_state, prepare_adam
from ropewalk.sharding.config import CheckpointConfig, ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from ropewalk.sharding.placement import Shape, Split, pieces

ROOT = Path(__file__).parents[2]
MIB = 2**20
EVERY_STEPS = 10
WAYS = ("none", "ropewalk", "dcp", "torch_checkpointing")
LLAMA = {  # layers, hidden, intermediate, width of keys and values, ranks
    "70B": (80, 8192, 28672, 1024, 1024),
    "405B": (126, 16384, 53248, 1024, 4096),
}
SIZES = {  # millions of parameters: hidden size, layers, heads, intermediate size, vocabulary
    0: (32, 2, 2, 64, 512),
    135: (576, 30, 9, 1536, 49_152),
}


# --- sizes


def llama_state(size: str) -> Iterator[tuple[str, Shape]]:
    """Yield names and shapes of a Llama's parameters."""
    layers, hidden, intermediate, keys, _ = LLAMA[size]
    yield "model.embed_tokens.weight", (128_256, hidden)
    for layer in range(layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        yield from ((f"{attention}.{name}_proj.weight", (hidden, hidden)) for name in "qo")
        yield from ((f"{attention}.{name}_proj.weight", (keys, hidden)) for name in "kv")
        yield from ((f"{mlp}.{name}_proj.weight", (intermediate, hidden)) for name in ("gate", "up"))
        yield f"{mlp}.down_proj.weight", (hidden, intermediate)
        yield from ((f"model.layers.{layer}.{name}_layernorm.weight", (hidden,)) for name in ("input", "post_attention"))
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (128_256, hidden)


def stored_state(size: str) -> dict[str, StoredTensor]:
    sharded = (Split(0, 0, 1),)
    parameters = dict(llama_state(size))
    state = {f"model.{name}": StoredTensor(shape, "float32", sharded) for name, shape in parameters.items()}
    for name, shape in parameters.items():
        state[f"optimizer.{name}.step"] = StoredTensor((), "float32", ())
        state |= {f"optimizer.{name}.{key}": StoredTensor(shape, "float32", sharded) for key in ("exp_avg", "exp_avg_sq")}
    return state


def write_manifest(size: str, folder: StoragePath) -> FileLayout:
    ranks = LLAMA[size][-1]
    state = stored_state(size)
    layout = FileLayout(state, (ranks,))
    manifest = CheckpointManifest(
        step=1000, position=8000, config_hash="", identity={}, world_size=ranks, attempt=1, files=[],
        tensors=TensorTable.of(state, {"shard": ranks}),
    )  # fmt: skip
    sizes = (layout.file(rank) for rank in layout.writers)
    files = [
        FileRecord(path=file_name(manifest, rank), size=file.data_start + file.size, checksum="xxh3:" + "0" * 32)
        for rank, file in enumerate(sizes)
    ]
    folder.write(MANIFEST_NAME, dump_manifest(manifest.model_copy(update={"files": files})))
    return layout


def resident_kib(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0])


def plan_of_one_rank(url: str, connection: Any) -> None:
    """Read a manifest, and find all bytes that a rank in the middle of half as many ranks needs."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = resident_kib("VmRSS"), time.process_time()
    manifest = read_manifest(StoragePath(url))
    layout = manifest.tensors.layout()
    plan, mesh = ReadPlan(layout), (manifest.world_size // 2,)
    parts = [
        part
        for name, tensor in layout.tensors.items()
        for part in plan.parts(name, pieces(tensor.shape, mesh, tensor.placement, mesh[0] // 2))
    ]
    seconds = time.process_time() - started
    files, size = len({part.rank for part in parts}), sum(part.end - part.start for part in parts)
    connection.send({
        "resuming rank: CPU seconds": round(seconds, 2),
        "MiB of memory": round((resident_kib("VmHWM") - before) / 1024, 1),
        "reads": len(parts),
        "of files": files,
        "GB to read": round(size / 1e9, 2),
    })  # fmt: skip


def sizes() -> None:
    context = multiprocessing.get_context("spawn")
    for size, (*_, ranks) in LLAMA.items():
        with tempfile.TemporaryDirectory() as home:
            folder = StoragePath(home)
            file = write_manifest(size, folder).file(ranks // 2)
            ours, theirs = context.Pipe()
            process = context.Process(target=plan_of_one_rank, args=(home, theirs))
            process.start()
            figures = ours.recv()
            process.join()
            print(f"{size} on {ranks} ranks, resumed on {ranks // 2}")
            figures = {
                "manifest: MB": round(folder.size(MANIFEST_NAME) / 1e6, 3),
                "header: kB": round(len(file.header) / 1e3, 2),
                "table: kB": round(file.num_blocks * 8 / 1e3, 2),
                **figures,
            }
            print("  " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)


# --- standstill


class Way:
    """A way to save: `save` returns when training may go on, `before_update` when the state may change."""

    def __init__(self, save: Callable[[int], Any], before_update: Callable[[], None], close: Callable[[], None]) -> None:
        self.save, self.before_update, self.close = save, before_update, close


def nothing(*_: Any) -> None:
    """Neither save nor wait."""


def way_of(name: str, group: Group, state: dict[str, torch.Tensor], home: Path) -> Way:
    if name == "ropewalk":
        run = RunDir(home / "run")
        store = Checkpoints(run, group, Fence(run, 1, 0), CheckpointConfig(keep=1), {})
        return Way(lambda step: store.save(state, step=step, position=0, progress={}), store.wait_for_copy, store.close)
    if name == "dcp":
        return Way(lambda step: dcp_save(state, checkpoint_id=home / "dcp" / str(step)), nothing, nothing)
    if name == "torch_checkpointing":
        return _torch_checkpointing(state, home)
    return Way(nothing, nothing, nothing)


def _torch_checkpointing(state: dict[str, torch.Tensor], home: Path) -> Way:
    import torch_checkpointing as peer  # type: ignore[import-not-found]
    from torch_checkpointing.checkpoint_process import CheckpointProcessConfig  # type: ignore[import-not-found]
    from torch_checkpointing.config import AsyncCheckpointSaverConfig  # type: ignore[import-not-found]
    from torch_checkpointing.staging import CheckpointStagerConfig  # type: ignore[import-not-found]
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig  # type: ignore[import-not-found]

    save = AsyncCheckpointSaverConfig(
        staging_config=CheckpointStagerConfig(use_pinned_memory=False, use_non_blocking_copy=False),
        process_config=CheckpointProcessConfig(subprocess_init_timeout_secs=300),  # a busy machine imports torch slowly
    )
    manager = peer.CheckpointManager(
        peer.CheckpointManager.Config(save=save, storage_config=LocalFileSystemStorageConfig(use_direct_io=False))
    )
    pieces_of_rank = {name: local_tensor(tensor) for name, tensor in state.items()}  # it describes DTensors on GPUs only

    def wait() -> None:
        with manager.lock():
            pass

    return Way(lambda step: manager.save(str(home / "peer" / str(step)), {"state": pieces_of_rank}), wait, manager.close)


def rank_main(rank: int, port: int, home: Path, options: argparse.Namespace) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    os.environ.update(LOCAL_RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo", PYTHONPATH=str(_peer()))
    sys.path.append(str(_peer()))
    torch.set_num_threads(1)
    with process_group() as group:
        hidden, layers, heads, intermediate, vocabulary = SIZES[options.size]
        config = AutoConfig.for_model(
            "llama", hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
            intermediate_size=intermediate, vocab_size=vocabulary, tie_word_embeddings=True,
        )  # fmt: skip
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model = parallelize(model, group, ParallelConfig(), PrecisionConfig())
        for parameter in model.parameters():
            torch.nn.init.normal_(local_tensor(parameter), std=0.02)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        prepare_adam(optimizer)
        state = model_state(model) | optimizer_state(model, optimizer)
        tokens = torch.randint(0, vocabulary, (1, 65))

        def backward(times: int = 1) -> None:
            for _ in range(times):
                logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

        backward()
        started = time.perf_counter()
        backward()
        count = torch.tensor(options.step_seconds / (time.perf_counter() - started)).ceil()
        dist.all_reduce(count, dist.ReduceOp.MAX)
        results = {}
        for name in options.ways.split(","):
            way = way_of(name, group, state, home)
            results[name] = measure(way, partial(backward, int(count)), optimizer, group, saves=options.saves)
            way.close()
            for folder in ("dcp", "peer"):
                if rank == 0:
                    shutil.rmtree(home / folder, ignore_errors=True)
            group.barrier()
        if rank == 0:
            (home / "results.json").write_text(json.dumps(results))


def measure(
    way: Way, backward: Callable[[], None], optimizer: torch.optim.Optimizer, group: Group, *, saves: int
) -> dict[str, Any]:
    """Train, and save every tenth step; returns the seconds of all steps and the standstill of each save."""
    waited, standstills, steps = 0.0, [], []
    first = way.save(0)  # starts processes and allocates memory
    way.before_update()
    if isinstance(first, Future):
        first.result()
    group.barrier()
    for step in range(1, EVERY_STEPS * saves + 2):
        started = time.perf_counter()
        backward()
        before = time.perf_counter()
        way.before_update()
        waited += time.perf_counter() - before
        if step > 1 and step % EVERY_STEPS == 1:
            standstills.append(waited)
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY_STEPS == 0:
            group.barrier()
            before = time.perf_counter()
            way.save(step)
            waited = time.perf_counter() - before
        steps.append(time.perf_counter() - started)
    return {"steps": steps, "standstills": standstills}


def _peer() -> Path:
    """Return the folder of torch_checkpointing, apart from the project's packages; install it the first time."""
    folder = ROOT / "build/torch-checkpointing"
    if not folder.is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            "torch_checkpointing==0.1.*",
        ]
        subprocess.run(command, check=True)
    return folder


def standstill(options: argparse.Namespace) -> None:
    if "torch_checkpointing" in options.ways:
        _peer()
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        run = RunDir.create("bench", {"job": "pretrain", "config": {}}, Path(home))
        run.begin_attempt()
        run.path.rename(Path(home) / "run")
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=rank_main, args=(rank, store.port, Path(home), options)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0, 0]
        results = json.loads((Path(home) / "results.json").read_text())
    for name, figures in results.items():
        steps = figures["steps"]
        line = f"{name:20s} step {statistics.median(steps):.2f} s"
        if name != "none":
            line += f", standstill {statistics.median(figures['standstills']):.3f} s a save"
        print(f"{line}, all steps {statistics.mean(steps) / statistics.median(steps) - 1:+.1%}")
    if {"ropewalk", "dcp"} <= results.keys():
        ours, theirs = (statistics.median(results[name]["standstills"]) for name in ("ropewalk", "dcp"))
        print(f"standstill: {ours / theirs:.3f} of dcp.save's; goal 0.1")


def main() -> None:
    """Print sizes, and the standstill of each way to save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("sizes", "standstill"))
    parser.add_argument("--size", type=int, choices=sorted(SIZES), default=135)
    parser.add_argument("--step-seconds", type=float, default=5.0)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--folder", help="where the checkpoints go; unset: the folder for temporary files")
    options = parser.parse_args()
    if options.only != "standstill":
        sizes()
    if options.only != "sizes":
        with contextlib.suppress(KeyboardInterrupt):
            standstill(options)


if __name__ == "__main__":
    main()
