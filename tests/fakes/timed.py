"""A pretraining run with planted faults, on which a witness on rank 0 writes down what begins when."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.context import JobContext

PLAN = "PLANTED_FAULTS"  # variable: a JSON list of {kind, step, rank, seconds}
PACE_SECONDS = 0.04  # of a step, beside its computation


class Witness:
    """Marks of rank 0, one line each: a kind of time begins now, and the one before ends."""

    def __init__(self, context: JobContext) -> None:
        self._path, self._context = context.run.path / "witness.jsonl", context

    def mark(self, kind: str, step: int) -> None:
        now = time.time()
        if self._context.rank == 0:
            where = {"attempt": self._context.attempt, "group": self._context.group}
            with self._path.open("a") as stream:
                stream.write(json.dumps({"kind": kind, "time": now, "step": step, **where}) + "\n")


class Faults:
    """The faults of the plan that are due; each happens once in a run, and leaves a file with its begin and, if any, its end."""

    def __init__(self, context: JobContext) -> None:
        self._context, self._faults = context, json.loads(os.environ.get(PLAN, "[]"))

    def happen(self, *kinds: str, step: int) -> None:
        for fault in self._faults:
            file = self._context.run.path / f"happened-{fault['kind']}-{fault['step']}.json"
            here = fault["kind"] in kinds and (fault["step"], fault["rank"]) == (step, self._context.rank)
            if here and not file.exists():
                times = {"attempt": self._context.attempt, "group": self._context.group, "begin": time.time()}
                file.write_text(json.dumps(fault | times))
                _happen(fault)
                file.write_text(json.dumps(fault | times | {"end": time.time()}))


def _happen(fault: dict[str, Any]) -> None:
    match fault["kind"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case _:
            time.sleep(fault["seconds"])


def train(context: JobContext) -> dict[str, object]:
    """Pretrain as the plan says."""
    from ropewalk.cluster.run.heartbeat import Heart
    from ropewalk.jobs.training.loop.report.report import Report
    from ropewalk.jobs.training.loop.trainer import Trainer
    from ropewalk.jobs.training.loop.validator import Validator
    from ropewalk.jobs.training.pretrain.job import main
    from ropewalk.sharding.checkpoints.checkpoint import Checkpoints

    witness, faults, done = Witness(context), Faults(context), [0]
    start, batches = Trainer._start_step, Trainer.batches

    def started(self: Trainer, batch: Any) -> None:
        done[0] = self.progress.step
        witness.mark("step", done[0] + 1)
        time.sleep(PACE_SECONDS)
        faults.happen("slow", "kill", "stop", step=done[0] + 1)
        start(self, batch)
        done[0] = self.progress.step

    def awaited(self: Trainer) -> Iterator[Any]:
        inner = batches(self)
        while True:
            witness.mark("data", done[0])
            faults.happen("data", step=done[0])
            if (batch := next(inner, None)) is None:
                return
            yield batch

    def watched(owner: Any, name: str, kind: str, then: str = "") -> None:
        method = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            witness.mark(kind, done[0])
            faults.happen(kind, step=done[0])
            result = method(*arguments, **keywords)
            if then:
                witness.mark(then, done[0] + 1)
            return result

        patch.setattr(owner, name, call)

    with pytest.MonkeyPatch.context() as patch:  # a process that stays calls this for each of its groups
        patch.setattr(Trainer, "_start_step", started)
        patch.setattr(Trainer, "batches", awaited)
        watched(Heart, "begin", "load")
        watched(Checkpoints, "save", "save")
        watched(Checkpoints, "wait_for_copy", "save", then="step")  # within a step
        watched(Checkpoints, "close", "save")
        watched(Validator, "validate", "validate")
        watched(Report, "close", "stop")
        watched(Report, "lose", "lost")
        return main(context)


def marks(run: Path) -> list[dict[str, Any]]:
    """Read what the witness wrote, by group and time."""
    lines = map(json.loads, (run / "witness.jsonl").read_text().splitlines())
    return sorted(lines, key=lambda line: (line["attempt"], line["group"], line["time"]))


def happened(run: Path) -> list[dict[str, Any]]:
    """Read the planted faults that have happened."""
    return [json.loads(file.read_text()) for file in run.glob("happened-*.json")]
