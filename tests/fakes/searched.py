"""A job for sweeps to search, without torch: it counts steps, and its loss depends on two of its keys."""

import math
import os
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import append_line, read_json, write_json
from ropewalk.cluster.section import Section
from ropewalk.cluster.spec import Engine, JobSpec


class ToyOptim(Section):
    lr: float = Field(default=0.1, gt=0, description="best at 0.1")
    kind: Literal["plain", "momentum"] = Field(default="plain", description="which optimizer")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="best at 0.5")


class SearchedConfig(JobConfig):
    """The keys of the toy."""

    steps: int = Field(default=20, ge=1, description="steps")
    pause: float = Field(default=0.01, ge=0, description="seconds a step")
    optim: ToyOptim = Field(default=ToyOptim(), description="what is searched")
    gate: int | None = Field(default=None, description="the step from which on it waits for a file `gate` beside the runs")
    fail_above: float | None = Field(default=None, description="a higher lr is a bug")


def loss_at(optim: ToyOptim, step: int) -> float:
    """Loss of the toy: falls with the step, and rises with the distance of lr from 0.1."""
    return math.log10(optim.lr / 0.1) ** 2 + (optim.momentum - 0.5) ** 2 + 1 / step


def main(context: JobContext) -> dict[str, Any]:
    config, saved = context.config(SearchedConfig), context.run.path / "saved.json"
    if config.fail_above is not None and config.optim.lr > config.fail_above:
        raise ZeroDivisionError(f"lr {config.optim.lr} is too high")
    step = int((read_json(saved) or {"step": 0})["step"])
    while step < config.steps:
        while not (stop := context.stop_requested()) and _closed(context, config, step + 1):
            time.sleep(0.02)
        step += 1
        context.fence.check()
        write_json(saved, {"step": step})
        line = {"step": step, "attempt": context.attempt, "time": time.time(), "loss": loss_at(config.optim, step)}
        append_line(context.run.metrics, line)
        print(f"step {step}", flush=True)
        if stop:
            raise StopRequested(f"step {step}")
        time.sleep(config.pause)
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"step": step, "loss": loss_at(config.optim, step), "pid": os.getpid(), "devices": devices}


def _closed(context: JobContext, config: SearchedConfig, step: int) -> bool:
    return config.gate is not None and step >= config.gate and not (context.run.path.parent / "gate").exists()


SPEC = JobSpec(
    name="searched",
    summary="A toy.",
    config="tests.fakes.searched:SearchedConfig",
    entry="tests.fakes.searched:main",
    engine=Engine.PROCESS,
)


def make_plugin(folder: Path) -> Path:
    """A folder for the module path whose entry points name the toy, as an installed package's would."""
    directory = folder / "searched-1.0.dist-info"
    directory.mkdir(parents=True)
    points = "[ropewalk.jobs]\nsearched = tests.fakes.searched:SPEC\n"
    points += "[ropewalk.backends]\nallocation = ropewalk.jobs.orchestration.sweep.trials.allocation:AllocationBackend\n"
    (directory / "entry_points.txt").write_text(points)
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nName: searched\nVersion: 1.0\n")
    return folder
