"""Parts shared by the benchmarks of sweeps: the quick start's data and model, a sweep to its end, the machine's CPU seconds."""

import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.cli.quickstart import settings
from ropewalk.jobs.orchestration.sweep.report.results import SweepResults, read_sweep
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit

SPACE: dict[str, Any] = {
    "optim.lr": {"loguniform": [3e-4, 3e-2]},
    "optim.warmup_steps": {"choice": [5, 10, 20]},
    "optim.weight_decay": {"uniform": [0.0, 0.2]},
}


def run_job(job: str, values: Mapping[str, Any]) -> RunDir:
    """Submit to this machine, wait, insist on success."""
    run = submit(job, load_config(config_of(find_job(job)), values))
    wait(run)
    outcome = run.last_outcome()
    if outcome is None or outcome.state is not RunState.SUCCEEDED:
        raise RuntimeError(f"{run.path} ended as {outcome}")
    return run


def quickstart_data(folder: Path) -> Path:
    """The quick start's data set, made by its own job."""
    run_job("preprocess", settings(folder, 300)["preprocess"])
    return folder / "data"


def base(data: Path, steps: int, **changes: Any) -> dict[str, Any]:
    """The quick start's training on one rank, scored ten times."""
    return {
        "data": str(data),
        "model": {"preset": "tiny"},
        "seq_len": 256,
        "steps": steps,
        "batch": {"global_batch": 16, "micro_batch": 8},
        "checkpoint": {"every_steps": max(5, steps // 4), "keep": 2},
        "validation": {"every_steps": max(1, steps // 10), "max_sequences": 64},
        **changes,
    }


def sweep(data: Path, steps: int, **keys: Any) -> SweepResults:
    """A sweep over the quick start's model, to its end."""
    values = {"job": "pretrain", "base": base(data, steps), "space": SPACE, "metric": "validation/loss", **keys}
    return read_sweep(run_job("sweep", values))


def loss_of(answers: SweepResults, data: Path) -> tuple[float, float]:
    """The best trial's loss on text that it has not seen, and its standard error."""
    assert answers.best is not None
    model = str(answers.run.path.parent / str(answers.best.run))
    scores = run_job("evaluate", {"model": model, "data": str(data), "seq_len": 256, "max_sequences": 400}).results()
    return float(scores["loss"]), float(scores["standard_error"])


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "standard_error": error}


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Wall and CPU seconds of the block, the latter of the whole machine: trials are nobody's children."""
    results: dict[str, float] = {}
    began, busy = time.monotonic(), _busy_seconds()
    yield results
    results["wall_seconds"] = time.monotonic() - began
    results["cpu_seconds"] = _busy_seconds() - busy


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)  # Ray's workers are nice


def use_folder(folder: Path) -> None:
    """All runs lie there, and W&B is left out: its offline files are no part of what is measured."""
    os.environ["ROPEWALK_RUNS"] = str(folder / "runs")
    os.environ["WANDB_MODE"] = "disabled"
