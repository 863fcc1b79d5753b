"""CPU seconds of a step with Muon against one with AdamW, of the same model and tokens.

Usage: python -m tests.benchmarks.bench_muon [--preset small] [--tokens 16384] [--rounds 3]
A step is forward and backward over the tokens, in micro-batches of 4 sequences of 1024, and the optimizer's update; one rank, one
thread, fp32. In each round one micro-batch, of which all cost the same, and both updates are timed once, in turns. With more
ranks both parts are divided by their number. Prints one JSON line; `ratio` is the median over rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM

from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.group import process_group
from ropewalk.sharding.parallelize import parallelize

VOCABULARY, SEQ_LEN, MICRO_BATCH = 8192, 1024, 4


def cpu_seconds(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = model_config(
        ModelConfig(preset=arguments.preset), vocabulary=VOCABULARY, end_of_document=VOCABULARY - 1, seq_len=SEQ_LEN
    )
    with process_group() as group:
        torch.set_num_threads(1)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        model = parallelize(model, group, ParallelConfig(), PrecisionConfig())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        optimizers = {name: make_optimizer(model, OptimConfig.model_validate({"name": name})) for name in ("adamw", "muon")}
        objective, ids = NextToken(), torch.randint(0, VOCABULARY, (MICRO_BATCH, SEQ_LEN + 1))
        passes = max(1, arguments.tokens // (MICRO_BATCH * SEQ_LEN))

        def backward() -> None:
            objective(model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:].contiguous()}).loss_sum.backward()

        seconds: dict[str, list[float]] = {"backward": [], "adamw": [], "muon": []}
        for _ in range(arguments.rounds + 1):  # the first one warms up
            seconds["backward"].append(passes * cpu_seconds(backward))
            gradients = [parameter.grad for parameter in model.parameters()]
            for name, optimizer in optimizers.items():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.grad = gradient  # Muon frees those of its matrices
                seconds[name].append(cpu_seconds(optimizer.step))
            model.zero_grad()
    rounds = list(zip(*(values[1:] for values in seconds.values()), strict=True))
    ratios = [(backward + muon) / (backward + adamw) for backward, adamw, muon in rounds]
    medians = {name: round(statistics.median(values[1:]), 3) for name, values in seconds.items()}
    print(
        json.dumps(
            {"cpu_seconds": medians, "ratio": round(statistics.median(ratios), 4), "tokens": passes * MICRO_BATCH * SEQ_LEN}
        )
    )


if __name__ == "__main__":
    main()
