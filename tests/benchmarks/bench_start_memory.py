"""Peak memory of each rank that starts, saves, resumes or evaluates a model, and of a process that exports it.

python -m tests.benchmarks.bench_start_memory [--ranks 4] [--sizes 78,300]

The goal for a rank that trains: no more than an empty rank, twice its shard of the state (12 bytes a parameter), and 150 MB.
For an export: an empty process and the two largest tensors. For a sharded evaluation: an empty rank, its shard of the weights,
and the two largest tensors; activations and buffers of connections come on top, so this row is only printed. Memory is RssAnon +
RssShmem, read every few milliseconds by a process apart; mapped files are not counted.
"""

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed import TCPStore
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import write_json
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.inference.scoring.open_on_ranks import find_on_ranks, open_on_ranks
from ropewalk.jobs.inference.scoring.requests import Request
from ropewalk.jobs.inference.scoring.scorer import Scorer
from ropewalk.jobs.training.loop.architecture.model_record import Weights
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.weights.export import export
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.config import CheckpointConfig, ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import Group, process_group
from tests.jobs.corpus import write_tokenizer

MIB = 2**20
SLACK = 150e6 / MIB
SIZES = {  # millions of parameters: hidden size, layers, heads
    78: {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 1536},
    300: {"hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "intermediate_size": 3072},
}
VOCABULARY = 49_152
PARALLEL = ParallelConfig(reshard="always", accumulate="sharded")


def config_of(size: int) -> Any:
    keys = {**SIZES[size], "num_key_value_heads": SIZES[size]["num_attention_heads"], "tie_word_embeddings": False}
    return AutoConfig.for_model("llama", vocab_size=VOCABULARY, max_position_embeddings=512, **keys)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of all ranks, or of one process, and where its files are."""

    kind: Literal["empty", "start", "save", "resume", "export", "evaluate"]
    folder: Path
    size: int = 0
    weights: Weights | None = None
    lora: bool = False

    @property
    def run(self) -> RunDir:
        (path,) = self.folder.glob("run-*")
        return RunDir(path)


def do(work: Work, group: Group | None) -> Any:
    """Do the work, and return what stays in memory."""
    if work.kind == "empty":
        return None
    if work.kind == "export":
        return export(work.run, work.folder / "exported")
    assert group is not None
    return evaluate(work, group) if work.kind == "evaluate" else train(work, group)


def train(work: Work, group: Group) -> Any:
    plan = ModelPlan(config=config_of(work.size), seq_len=512, weights=work.weights)
    plan = plan.with_lora(LoraConfig(), 0) if work.lora else plan
    model = build_model(plan, work.run, group, PARALLEL, PrecisionConfig(), weights=work.kind != "resume" or work.lora)
    state = TrainState(model, make_optimizer(model, OptimConfig()), trained_only=work.lora)
    checkpoints = Checkpoints(work.run, group, Fence(work.run, 1, 0), CheckpointConfig(), plan.fingerprint)
    if work.kind == "save":
        checkpoints.save(state.tensors, step=1, position=1, progress={})
        checkpoints.wait()
        if group.is_main:
            record = TokenizerRecord(name="bytes", hash="", vocabulary=VOCABULARY, end_of_document=256, version="1")
            write_json(work.run.model_record, plan.record(record, "fp32").model_dump(mode="json"))
            write_tokenizer(work.run.tokenizer)
    elif work.kind == "resume":
        saved = checkpoints.find()
        assert saved is not None
        checkpoints.load(*saved, state.tensors)
    return state


def evaluate(work: Work, group: Group) -> Any:
    """Score some tokens with a sharded model."""
    rank_model = open_on_ranks(find_on_ranks(str(work.run.path), work.folder, group), group, torch.float32, "always")
    requests = [Request(tuple(range(number, number + 32)), (1, 2, 3)) for number in range(4)]
    Scorer(rank_model.opened).score(requests)
    rank_model.settle()
    return rank_model


def rank_main(rank: int, ranks: int, port: int, work: Work, signals: Path) -> None:
    """Work as one rank (or alone, if there are none), and wait until the memory of all has been read."""
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    if ranks == 0:
        result = do(work, None)
        wait(signals, rank)
        return
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True")
    with process_group(PARALLEL) as group:
        result = do(work, group)
        group.barrier()
        wait(signals, rank)
        del result


def wait(signals: Path, rank: int) -> None:
    (signals / f"{rank}.ready").touch()
    while not (signals / "end").exists():
        time.sleep(0.01)


def anonymous_mib(pid: int) -> float:
    """Return the memory of a process that no file backs."""
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(value) for value in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", text)) / 1024


def peaks_mib(ranks: int, work: Work) -> list[float]:
    """Return the peak of each rank; with no ranks, that of one process."""
    with tempfile.TemporaryDirectory() as home:
        signals, count = Path(home), max(ranks, 1)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("forkserver")
        # imports take seconds a process; the second is among those that the ranks of jobs are forked with
        context.set_forkserver_preload(["tests.benchmarks.bench_start_memory", "transformers.models.llama.modeling_llama"])
        arguments = [(rank, ranks, store.port, work, signals) for rank in range(count)]
        processes = [context.Process(target=rank_main, args=each) for each in arguments]
        for process in processes:
            process.start()
        peaks = [0.0] * count
        while not all((signals / f"{rank}.ready").exists() for rank in range(count)):
            assert all(process.exitcode is None for process in processes), "a process has ended"
            for rank, process in enumerate(processes):
                with suppress(OSError):
                    peaks[rank] = max(peaks[rank], anonymous_mib(process.pid or 0))
            time.sleep(0.003)
        (signals / "end").touch()
        for process in processes:
            process.join()
    return peaks


def report(name: str, peaks: list[float], goal: float) -> bool:
    """Print a row; returns True if the goal is met."""
    print(f"  {name:34s} {', '.join(f'{peak:.0f}' for peak in peaks)} of {goal:.0f} MiB", flush=True)
    return max(peaks) <= goal


def measure(size: int, ranks: int, empty: float, alone: float) -> list[str]:
    """Measure all kinds of work for one size; returns those above their goal."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        run = RunDir.create("run", {"job": "pretrain", "config": {"seed": 0}}, folder)
        run.begin_attempt()
        model = AutoModelForCausalLM.from_config(config_of(size), dtype=torch.float32)
        sizes = sorted((parameter.numel() * 4 / MIB for parameter in model.parameters()), reverse=True)
        model.save_pretrained(folder / "model")
        del model
        total = sum(sizes)
        print(f"{total * MIB / 4e6:.0f} M parameters, {total:.0f} MiB in fp32 on {ranks} ranks")
        goal = empty + 2 * 3 * total / ranks + SLACK
        directory, trained = Weights(path=str(folder / "model")), Weights(run=run.id, step=1)
        train = {
            "start from scratch": Work(kind="start", folder=folder, size=size),
            "start from a directory": Work(kind="start", folder=folder, size=size, weights=directory),
            "start with LoRA on a directory": Work(kind="start", folder=folder, size=size, weights=directory, lora=True),
            "start and save": Work(kind="save", folder=folder, size=size),
            "resume": Work(kind="resume", folder=folder, size=size),
            "start from a run": Work(kind="start", folder=folder, size=size, weights=trained),
            "start with LoRA on a run": Work(kind="start", folder=folder, size=size, weights=trained, lora=True),
        }
        met = {name: report(name, peaks_mib(ranks, work), goal) for name, work in train.items()}
        evaluation, exported = Work(kind="evaluate", folder=folder), Work(kind="export", folder=folder)
        report("evaluate, sharded", peaks_mib(ranks, evaluation), empty + sum(sizes[:2]) + total / ranks)
        met["export"] = report("export", peaks_mib(0, exported), alone + sum(sizes[:2]))
        return [f"{name} of {size} M" for name, is_met in met.items() if not is_met]


def main() -> None:
    """Measure all kinds of work, and say which exceed their goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--sizes", default="78,300")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        empty, alone = (max(peaks_mib(ranks, Work(kind="empty", folder=Path(home)))) for ranks in (options.ranks, 0))
    print(f"an empty rank: {empty:.0f} MiB, an empty process: {alone:.0f} MiB")
    above = [row for size in map(int, options.sizes.split(",")) for row in measure(size, options.ranks, empty, alone)]
    assert not above, f"above the goal: {', '.join(above)}"


if __name__ == "__main__":
    main()
