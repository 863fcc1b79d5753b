"""Transfer of the learning rate across width: the best rate at width 64, used at width 256 with `optim.base_width: 64`.

Usage: python -m tests.benchmarks.bench_lr_transfer [--widths 64,256] [--tokens 131072] [--seeds 3] [--optimizer adamw]
Trains models of one shape (heads of 32, 3 layers) on the bytes of Python's standard library, each token once, with the optimizer
and the schedule of the loop: rates in steps of √2 at the small width, then around the best one at the large width. The loss is
that of 128 held-out sequences. The rate that transfers is held against the best one at the large width, over the same seeds.
Prints a JSON line for each rate, and one at the end; `excess` is the relative difference of the mean losses, `standard_error`
that of the paired difference, and `same_rate_excess` the excess without `base_width`.

Measured 2026-11-30, `--tokens 65536 --start 0.01`, 322 CPU seconds: the best rate is 0.005 at both widths (losses 2.481,
2.487 at 0.0071, 2.515 at 0.0035); without `base_width` 0.005 gives 2.587. The spread over seeds is 0.03.
"""

import argparse
import json
import math
import statistics
import sysconfig
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.optim_keys import OptimConfig
from ropewalk.jobs.training.loop.update.optimizer import learning_rate, make_optimizer, set_learning_rate
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize

SEQ_LEN, BATCH = 128, 8
HELD_OUT = 128
LAYERS, HEAD = 3, 32


@cache
def sequences() -> torch.Tensor:
    """The bytes of the standard library's sources as sequences in a fixed random order, [S, SEQ_LEN + 1]."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) + sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    data = np.frombuffer(b"".join(path.read_bytes() for path in paths if "site-packages" not in path.parts), dtype=np.uint8)
    rows = data[: len(data) // (SEQ_LEN + 1) * (SEQ_LEN + 1)].reshape(-1, SEQ_LEN + 1)
    return torch.from_numpy(rows[np.random.default_rng(0).permutation(len(rows))].astype(np.int64))


def model_of(width: int, seed: int, device: str) -> Any:
    heads = width // HEAD
    sizes = {"hidden_size": width, "intermediate_size": width * 8 // 3 // 32 * 32, "num_hidden_layers": LAYERS}
    config = AutoConfig.for_model(
        "llama",
        **sizes,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=256,
        tie_word_embeddings=True,
        initializer_range=0.02 * math.sqrt(1024 / width),
    )
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train(group: Group, width: int, seed: int, optim: OptimConfig, tokens: int) -> float:
    """Return the held-out loss after training on so many tokens."""
    model = parallelize(model_of(width, seed, "meta"), group, ParallelConfig(), PrecisionConfig())
    fill(model, model_of(width, seed, "cpu"), group)
    optimizer, objective = make_optimizer(model, optim), NextToken()
    num_steps = tokens // (BATCH * SEQ_LEN)
    data = sequences()[HELD_OUT:]
    order = np.random.default_rng(seed).permutation(len(data))
    assert len(order) >= num_steps * BATCH, "each sequence is read once"
    for step in range(num_steps):
        rows = data[order[step * BATCH : (step + 1) * BATCH]]
        loss, weight, _ = objective(model, {"input_ids": rows[:, :-1], "labels": rows[:, 1:].contiguous()})
        (loss / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
        set_learning_rate(optimizer, learning_rate(optim, step, num_steps))
        optimizer.step()
        optimizer.zero_grad()
    held_out = sequences()[:HELD_OUT]
    with torch.no_grad():
        loss, weight, _ = objective(model, {"input_ids": held_out[:, :-1], "labels": held_out[:, 1:].contiguous()})
    return float(loss / weight)


class Search:
    """Losses by width and rate; each is computed once."""

    def __init__(self, group: Group, arguments: argparse.Namespace) -> None:
        self.group, self.arguments = group, arguments
        self.results: dict[int, dict[float, list[float]]] = {}

    def losses(self, width: int, rate: float, base_width: int | None) -> list[float]:
        name, tokens = self.arguments.optimizer, self.arguments.tokens
        values = {"name": name, "lr": rate, "base_width": base_width, "warmup_steps": tokens // (BATCH * SEQ_LEN) // 10}
        optim = OptimConfig.model_validate(values)
        results = [train(self.group, width, seed, optim, tokens) for seed in range(self.arguments.seeds)]
        print(json.dumps({"width": width, "lr": rate, "base_width": base_width, "losses": results}), flush=True)
        return results

    def best(self, width: int, start: float, base_width: int) -> float:
        """Return the rate with the lowest mean loss, on a grid of √2 from `start` on, as far as the loss falls on either side."""
        losses = self.results.setdefault(width, {})

        def mean(power: int) -> float:
            rate = start * 2 ** (power / 2)
            if rate not in losses:
                losses[rate] = self.losses(width, rate, base_width)
            return statistics.fmean(losses[rate])

        low, high = -1, 1
        while mean(low) < min(mean(power) for power in range(low + 1, high + 1)):
            low -= 1
        while mean(high) < min(mean(power) for power in range(low, high)):
            high += 1
        return min(losses, key=lambda rate: statistics.fmean(losses[rate]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,256")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--start", type=float, default=8e-3, help="the first rate that is tried")
    arguments = parser.parse_args()
    small, large = map(int, arguments.widths.split(","))
    began = time.process_time()
    torch.set_num_threads(1)
    with process_group() as group:
        torch.set_num_threads(1)
        search = Search(group, arguments)
        rate = search.best(small, arguments.start, small)
        best = search.best(large, rate, small)
        moved, lowest = search.results[large][rate], search.results[large][best]
        same = search.losses(large, rate, None)
    differences = [mine - other for mine, other in zip(moved, lowest, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    lowest_mean = statistics.fmean(lowest)
    report = {
        "best_rate": {small: rate, large: best},
        "loss": {"transferred": statistics.fmean(moved), "best": lowest_mean, "same_rate": statistics.fmean(same)},
        "excess": statistics.fmean(differences) / lowest_mean,
        "standard_error": error / lowest_mean,
        "same_rate_excess": statistics.fmean(same) / lowest_mean - 1,
        "cpu_seconds": round(time.process_time() - began),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
