"""Memory and CPU seconds of head and loss in chunks, against whole logits overwritten with their gradient.

Usage: python -m tests.benchmarks.bench_head [--vocabulary 128256] [--hidden 576] [--peak-tokens 8192] [--tokens 1024]
Both compute the summed cross entropy of a model without decoder layers, forward and backward, in fp32 on one thread. The peak is
that of the profiler's allocations, without the gradient of the head's weight. Seconds are those of the process, in alternating
pairs. Prints one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.objective import NextToken

# N tokens, V vocabulary

_SAMPLES = 4
_MIB = 1 << 20


class _WholeLogits(torch.autograd.Function):
    """The summed cross entropy, with the gradient computed in forward in the memory of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        logits_NV.sub_(logits_NV.amax(dim=1, keepdim=True))
        label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
        sums_N = logits_NV.exp_().sum(dim=1)
        logits_NV.div_(sums_N[:, None])
        logits_NV.scatter_add_(1, labels_N[:, None], torch.full_like(sums_N, -1.0)[:, None])
        ctx.gradient_NV = logits_NV
        return (sums_N.log() - label_N).sum()

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
        return gradient_NV, None


def whole(model: Any, batch: Batch) -> torch.Tensor:
    """Return the loss from whole logits."""
    logits_NV = model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1)
    loss: torch.Tensor = _WholeLogits.apply(logits_NV, batch["labels"].flatten())  # type: ignore[no-untyped-call]
    return loss


def chunks(model: Any, batch: Batch) -> torch.Tensor:
    """Return the loss of the training loop."""
    return NextToken()(model, batch).loss_sum


def head_of(vocabulary: int, hidden: int) -> Any:
    """Return a model of an embedding, a norm and a head, of which the last two are trained."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 1}
    config = AutoConfig.for_model("llama", vocab_size=vocabulary, tie_word_embeddings=False, **sizes)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.model.layers = nn.ModuleList()
    model.get_input_embeddings().requires_grad_(False)
    return model


def batch_of(tokens: int, vocabulary: int) -> Batch:
    """Return random tokens."""
    ids = torch.randint(0, vocabulary, (_SAMPLES, tokens // _SAMPLES + 1), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].contiguous()}


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the largest sum of allocations at any time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--peak-tokens", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = head_of(arguments.vocabulary, arguments.hidden)
    ways = {"whole": whole, "chunks": chunks}

    def run(way: str, batch: Batch) -> float:
        loss = ways[way](model, batch)
        torch.autograd.backward(loss)
        model.zero_grad()
        return loss.item()

    batch = batch_of(arguments.tokens, arguments.vocabulary)
    losses = {way: run(way, batch) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(arguments.rounds):
        for way in sorted(ways, reverse=number % 2 == 0):
            start = time.process_time()
            run(way, batch)
            seconds[way].append(time.process_time() - start)
    batch = batch_of(arguments.peak_tokens, arguments.vocabulary)
    of_weight = 4 * arguments.vocabulary * arguments.hidden
    peaks = {way: (peak_bytes(lambda way=way: run(way, batch)) - of_weight) / _MIB for way in ways}
    ratios = [mine / other for mine, other in zip(seconds["chunks"], seconds["whole"], strict=True)]
    report = {
        "peak_mib": {way: round(peak, 1) for way, peak in peaks.items()},
        "ratio_peak": round(peaks["chunks"] / peaks["whole"], 4),
        "cpu_seconds": {way: round(statistics.median(values), 3) for way, values in seconds.items()},
        "ratio_cpu": round(statistics.median(ratios), 4),
        "ratios_cpu": [round(ratio, 4) for ratio in ratios],
        "relative_difference": abs(losses["chunks"] / losses["whole"] - 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
