"""Slow ranks planted into real groups over gloo: are they named within 20 steps, with the right phase and the right gain?

    python -m tests.benchmarks.bench_stragglers [--slow 40] [--even 20] [--computing 6] [--factor 1] [--part 1/1] [--results FILE]

1. 4 ranks whose steps sleep (data 40, forward and backward 640, reduce 80, update 40 ms) and compute so little that they need not
   share cores. In each case one rank sleeps 12 to 60% longer, in data, compute or reduce. `--factor` stretches the sleep.
   `rate_without` is compared with two gains over the steps before and after the case, in which that rank sleeps as the others: by
   the planted sleep, and by the step that was measured. The second varies by some points on a machine where anything else runs.
2. The same without a slow rank: how many are named?
3. 2 ranks that compute, each on a core of its own: another process computes on the core of one, or it is stopped for 25 of each
   100 ms, as a CPU quota does.

Steps are those of the loop: FSDP's collectives, the reduction of figures, the update. The third part means nothing on a machine
where anything else runs.

The first two parts take 35 minutes. `--part 2/8` takes the second eighth of their cases, and `--results` collects the cases of
several calls in a file; each call prints the sum of all in it.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from ropewalk.cluster.run.files import append_lines, iterate_lines
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.objective import NextTokenZLoss
from ropewalk.jobs.training.loop.report.stragglers import Stragglers
from ropewalk.jobs.training.loop.update.optimizer import make_optimizer
from ropewalk.jobs.training.loop.update.state import TrainState
from ropewalk.jobs.training.loop.update.step import TrainStep
from ropewalk.jobs.training.loop.update.step_clock import EXCHANGE_STEPS, StepPhase
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from tests.fork_server import SERVER
from tests.sharding.parallel_rank import model_of

STEPS = 20
EVEN_STEPS = 12  # before and after each case of ranks that sleep
BASE = {StepPhase.DATA: 0.04, StepPhase.FORWARD_BACKWARD: 0.64, StepPhase.REDUCE: 0.08, StepPhase.UPDATE: 0.04}
SLOW = (StepPhase.DATA, StepPhase.FORWARD_BACKWARD, StepPhase.REDUCE)
SHARES = (0.12, 0.2, 0.35, 0.6)
STOPPED, PERIOD = 0.025, 0.1  # seconds of each


def cases(slow: int, even: int, ranks: int) -> list[dict[str, Any]]:
    """The planted cases, slow and even ones mixed."""
    planted = [
        {"rank": number % ranks, "phase": SLOW[number % len(SLOW)].name, "share": SHARES[number // len(SLOW) % len(SHARES)]}
        for number in range(slow)
    ]
    every = max(1, slow // max(1, even))
    mixed: list[dict[str, Any]] = []
    for number in range(max(slow, even * every)):
        mixed += planted[number : number + 1]
        if number % every == 0 and number // every < even:
            mixed.append({"rank": None})
    return mixed


class Step:
    """A step of the loop on a small model, which sleeps or computes beside it."""

    def __init__(self, group: Group) -> None:
        batch = {"global_batch": group.world_size, "micro_batch": 1}
        config = PretrainConfig.model_validate({"data": "none", "steps": 10**6, "batch": batch})
        model = parallelize(skeleton(model_of("meta").config, "causal_lm"), group, config.parallel, config.precision)
        fill(model, model_of("cpu") if group.is_main else None, group)
        state = TrainState(model, make_optimizer(model, config.optim, torch.float32))
        tokens = torch.randint(0, 256, (1, 17), generator=torch.Generator().manual_seed(group.rank))
        self._batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
        self.train = TrainStep(state, NextTokenZLoss(1e-4), self._batch, config, group, dropout=False)

    def run(self, waits: dict[StepPhase, float], matrix: torch.Tensor | None = None, products: int = 0) -> list[Any]:
        """Take a step; returns the rows of all ranks, if it exchanges them."""
        train, progress = self.train, self.train.state.progress
        train.clock.begin()
        time.sleep(waits[StepPhase.DATA])
        train.clock.end(StepPhase.DATA)
        time.sleep(waits[StepPhase.FORWARD_BACKWARD])
        for _ in range(products):
            torch.mm(matrix, matrix)  # type: ignore[arg-type]
        sums = train.backward(self._batch, progress.step)
        time.sleep(waits[StepPhase.REDUCE])
        stats = train.reduce_stats(sums, stop=False, save_failed=False)
        time.sleep(waits[StepPhase.UPDATE])
        train.update(stats, 1e-3)
        progress.step += 1
        return list(train.pending(stats, 1e-3, None, None).read().ranks)


def rank_main(rank: int, ranks: int, port: int, todo: dict[str, Any]) -> None:
    """Take the steps of all cases; rank 0 writes what was named."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    if not todo["sleeps"]:
        os.sched_setaffinity(0, {rank})
    with process_group() as group:
        step, results = Step(group), []
        matrix, products = (None, 0) if todo["sleeps"] else _sized()
        idle = dict.fromkeys(StepPhase, 0.0)
        for _ in range(EXCHANGE_STEPS - 1):  # an exchange has the steps before the one that makes it
            step.run(idle)
        for case in todo["cases"]:
            group.barrier()
            even = {phase: seconds * todo["factor"] for phase, seconds in BASE.items()} if todo["sleeps"] else idle
            waits, mine = dict(even), case["rank"] == rank
            compare = todo["sleeps"] and case["rank"] is not None
            planted = case["share"] * sum(even.values()) if compare else 0.0
            if mine and compare:
                waits[StepPhase[case["phase"]]] += planted
            without = _watch(step, even, ranks, EVEN_STEPS)["steps"] if compare else []
            with disturbed(case.get("by") if mine else None, rank):
                result = _watch(step, waits, ranks, STEPS, matrix, products) | case
            if compare:
                result["planted"] = planted
                result["without"] = without + _watch(step, even, ranks, EVEN_STEPS)["steps"]
            results.append(result)
        if group.is_main:
            Path(todo["file"]).write_text(json.dumps(results))


