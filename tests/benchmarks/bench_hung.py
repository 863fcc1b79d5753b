"""Seconds from the moment in which one rank hangs to the next completed step, and false alarms in a long run in peace.

    python -m tests.benchmarks.bench_hung [--hangs 10] [--soak-steps 0]

A real run on the local backend, two virtual nodes of one rank: a rank is stopped (SIGSTOP, never continued), another time it gets
stuck in an endless loop of Python. With --soak-steps N, first N steps of which some take up to five times as long as usual, with
validations, checkpoints and a disk that stands still now and then; steps of many runs add up, and one that is interrupted reports
those that it has done. Hangs are timed on a quiet machine. Prints one JSON object.

Measured: False alarms: two runs, with steps of up to five times the usual one and a disk that stands still, beside `make
test` and `make soak`. Hangs: median of 10.
"""

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import deque
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.process.kill import writers_of
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.runs.submit.submit import make_record
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.jobs.training.pretrain.job import main as pretrain
from tests.benchmarks.bench_recovery import config as recovery_config
from tests.benchmarks.bench_recovery import event_after, newest_step
from tests.jobs.corpus import make_dataset

SETTLE_STEPS = 20  # between two hangs
JITTER = 5.0  # times the usual step
JITTERED = 0.1  # of a rank's steps
SLOW_DISK_SECONDS, SLOW_WRITES = 5.0, 0.001  # at most, and of all writes of metrics
# short steps, of which there are many in an hour
IN_PEACE = {
    "seq_len": 16,
    "batch": {"global_batch": 2, "micro_batch": 1},
    "validation": {"every_steps": 500, "max_sequences": 8},
    "checkpoint": {"every_steps": 250},
}


def main(context: JobContext) -> dict[str, object]:
    """The entry: a training run whose rank SIGUSR1 sends into an endless loop; with pauses where the environment says so."""
    signal.signal(signal.SIGUSR1, _loop)
    if os.environ.get("BENCH_JITTER"):
        _disturb(context.rank)
    return pretrain(context)


def _loop(*_: object) -> None:
    while True:
        pass


def _disturb(rank: int) -> None:
    """Steps of up to `JITTER` times the usual length, and now and then a disk that stands still: to the thread that writes."""
    from ropewalk.jobs.results.metrics import MetricLog
    from ropewalk.jobs.training.loop.step import TrainStep

    random_, backward, write = random.Random(rank), TrainStep.backward, MetricLog.write
    began = time.perf_counter()
    steps: deque[float] = deque(maxlen=100)  # the least of them waited for nobody

    def jittered(self: TrainStep, *arguments: Any) -> Any:
        nonlocal began
        steps.append(time.perf_counter() - began)
        if random_.random() < JITTERED:
            time.sleep(min(steps) * random_.uniform(0, JITTER - 1))
        began = time.perf_counter()
        return backward(self, *arguments)

    def slow(self: MetricLog, *arguments: Any) -> None:
        if random_.random() < SLOW_WRITES:
            time.sleep(random_.uniform(0, SLOW_DISK_SECONDS))
        write(self, *arguments)

    TrainStep.backward, MetricLog.write = jittered, slow  # type: ignore[method-assign]


def start(data: Path, steps: int, **keys: Any) -> RunDir:
    """A run of this module's entry."""
    config = PretrainConfig.model_validate({**recovery_config(data).model_dump(mode="json"), "steps": steps, **keys})
    record = {**make_record("pretrain", config, "local", {"created": time.time()}), "entry": f"{__spec__.name}:main"}
    run = RunDir.create("hung", {**record, "sidecars": []})
    load_backend("local").submit(run, config.resources)
    return run


def end(run: RunDir) -> None:
    """End a run that has not ended by itself."""
    if run.last_outcome() is None:
        run.request_cancel()
        event_after(run, "attempt_ended", 0.0)


