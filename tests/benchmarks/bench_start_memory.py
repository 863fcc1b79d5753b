"""Peak memory of each rank while the model is built: first weights drawn, read from a directory, or left to a checkpoint.

python -m tests.benchmarks.bench_start_memory [--ranks 4] [--sizes 78,300]

The goal for each rank: no more than an empty rank, twice its shard of the state (12 bytes a parameter), and 150 MB. Memory is
RssAnon + RssShmem, read every few milliseconds by a process apart; mapped files are not counted.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_record import Weights
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import process_group

MIB = 2**20
SLACK = 150e6 / MIB
SIZES = {  # millions of parameters: hidden size, layers, heads
    78: {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 1536},
    300: {"hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "intermediate_size": 3072},
}


def config_of(size: int) -> Any:
    keys = {**SIZES[size], "num_key_value_heads": SIZES[size]["num_attention_heads"], "tie_word_embeddings": False}
    return AutoConfig.for_model("llama", vocab_size=49_152, max_position_embeddings=512, **keys)


def rank_main(rank: int, size: int, port: int, build: dict[str, Any] | None, folder: Path) -> None:
    """Build a model on one rank, or nothing, and wait until the memory of all ranks has been read."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    parallel = ParallelConfig(reshard="always")
    with process_group(parallel) as group:
        model = None
        if build is not None:
            plan = ModelPlan(config=config_of(build["size"]), seq_len=512, weights=build["weights"])
            model = build_model(plan, RunDir(folder), group, parallel, PrecisionConfig(), weights=build["start"] != "resume")
        group.barrier()
        (folder / f"{rank}.ready").touch()
        while not (folder / "end").exists():
            time.sleep(0.01)
        del model


def anonymous_mib(pid: int) -> float:
    """Return the memory of a process that no file backs."""
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(value) for value in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", text)) / 1024


def peak_mib(ranks: int, build: dict[str, Any] | None) -> list[float]:
    """Return the peak of each rank."""
    with tempfile.TemporaryDirectory() as home:
        run = RunDir.create("bench", {"config": {"seed": 0}}, Path(home))
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=rank_main, args=(rank, ranks, store.port, build, run.path)) for rank in range(ranks)]
        for process in processes:
            process.start()
        peaks = [0.0] * ranks
        while not all((run.path / f"{rank}.ready").exists() for rank in range(ranks)):
            assert all(process.exitcode is None for process in processes), "a rank has ended"
            for rank, process in enumerate(processes):
                with suppress(OSError):
                    peaks[rank] = max(peaks[rank], anonymous_mib(process.pid or 0))
            time.sleep(0.003)
        (run.path / "end").touch()
        for process in processes:
            process.join()
    return peaks


def main() -> None:
    """Measure all starts, and say which exceed the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--sizes", default="78,300")
    options = parser.parse_args()
    empty = max(peak_mib(options.ranks, None))
    print(f"an empty rank: {empty:.0f} MiB")
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as home:
            model = AutoModelForCausalLM.from_config(config_of(size), dtype=torch.float32)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            model.save_pretrained(home)
            del model
            goal = empty + 2 * 12 * parameters / options.ranks / MIB + SLACK
            print(f"{parameters / 1e6:.0f} M parameters, {parameters * 4 / MIB:.0f} MiB in fp32; goal {goal:.0f} MiB a rank")
            for start, weights in {"scratch": None, "directory": Weights(path=home), "resume": None}.items():
                peaks = peak_mib(options.ranks, {"size": size, "start": start, "weights": weights})
                print(f"  {start:10s} {', '.join(f'{peak:.0f}' for peak in peaks)} MiB", flush=True)
                assert max(peaks) <= goal, f"{start}: more than {goal:.0f} MiB"


if __name__ == "__main__":
    main()
