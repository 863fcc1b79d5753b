"""Flipped bits that are found and blamed, false alarms, and the cost of looking for them.

    python -m tests.benchmarks.bench_corruption [--flips 50] [--every-steps 10] [--clean-steps 1000] [--cost-steps 300]

50 flips of each kind (weights, optimizer state, gradient of one copy of the model after the reduction, copy in memory) are
planted in a training of 2 x 2 ranks, at random steps, ranks and bits, and twice: with and without `integrity.at_rest`. A flip
is found if an event names it within N steps; `vanished` counts flips that left no trace: at the check the state was that of an
undisturbed run again, bit for bit. Clean steps are those of the same training undisturbed, on two ranks. Cost is what checks at
N = 50 add to the median step of a training on one rank; the best of three runs of each counts. Prints one JSON object.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import events, losses, make_run, pretrain_config
from tests.jobs.training.loop.flips import COPY, GRADIENT, OPTIMIZER, WEIGHTS, Flip, train_with

KINDS = (WEIGHTS, OPTIMIZER, GRADIENT, COPY)
RANKS, COST_EVERY_STEPS = 4, 50
COST_MODEL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}


def run_of(folder: Path, data: Path, *, steps: int, **changes: Any) -> RunDir:
    """A run that saves seldom, so that checks of their own find the flips."""
    config = pretrain_config(data, steps=steps, parallel={"replicate": 2}, precision={"deterministic": True})
    return make_run(folder, {**config, "validation": {"every_steps": 10**6, "max_sequences": 1}, **changes})


def plan(kind: str, flips: int, every_steps: int) -> list[Flip]:
    """One flip for every three intervals, so that each has its own finding."""
    draw = random.Random(f"{kind} {flips}")
    return [
        Flip(
            kind,
            (3 * number + 1) * every_steps + draw.randrange(every_steps - 1) + 1,
            draw.randrange(RANKS),
            draw.randrange(2**30),
        )
        for number in range(flips)
    ]


def planted(folder: Path, data: Path, kind: str, flips: int, every_steps: int, *, at_rest: bool) -> dict[str, float]:
    """Count flips of a kind that are found and blamed."""
    every = {"every_steps": every_steps, "memory_every_steps": every_steps}
    steps, keys = (3 * flips + 1) * every_steps, {"every_steps": every_steps, "at_rest": at_rest}
    run = run_of(folder, data, steps=steps, checkpoint={**every, "every_steps": 4 * every_steps}, integrity=keys)
    flipped = plan(kind, flips, every_steps)
    began = time.perf_counter()
    train_with(run, RANKS, flipped)
    counts = {"flips": len(flipped), "found": 0, "blamed": 0, "blamed wrongly": 0}
    reported = events(run, "corruption")
    named = reported + events(run, "corruption_blamed")
    for flip in flipped:
        near = [event for event in named if flip.step <= event["step"] <= flip.step + every_steps]
        counts["found"] += bool(near)
        ranks = {event["rank"] for event in near if event["rank"] is not None}
        counts["blamed"] += ranks == {flip.rank}
        counts["blamed wrongly"] += bool(ranks - {flip.rank})
    counts["vanished"] = counts["flips"] - counts["found"]
    return {**counts, "seconds": round(time.perf_counter() - began, 1), "steps": max(losses(run))}


def clean(folder: Path, data: Path, steps: int) -> dict[str, float]:
    """Count alarms of an undisturbed training."""
    run = run_of(
        folder, data, steps=steps, integrity={"every_steps": 10}, checkpoint={"every_steps": 1000}, log_every=min(100, steps)
    )
    train_with(run, 2, [])
    return {"steps": max(losses(run)), "alarms": len(events(run, "corruption"))}


def cost(folder: Path, data: Path, steps: int, rounds: int = 3) -> dict[str, float]:
    """Return the share of CPU time that checks take, by at_rest."""
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, keys in (("off", None), ("compare", {"at_rest": False}), ("at rest", {"at_rest": True})):
            integrity = None if keys is None else {"every_steps": COST_EVERY_STEPS, **keys}
            model = {"config": {**pretrain_config(data)["model"]["config"], **COST_MODEL}}
            run = run_of(folder, data, steps=steps, integrity=integrity, model=model, checkpoint={"every_steps": 10**6})
            train_with(run, 1, [])
            times = [line["time"] for line in run.read_metrics() if "train/loss" in line]
            seconds.setdefault(name, []).append(statistics.median(end - begin for begin, end in pairwise(times)))
    best = {name: min(values) for name, values in seconds.items()}
    return {name: best[name] / best["off"] - 1 for name in ("compare", "at rest")} | {"step seconds": best["off"]}


def main() -> None:
    """Plant, count and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--every-steps", type=int, default=10)
    parser.add_argument("--clean-steps", type=int, default=1000)
    parser.add_argument("--cost-steps", type=int, default=300)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_dataset(folder / "data")
        for at_rest in (False, True):
            report[f"planted, at rest {at_rest}"] = {
                kind: planted(folder, data, kind, arguments.flips, arguments.every_steps, at_rest=at_rest)
                for kind in arguments.kinds.split(",")
            }
        report["clean"] = clean(folder, data, arguments.clean_steps)
        report["cost"] = cost(folder, data, arguments.cost_steps)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