def completed(run: RunDir) -> list[tuple[float, int]]:
    """Time and number of each completed step."""
    return [(line["time"], int(line["step"])) for line in run.read_metrics() if "train/loss" in line]


def measure(run: RunDir, word: int) -> dict[str, float]:
    """One hang: seconds until all is noticed, formed, and a step is completed; and the median step before it."""
    goal = newest_step(run) + SETTLE_STEPS
    while newest_step(run) < goal:
        time.sleep(0.05)
    os.kill(writers_of(run.log_dir(1) / "rank-1.log")[0].pid, word)
    hung = time.time()
    results = {kind: event_after(run, kind, hung)["time"] - hung for kind in ("ranks_hung", "group_formed", "first_step")}
    times = [moment for moment, _ in completed(run) if moment < hung][-SETTLE_STEPS:]
    return {**results, "step_seconds": statistics.median(b - a for a, b in pairwise(times))}


def hangs(data: Path, count: int, word: int) -> dict[str, Any]:
    """So many hangs of one kind, in one run."""
    run = start(data, 1_000_000)
    event_after(run, "first_step", 0.0)
    try:
        results = [measure(run, word) for _ in range(count)]
    finally:
        end(run)
    step = statistics.median(item["step_seconds"] for item in results)
    medians = {f"median_{kind}": statistics.median(item[kind] for item in results) for kind in ("ranks_hung", "group_formed")}
    seconds = [item["first_step"] for item in results]
    return {
        "median_seconds_to_next_step": statistics.median(seconds),
        "worst": max(seconds),
        **medians,
        "step_seconds": step,
        "target": 10 * step + 3,
        "attempts": run.attempts(),
        "all": [round(second, 2) for second in seconds],
    }


def soak(data: Path, steps: int) -> dict[str, Any]:
    """A run that nobody disturbs but its own steps; how often it was taken for hung."""
    os.environ["BENCH_JITTER"] = "1"
    try:
        run = start(data, steps, **IN_PEACE)
    finally:
        del os.environ["BENCH_JITTER"]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar, suppress(KeyboardInterrupt):
            task = bar.add_task("steps", total=steps)
            while run.last_outcome() is None:
                bar.update(task, completed=int((read_json(run.progress) or {}).get("done", 0)))
                time.sleep(1.0)
    finally:
        end(run)
    lengths = [b - a for a, b in pairwise(moment for moment, _ in completed(run))]
    alarms = [event for event in run.read_events() if event["event"] == "ranks_hung"]
    results = {
        "steps": len(lengths) + 1,
        "false_alarms": len({alarm["group"] for alarm in alarms}),
        "alarms": [_told(alarm) for alarm in alarms],
        "attempts": len(run.attempts()),
    }
    if lengths:
        results |= {"step_seconds": statistics.median(lengths), "longest_step_seconds": max(lengths)}
        results |= {"mean_step_seconds": statistics.mean(lengths)}
    return results


def _told(alarm: dict[str, Any]) -> dict[str, Any]:
    """A node's report of an alarm: its time, and the state of its ranks."""
    when = time.strftime("%H:%M:%S", time.localtime(alarm["time"]))
    ranks = [f"{rank['rank']}: {rank['phase']}, {rank['state']}, {rank['where']}" for rank in alarm["ranks"]]
    return {"time": when, **{key: alarm[key] for key in ("node", "step", "seconds")}, "ranks": ranks}


def measure_all() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hangs", type=int, default=10)
    parser.add_argument("--soak-steps", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[RUNS_VARIABLE] = str(Path(folder) / "runs")
        data = make_dataset(Path(folder) / "data", num_documents=2000)
        if arguments.soak_steps:
            report["soak"] = soak(data, arguments.soak_steps)
        if arguments.hangs:
            report["stopped"] = hangs(data, arguments.hangs, signal.SIGSTOP)
            report["stuck_in_python"] = hangs(data, arguments.hangs, signal.SIGUSR1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    measure_all()
