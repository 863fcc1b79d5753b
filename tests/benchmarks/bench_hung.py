"""Seconds from the moment in which a rank is stopped or falls asleep for ever to the next completed step.

    python -m tests.benchmarks.bench_hung [--hangs 3] [--kinds stopped,asleep,loader] [--step-seconds 0,2]

A real training run on the local backend, two virtual nodes of one rank. A rank is stopped (SIGSTOP, never continued), sleeps in
Python in a step, or waits for its loader, whose thread sleeps; with steps as they are (0) and with steps of two seconds. The
standstill of a sleeping rank is counted from the last completed step. Run it on a quiet machine. Prints one JSON object. Goals:
2 s for a stopped rank, in addition to the next step itself if that takes two seconds; for a sleeping one the longer of 15 s and
ten steps, plus 3 s.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.jobs.runs.submit.records import make_record
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.jobs.training.pretrain.job import main as pretrain
from tests.benchmarks.bench_recovery import config as recovery_config
from tests.benchmarks.bench_recovery import event_after, newest_step
from tests.jobs.corpus import make_dataset

STEP_VARIABLE = "BENCH_STEP_SECONDS"
SIGNALS = {"stopped": signal.SIGSTOP, "asleep": signal.SIGUSR1, "loader": signal.SIGRTMIN + 5}
SETTLE_SECONDS, SETTLE_STEPS = 1.0, 8  # between two hangs, at least
SHORT = {"seq_len": 16, "batch": {"global_batch": 2, "micro_batch": 1}, "checkpoint": {"every_steps": 2}}


def main(context: JobContext) -> dict[str, object]:
    """A training run, the ranks of which fall asleep on a signal, in the main thread or in the loader."""
    from ropewalk.jobs.training.loop import trainer
    from ropewalk.jobs.training.loop.update.step import TrainStep

    asleep: set[int] = set()  # signals so far
    prefetch, backward = trainer.prefetch, TrainStep.backward

    def sleep_after(number: int) -> None:
        while number in asleep:
            time.sleep(3600)

    def sleeping(read: Callable[..., Any], plan: Any) -> Any:
        def read_or_sleep(positions: Any) -> Any:
            sleep_after(SIGNALS["loader"])
            return read(positions)

        return prefetch(read_or_sleep, plan)

    def long(self: TrainStep, *arguments: Any) -> Any:
        sleep_after(SIGNALS["asleep"])
        time.sleep(float(os.environ[STEP_VARIABLE]))
        return backward(self, *arguments)

    for kind in ("asleep", "loader"):
        signal.signal(SIGNALS[kind], lambda number, _: asleep.add(number))
    trainer.prefetch, TrainStep.backward = sleeping, long  # type: ignore[assignment,method-assign]
    return pretrain(context)


def start(data: Path) -> RunDir:
    """A run of this module's entry."""
    config = PretrainConfig.model_validate({**recovery_config(data).model_dump(mode="json"), "steps": 1_000_000, **SHORT})
    record = {**make_record("pretrain", config, "local", {"created": time.time()}), "entry": f"{__spec__.name}:main"}
    run = RunDir.create("hung", {**record, "sidecars": []})
    load_backend("local").submit(run, config.resources)
    return run


def completed(run: RunDir, before: float) -> list[float]:
    """Times of the steps that were completed before a moment."""
    return [line["time"] for line in run.read_metrics() if "train/loss" in line and line["time"] < before]


def measure(run: RunDir, kind: str) -> dict[str, float]:
    """One hang: seconds until it is noticed and a step is completed, and the median step before it."""
    goal, settled = newest_step(run) + SETTLE_STEPS, time.monotonic() + SETTLE_SECONDS
    while newest_step(run) < goal or time.monotonic() < settled:
        time.sleep(0.05)
    os.kill(writers_of(run.log_dir(1) / "rank-1.log")[0].pid, SIGNALS[kind])
    signalled = time.time()
    noticed = event_after(run, "ranks_hung", signalled)["time"]
    steps = completed(run, noticed)
    hung = signalled if kind == "stopped" else steps[-1]
    next_step = event_after(run, "first_step", noticed)["time"]
    step_seconds = statistics.median(b - a for a, b in pairwise(steps[-SETTLE_STEPS:]))
    return {"noticed": noticed - hung, "next_step": next_step - hung, "step_seconds": step_seconds}


def hangs(data: Path, count: int, kind: str) -> dict[str, Any]:
    """Hangs of one kind, in one run."""
    run = start(data)
    event_after(run, "first_step", 0.0)
    try:
        results = [measure(run, kind) for _ in range(count)]
    finally:
        run.request_cancel()
        event_after(run, "attempt_ended", 0.0)
    step = statistics.median(item["step_seconds"] for item in results)
    seconds = [item["next_step"] for item in results]
    return {
        "median_seconds_to_next_step": round(statistics.median(seconds), 2),
        "worst": round(max(seconds), 2),
        "median_noticed": round(statistics.median(item["noticed"] for item in results), 2),
        "step_seconds": round(step, 3),
        "goal": round(2 + (step if step > 1 else 0) if kind == "stopped" else max(15.0, 10 * step) + 3, 2),
        "attempts": run.attempts(),
        "slow_reported": len([event for event in run.read_events() if event["event"] == "ranks_slow"]),
    }


def measure_all() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(SIGNALS))
    parser.add_argument("--step-seconds", default="0,2")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[RUNS_VARIABLE] = str(Path(folder) / "runs")
        data = make_dataset(Path(folder) / "data", num_documents=2000)
        for seconds in arguments.step_seconds.split(","):
            os.environ[STEP_VARIABLE] = seconds
            for kind in arguments.kinds.split(","):
                report[f"{kind}, steps {seconds} s longer"] = hangs(data, arguments.hangs, kind)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    measure_all()