def _watch(step: Step, waits: dict[StepPhase, float], ranks: int, steps: int, *compute: Any) -> dict[str, Any]:
    """Take steps; returns who was named, and the mean seconds of a step in each exchange."""
    watch, events, seconds = Stragglers([""] * ranks), [], []
    for number in range(steps):
        if (rows := step.run(waits, *compute)) and number:  # not of the steps before
            events += [{"at": number + 1, **fields} for fields in watch.add(rows)[0]]
            seconds.append(statistics.fmean(row.step for row in rows))
    return {"events": events, "steps": seconds}


def _sized() -> tuple[torch.Tensor, int]:
    """A matrix, and how many products take 0.1 s."""
    matrix = torch.randn(256, 256)
    begin = time.process_time()
    for _ in range(50):
        torch.mm(matrix, matrix)
    return matrix, max(1, round(0.1 / max(1e-6, (time.process_time() - begin) / 50)))


@contextmanager
def disturbed(by: str | None, rank: int) -> Iterator[None]:
    """Let another process compute on this rank's core, or stop this process again and again."""
    if by is None:
        yield
        return
    process = SERVER.Process(target=_burn if by == "burner" else _stop, args=(rank, os.getpid()), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        os.kill(os.getpid(), signal.SIGCONT)


def _burn(core: int, _: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        sum(range(10_000))


def _stop(_: int, pid: int) -> None:
    while os.getppid() > 1:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED)
        os.kill(pid, signal.SIGCONT)
        time.sleep(PERIOD - STOPPED)


def measure(ranks: int, planted: list[dict[str, Any]], *, sleeps: bool, factor: float = 1.0) -> list[dict[str, Any]]:
    """Run the cases in one group; returns what was named in each."""
    with tempfile.TemporaryDirectory() as folder:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        todo = {"sleeps": sleeps, "factor": factor, "cases": planted, "file": f"{folder}/results.json"}
        processes = [SERVER.Process(target=rank_main, args=(rank, ranks, store.port, todo)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * ranks
        return list(json.loads(Path(todo["file"]).read_text()))


def named(case: dict[str, Any]) -> bool:
    """Was the planted rank named, and no other?"""
    return {event["rank"] for event in case["events"]} == {case["rank"]}


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    slow, even = ([each for each in results if (each["rank"] is not None) is kind] for kind in (True, False))
    named_cases = [each for each in slow if named(each)]
    last = [(each, each["events"][-1]) for each in named_cases]
    summary: dict[str, Any] = {"planted": len(slow), "named": len(named_cases), "even": len(even)}
    summary["false"] = sum(bool(each["events"]) for each in even)
    summary["right phase"] = sum(event["phase"].upper() == each.get("phase", event["phase"].upper()) for each, event in last)
    summary["causes"] = [event["cause"] for each, event in last if "by" in each]
    compared = [(event["rate_without"], each) for each, event in last if "without" in each]
    for name, gain in (("planted", _planted_gain), ("measured", _measured_gain)) if compared else ():
        errors = [(rate - gain(each)) * 100 for rate, each in compared]
        sizes = sorted(map(abs, errors))
        summary[f"what-if, points off what was {name}: median, worst, mean with its sign"] = [
            round(value, 2) for value in (statistics.median(sizes), sizes[-1], statistics.fmean(errors))
        ]
        summary["within one point"] = [*summary.get("within one point", []), sum(size <= 1 for size in sizes)]
    return summary


def _planted_gain(case: dict[str, Any]) -> float:
    return 1 + float(case["planted"]) / statistics.median(case["without"])


def _measured_gain(case: dict[str, Any]) -> float:
    return statistics.median(case["steps"]) / statistics.median(case["without"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", type=int, default=40)
    parser.add_argument("--even", type=int, default=20)
    parser.add_argument("--computing", type=int, default=6)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("--part", default="1/1", help="of the cases of the first two parts")
    parser.add_argument("--results", type=Path, help="file of JSON lines, one per case of the first two parts")
    options = parser.parse_args()
    planted, (part, parts) = cases(options.slow, options.even, 4), map(int, options.part.split("/"))
    todo = planted[len(planted) * (part - 1) // parts : len(planted) * part // parts]
    sleeping = measure(4, todo, sleeps=True, factor=options.factor)
    if options.results:
        append_lines(options.results, sleeping)
        sleeping = list(iterate_lines(options.results))
    print(summarize(sleeping), flush=True)
    if options.computing:
        kinds = ("burner", "stopped")
        planted = [{"rank": number // 2 % 2, "by": kinds[number % 2]} for number in range(options.computing)]
        print(summarize(measure(2, planted, sleeps=False)), flush=True)


if __name__ == "__main__":
    main()
