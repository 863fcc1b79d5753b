"""Peak memory of ranks that train, against the forecast of a dry run.

python -m tests.benchmarks.bench_forecast [--ranks 2,4] [--layers 12] [--modes none,full]

A model of 101 M parameters (12 layers) trains for two steps with a checkpoint between them. The goal for the memory over an empty
rank, RssAnon + RssShmem read every few milliseconds by a process apart: within 5% of the forecast.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore
from transformers import AutoConfig

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.forecast.measure import measure_model
from ropewalk.jobs.training.loop.forecast.rows import Forecast
from ropewalk.jobs.training.loop.model import ModelPlan, build_model
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.group import Group, process_group
from tests.benchmarks.bench_start_memory import MIB, anonymous_mib, wait

SEQ_LEN, SAMPLES, WITHIN = 512, 2, 0.05


def config_of(layers: int) -> Any:
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "num_hidden_layers": layers}
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "vocab_size": 32768, "max_position_embeddings": SEQ_LEN}
    return AutoConfig.for_model("llama", **sizes, **heads, tie_word_embeddings=True)


def train(config: TrainingConfig, layers: int, run: RunDir, group: Group) -> TrainState:
    plan = ModelPlan(config=config_of(layers), seq_len=SEQ_LEN)
    model = build_model(plan, run, group, config.parallel, config.precision)
    state = TrainState(model, make_optimizer(model, config.optim))
    filler = {"input_ids": torch.zeros(1, SEQ_LEN, dtype=torch.int64), "labels": torch.full((1, SEQ_LEN), -100)}
    step = TrainStep(state, NextToken(), filler, config, group, dropout=False)
    checkpoints = Checkpoints(run, group, Fence(run, 1, 0), config.checkpoint, plan.fingerprint)
    model.train()
    for number in range(2):
        tokens = torch.randint(0, 1000, (len(step.plan.samples(0)), SEQ_LEN))
        sums = step.backward({"input_ids": tokens, "labels": tokens}, number)
        step.update(step.reduce_stats(sums, stop=False, save_failed=False), 1e-4)
        if number == 0:
            checkpoints.save(state.tensors, step=1, position=1, progress={})
            checkpoints.wait()
    return state


def rank_main(rank: int, ranks: int, port: int, work: tuple[TrainingConfig | None, int], folder: Path) -> None:
    """Train as one rank, or do nothing without a configuration, and wait until the memory of all has been read."""
    os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    config, layers = work
    with process_group(config.parallel if config else None) as group:
        state = train(config, layers, RunDir(next(folder.glob("run-*"))), group) if config is not None else None
        group.barrier()
        wait(folder, rank)
        del state


def peak_mib(ranks: int, config: TrainingConfig | None, layers: int) -> float:
    """Return the largest peak of the ranks."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        RunDir.create("run", {"job": "pretrain", "config": {"seed": 0}}, folder).begin_attempt()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.benchmarks.bench_forecast"])  # its imports take seconds a process
        arguments = [(rank, ranks, store.port, (config, layers), folder) for rank in range(ranks)]
        processes = [context.Process(target=rank_main, args=each) for each in arguments]
        for process in processes:
            process.start()
        peak = 0.0
        while not all((folder / f"{rank}.ready").exists() for rank in range(ranks)):
            assert all(process.exitcode is None for process in processes), "a process has ended"
            for process in processes:
                with suppress(OSError):
                    peak = max(peak, anonymous_mib(process.pid or 0))
            time.sleep(0.003)
        (folder / "end").touch()
        for process in processes:
            process.join()
    return peak


def main() -> None:
    """Measure each mode of activation checkpointing, and say which forecasts differ too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--modes", default="none,full")
    parser.add_argument("--no-goal", action="store_true", help="a model that is small beside an empty rank")
    options = parser.parse_args()
    wrong = []
    for ranks in map(int, options.ranks.split(",")):
        empty = peak_mib(ranks, None, options.layers)
        for mode in options.modes.split(","):
            keys = {"steps": 2, "batch": {"global_batch": SAMPLES * ranks}, "resources": {"ranks_per_node": ranks}}
            config = TrainingConfig.model_validate({**keys, "parallel": {"activation_checkpointing": mode}})
            shape = measure_model(skeleton(config_of(options.layers)), SEQ_LEN, [mode], bf16=False, gpu=False)
            expected = Forecast(config, shape, 0).memory.total / MIB
            measured = peak_mib(ranks, config, options.layers) - empty
            error = expected / measured - 1
            name = f"{shape.numbers() / 1e6:.0f} M parameters on {ranks} ranks, activation checkpointing {mode}"
            print(f"{name}: forecast {expected:.0f} MiB, measured {measured:.0f} MiB, {error:+.1%}", flush=True)
            wrong += [name] if abs(error) > WITHIN else []
    assert options.no_goal or not wrong, f"differ by more than {WITHIN:.0%}: {', '.join(wrong)}"


if __name__ == "__main__":
    main()
