"""Flipped bits that are found and blamed, false alarms, and the cost of looking for them.

    python -m tests.benchmarks.bench_corruption [--flips 50] [--every-steps 5] [--clean-steps 10000] [--cost-steps 100]

50 flips of each kind are planted in turn in one training of 2 x 2 ranks, one in every second interval of N steps, at random
steps, ranks and bits: weights, optimizer state, gradient of one copy of the model after the reduction, copy in memory, and a
bit in every tenth product of a rank until it is found. A flip is found if an event names it within N steps, and blamed if only
its rank is named. The rest, which left no trace, `vanished`: at the check the state was that of an undisturbed run again, bit
for bit. `--compare-only` leaves out `integrity.at_rest`. Clean steps are those of the same training undisturbed, on two ranks.
Cost is what a check adds to the steps of 2,048 tokens around it, as a share of 50 of them, on one rank: medians of a run with a
check every five steps. A step of fewer tokens costs less, and hashing its state as much, so that the share grows. Prints one
JSON object for each part.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import events, losses, make_run, pretrain_config
from tests.jobs.training.loop.flips import COPY, GRADIENT, OPTIMIZER, PRODUCT, WEIGHTS, Flip, train_with

KINDS = (WEIGHTS, OPTIMIZER, GRADIENT, COPY, PRODUCT)
RANKS = 4
COST_EVERY_STEPS, COST_CHECKED_EVERY, WARM_UP = 50, 5, 2
COST_MODEL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4}
COST_BATCH = {"global_batch": 16, "micro_batch": 16}
COST_SEQ_LEN = 128


def run_of(folder: Path, data: Path, *, steps: int, **changes: Any) -> RunDir:
    """A run that saves seldom, so that checks of their own find the flips."""
    config = pretrain_config(data, steps=steps, parallel={"replicate": 2}, precision={"deterministic": True})
    return make_run(folder, {**config, "validation": {"every_steps": 10**6, "max_sequences": 1}, **changes})


def plan(kinds: Sequence[str], flips: int, every_steps: int) -> list[Flip]:
    """So many flips of each kind in turn, one for every two intervals, so that each has its own finding."""
    draw = random.Random(f"{kinds} {flips}")
    plan = []
    for number in range(flips * len(kinds)):
        kind, step = kinds[number % len(kinds)], (2 * number + 1) * every_steps + draw.randrange(every_steps - 1) + 1
        # the last node has no copy in memory: the two ranks of a replica keep theirs, and the next node's
        plan.append(Flip(kind, step, draw.randrange(RANKS - 1 if kind == COPY else RANKS), draw.randrange(2**30)))
    return plan


def planted(folder: Path, data: Path, kinds: Sequence[str], flips: int, every_steps: int, *, at_rest: bool) -> dict[str, Any]:
    """Count flips that are found and blamed, by kind."""
    flipped = plan(kinds, flips, every_steps)
    steps, keys = (2 * len(flipped) + 1) * every_steps, {"every_steps": every_steps, "at_rest": at_rest}
    checkpoint = {"every_steps": 10 * every_steps, "memory_every_steps": every_steps}
    run = run_of(folder, data, steps=steps, checkpoint=checkpoint, integrity=keys)
    began = time.perf_counter()
    train_with(run, RANKS, flipped)
    counts = {kind: {"flips": 0, "found": 0, "blamed": 0, "blamed wrongly": 0, "vanished": 0} for kind in kinds}
    named = events(run, "corruption") + events(run, "corruption_blamed")
    for flip in flipped:
        near = [event for event in named if flip.step <= event["step"] <= flip.step + every_steps]
        ranks = {event["rank"] for event in near if event["rank"] is not None}
        count = counts[flip.where]
        count["flips"] += 1
        count["found"] += bool(near)
        count["vanished"] += not near
        count["blamed"] += ranks == {flip.rank}
        count["blamed wrongly"] += bool(ranks - {flip.rank})
    return {**counts, "seconds": round(time.perf_counter() - began, 1), "steps": max(losses(run))}


def clean(folder: Path, data: Path, steps: int) -> dict[str, float]:
    """Count alarms of an undisturbed training."""
    run = run_of(
        folder, data, steps=steps, integrity={"every_steps": 10}, checkpoint={"every_steps": 1000}, log_every=min(100, steps)
    )
    began = time.perf_counter()
    train_with(run, 2, [])
    seconds = round(time.perf_counter() - began, 1)
    return {"steps": max(losses(run)), "alarms": len(events(run, "corruption")), "seconds": seconds}


def cost(folder: Path, data: Path, steps: int) -> dict[str, float]:
    """Return the share of time that checks at N = 50 take, by at_rest: what a check adds to the median steps around it."""
    report: dict[str, float] = {}
    for name, at_rest in (("compare", False), ("at rest", True)):
        model = {"config": {**pretrain_config(data)["model"]["config"], **COST_MODEL}}
        sizes = {"steps": steps, "seq_len": COST_SEQ_LEN, "batch": COST_BATCH, "log_every": 1}
        keys = {"every_steps": COST_CHECKED_EVERY, "at_rest": at_rest}
        run = run_of(folder, data, **sizes, integrity=keys, model=model, checkpoint={"every_steps": 10**6})
        train_with(run, 1, [])
        times = [line["time"] for line in run.read_metrics() if "train/loss" in line][WARM_UP:]
        seconds = [end - begin for begin, end in pairwise(times)]
        phases = [median(seconds[first::COST_CHECKED_EVERY]) for first in range(COST_CHECKED_EVERY)]
        step = median(phases)  # of steps without a check, which delays one or two of the five
        report[name] = (sum(phases) - COST_CHECKED_EVERY * step) / (COST_EVERY_STEPS * step)
    return {**report, "step seconds": step}


def main() -> None:
    """Plant, count and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--every-steps", type=int, default=5)
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--clean-steps", type=int, default=10000)
    parser.add_argument("--cost-steps", type=int, default=100)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_dataset(folder / "data")
        if arguments.flips:
            kinds, at_rest = arguments.kinds.split(","), not arguments.compare_only
            report("planted", planted(folder, data, kinds, arguments.flips, arguments.every_steps, at_rest=at_rest))
        if arguments.clean_steps:
            report("clean", clean(folder, data, arguments.clean_steps))
        if arguments.cost_steps:
            report("cost", cost(folder, data, arguments.cost_steps))


def report(part: str, figures: dict[str, Any]) -> None:
    """Print the figures of a part at once: the next one takes minutes."""
    print(json.dumps({part: figures}, indent=1), flush=True)


if __name__ == "__main__":
    main()
